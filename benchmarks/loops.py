"""One training step by two ways, phase by phase: this project's, and the plain loop that most scripts begin with.

PackedLoop is the product: the functions of trainer.step on the Policy, FSDP2 included. PaddedLoop is the same
model by transformers alone: every rollout whole, padded to the longest of its micro-batch, attention_mask, sdpa,
gradient checkpointing, the logits of all positions in fp32, log_softmax. Masters, AdamW, objective and groups are the
same, and so is the gradient; the packed loop computes entropies beside it, the padded one does not.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from benchmarks.workload import padded_batches
from environments.common.rewards import group_advantages
from trainer.config import BatchConfig, TrainerConfig
from trainer.data.scored_groups import ScoredGroup
from trainer.metrics import Metrics
from trainer.model.policy import Policy
from trainer.objective.objectives import denominators, policy_loss
from trainer.objective_config import ObjectiveConfig
from trainer.optimizer import PolicyOptimizer
from trainer.parallel import Parallel
from trainer.planning.live_bytes import LiveBytes
from trainer.step import accumulate_gradient, chosen_mismatch, chosen_objective, prepare, set_old_logprobs

GIB = 2**30


class Phases:
    """Seconds and peak bytes of named phases; what a warm-up left is thrown away by `clear`.

    Seconds: on a GPU by the clock; on a CPU those that the processor spent on this process, which neighbours on a
    shared machine hardly change; with one thread they are the clock's on a quiet machine.
    Peak: torch.cuda.max_memory_allocated on a GPU; on a CPU the storages that `live` follows, or nothing without it.
    """

    def __init__(self, device: torch.device, live: LiveBytes | None = None) -> None:
        self.device = device
        self.live = live
        self.clear()

    def clear(self) -> None:
        """Forgets what was measured."""
        self.seconds: dict[str, list[float]] = {}
        self.peak: dict[str, int] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measures what is in the block."""
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        if self.live is not None:
            self.live.reset_peak()
        clock = time.perf_counter if cuda else time.process_time
        began = clock()
        yield
        if cuda:
            torch.cuda.synchronize(self.device)
        self.seconds.setdefault(name, []).append(clock() - began)
        peak = torch.cuda.max_memory_allocated(self.device) if cuda else self.live.peak if self.live else 0
        self.peak[name] = max(peak, self.peak.get(name, 0))


def trainer_config(model: Path, context: int, max_tokens: int, rollouts: int, group_size: int, **more: Any) -> Any:
    """The trainer's options for a benchmark: DAPO, recomputed old log-probabilities, one optimizer step a batch."""
    return TrainerConfig(
        model=model,
        run_dir=model.parent / "run",
        objective=ObjectiveConfig(name="dapo", old_logprobs="recompute"),
        batch=BatchConfig(rollouts=rollouts, group_size=group_size, context=context, max_tokens=max_tokens),
        **more,
    )


class PackedLoop:
    """This project's step."""

    def __init__(
        self,
        config: TrainerConfig,
        groups: Sequence[ScoredGroup],
        parallel: Parallel,
        dtype: torch.dtype | None = None,
        *,
        optimizer: bool = True,
    ) -> None:
        """dtype: computed in; None: as the trainer does. optimizer False leaves AdamW and its state out."""
        self.config = config
        self.groups = groups
        self.parallel = parallel
        self.policy = Policy(
            config.model,
            parallel,
            activation_checkpointing=config.activation_checkpointing,
            logprob_chunk=config.logprob_chunk,
            compute_dtype=dtype,
            compile_blocks=config.compile,
        )
        self.optimizer = PolicyOptimizer(self.policy, config.optimizer)
        self.update = optimizer

    def step(self, phases: Phases) -> None:
        """One step. Without `update` the gradient is thrown away instead."""
        with phases("prepare"):
            batch = prepare(self.groups, self.config, self.parallel)
        [part] = batch.parts
        with phases("old_logprobs"):
            set_old_logprobs(batch, self.policy, self.config, self.parallel)
        with phases("gradient"):
            accumulate_gradient(part, self.policy, self.config, self.parallel, Metrics())
        if self.update:
            with phases("optimizer"):
                self.optimizer.step()
        self.optimizer.zero_grad()
        with phases("gather"):
            self.policy.state_dict_full(torch.bfloat16)

    def gradients(self) -> dict[str, Tensor]:
        """Of a step's objective, by parameter name."""
        batch = prepare(self.groups, self.config, self.parallel)
        set_old_logprobs(batch, self.policy, self.config, self.parallel)
        accumulate_gradient(batch.parts[0], self.policy, self.config, self.parallel, Metrics())
        found = {name: _whole(weight.grad) for name, weight in self.policy.model.named_parameters()}
        self.optimizer.zero_grad()
        return found

    def state(self) -> list[Tensor]:
        """Tensors that live between two steps."""
        return [*self.policy.parameters(), *self.policy.buffers(), *_moments(self.optimizer)]


class PaddedLoop:
    """The plain loop; see the module's words. rows: a micro-batch's rows; None: as many as fit into max_tokens."""

    def __init__(
        self,
        config: TrainerConfig,
        groups: Sequence[ScoredGroup],
        parallel: Parallel,
        dtype: torch.dtype | None = None,
        *,
        rows: int | None,
        optimizer: bool = True,
    ) -> None:
        self.config = config
        self.device = parallel.device
        self.model = AutoModelForCausalLM.from_pretrained(
            config.model, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
        )
        nn.Module.to(self.model, self.device)
        self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.train()  # checkpointing does nothing otherwise; Qwen3 has no dropout
        self.model.config.use_cache = False
        self.dtype = dtype if dtype is not None or self.device.type == "cpu" else torch.bfloat16
        self.optimizer = PolicyOptimizer(self.model, config.optimizer)
        self.update = optimizer
        self.rollouts = [
            (group, rollout, advantage)
            for group in groups
            for rollout, advantage in zip(group.rollouts, self._advantages(group), strict=True)
        ]
        lengths = [len(group.prompt) + len(rollout.completion) for group, rollout, _ in self.rollouts]
        self.batches = padded_batches(lengths, config.batch.max_tokens, rows)
        self.counts = denominators(
            [len(rollout.completion) for _, rollout, _ in self.rollouts],
            [rollout.overlong for _, rollout, _ in self.rollouts],
            config.objective.overlong_baseline,
        )

    def _advantages(self, group: ScoredGroup) -> list[float]:
        scores = [rollout.score for rollout in group.rollouts]
        overlong = [rollout.overlong for rollout in group.rollouts]
        return group_advantages(scores, overlong, self.config.objective.overlong_baseline)

    def step(self, phases: Phases) -> None:
        """One step."""
        with phases("old_logprobs"), torch.no_grad():
            old = [self._logprobs(batch) for batch in self.batches]
        with phases("gradient"):
            self._backward(old)
        if self.update:
            with phases("optimizer"):
                self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self) -> dict[str, Tensor]:
        """Of a step's objective, by parameter name."""
        with torch.no_grad():
            old = [self._logprobs(batch) for batch in self.batches]
        self._backward(old)
        found = {name: _whole(weight.grad) for name, weight in self.model.named_parameters()}
        self.optimizer.zero_grad()
        return found

    def _backward(self, old: Sequence[Tensor]) -> None:
        for batch, before in zip(self.batches, old, strict=True):
            chosen = [self.rollouts[index] for index in batch]
            length = torch.tensor([len(rollout.completion) for _, rollout, _ in chosen], device=self.device)
            sampler = [value for _, rollout, _ in chosen for value in rollout.logprobs]
            loss, _ = policy_loss(
                chosen_objective(self.config),
                self._logprobs(batch),
                before,
                torch.repeat_interleave(torch.arange(len(chosen), device=self.device), length),
                torch.tensor([advantage for _, _, advantage in chosen], device=self.device),
                length,
                self.counts,
                max_length=self.config.batch.context,
                sampler_logprob=torch.tensor(sampler, device=self.device),
                mismatch=chosen_mismatch(self.config),
            )
            loss.backward()

    def _logprobs(self, batch: Sequence[int]) -> Tensor:
        """fp32 [K] of the batch's completion tokens, by the logits of all positions."""
        chosen = [self.rollouts[index] for index in batch]
        rows = [group.prompt + rollout.completion for group, rollout, _ in chosen]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.device)
        trained = torch.zeros(len(rows), longest - 1, dtype=torch.bool)
        for number, (group, rollout, _) in enumerate(chosen):
            trained[number, len(group.prompt) - 1 : len(group.prompt) - 1 + len(rollout.completion)] = True
        half = (
            torch.autocast(self.device.type, self.dtype) if self.dtype not in (None, torch.float32) else nullcontext()
        )
        with half:
            logits = self.model(input_ids=ids, attention_mask=mask).logits
        temperature = torch.tensor([group.temperature for group, _, _ in chosen], device=self.device)
        table = torch.log_softmax(logits[:, :-1].float() / temperature[:, None, None], dim=-1)
        picked = table.gather(2, ids[:, 1:, None])[..., 0]
        return picked[trained.to(self.device)]

    def state(self) -> list[Tensor]:
        """Tensors that live between two steps."""
        return [*self.model.parameters(), *self.model.buffers(), *_moments(self.optimizer)]


def optimizer_fits(parameters: int, device: torch.device) -> bool:
    """Whether fp32 masters, gradients and moments with bf16 weights leave a fifth of a GPU to everything else."""
    return device.type == "cpu" or 18 * parameters < 0.8 * torch.cuda.get_device_properties(device).total_memory


Outcome = Literal["measured", "out of memory"]


def run_steps(loop: PackedLoop | PaddedLoop, phases: Phases, repeats: int) -> Outcome:
    """`repeats` measured steps, on a GPU after a warm-up; there, running out of memory is an outcome, not an error."""
    warm_up = int(phases.device.type == "cuda")
    try:
        for number in range(warm_up + repeats):
            if number == warm_up:
                phases.clear()
            loop.step(phases)
    except torch.OutOfMemoryError:
        return "out of memory"
    return "measured"


def follow_memory(loop: PackedLoop | PaddedLoop, device: torch.device) -> dict[str, int]:
    """Peak bytes by phase of one step on a CPU, after a step that makes AdamW's state; the host's copies included."""
    loop.step(Phases(device))
    with LiveBytes() as live:
        live.count(loop.state())
        phases = Phases(device, live)
        loop.step(phases)
    return phases.peak


def free(device: torch.device) -> None:
    """Gives back what deleted loops held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def relative_error(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """L2 norm of the difference over the second's norm, over all parameters together, in float64."""
    if first.keys() != second.keys():
        raise ValueError(f"gradients of other parameters: {sorted(first.keys() ^ second.keys())[:3]}")
    off = sum(float((first[name].double() - second[name].double()).square().sum()) for name in first)
    whole = sum(float(value.double().square().sum()) for value in second.values())
    return float((off / whole) ** 0.5)


def _whole(gradient: Tensor | None) -> Tensor:
    if gradient is None:
        raise ValueError("a parameter without a gradient: the loop did not reach it")
    full = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
    return full.detach().to("cpu", copy=True)


def _moments(optimizer: PolicyOptimizer) -> list[Tensor]:
    return [value for state in optimizer.adamw.state.values() for value in state.values() if isinstance(value, Tensor)]
