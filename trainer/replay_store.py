"""What `keep_batches` keeps of a step, for `atropos replay`: its groups, and fingerprints of every tensor on the way.

    batches/step-00000012.bin    zlib over msgpack: `StoredStep`, of the step that made weight version 12

A fingerprint tells whether two tensors are equal bit for bit; it reads a tensor once, on its own device. Phases come in
the order of the step: weights before, batch, old log-probabilities and the reference's, then gradient and weights of
each optimizer step.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from environments.common.errors import ConfigError
from environments.common.files import publish_file
from trainer.config import TrainerConfig
from trainer.data.scored_groups import ScoredGroup
from trainer.model.policy import Policy
from trainer.optimizer import PolicyOptimizer
from trainer.parallel import Parallel, together
from trainer.start import cannot_write
from trainer.step import Batch

FORMAT = 1
FOLDER = "batches"
_NAME = re.compile(r"step-(\d{8})\.bin")
_CHUNK = 1 << 24
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64), (31, 1))
_OF_MICRO_BATCH = ("input_ids", "target", "sequence", "temperature", "advantage", "length", "sampler_logprob")
Digests = list[tuple[str, str, str]]
"""(phase, tensor, fingerprint over all ranks), in the order in which they came to be."""
_NOT_OF_THE_STEP = re.compile(r"seconds_.*|peak_memory_gib|servers_missing|groups_left_out|sync_.*|served_.*")


class StoredStep(msgspec.Struct, frozen=True):
    """A step as it was taken. `step` is the version of the weights that it made."""

    format: int
    step: int
    world_size: int
    threads: int
    versions: dict[str, str]
    config: dict[str, Any]
    groups: list[ScoredGroup]
    left_out: dict[str, str]
    digests: Digests
    metrics: dict[str, float | int | None]


def comparable(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that a replayed step has to have again: neither times nor sizes nor what servers did."""
    return {
        name: value
        for name, value in metrics.items()
        if name not in ("step", "time", "tokens_trained") and not _NOT_OF_THE_STEP.fullmatch(name)
    }


def fingerprint(tensor: Tensor) -> str:
    """A tensor's bits, of this rank's part, in 16 digits; to be compared with those of the same kind of device."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    flat = local.detach().contiguous().view(-1)
    bits = flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
    if bits.is_cuda:
        return f"{mixed_sum(bits) & (2**64 - 1):016x}"
    # A copy: FSDP gives a storage back by resizing it, which torch refuses once numpy has seen it.
    return hashlib.blake2b(bits.clone().numpy().data, digest_size=8).hexdigest()


def mixed_sum(bits: Tensor) -> int:
    """A fingerprint that needs no copy to the host: each element is mixed with its place, as splitmix64 mixes.

    bits: integers [n]. The sum wraps around, so its order does not matter.
    """
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, bits.numel(), _CHUNK):
        part = bits[start : start + _CHUNK].to(torch.int64)
        mixed = torch.arange(start + 1, start + 1 + part.numel(), device=bits.device)
        mixed.mul_(_GOLDEN).add_(part)
        for shift, factor in _MIX:
            mixed.bitwise_xor_(mixed >> shift).mul_(factor)
        total += mixed.sum()
    return int(total)


class StepRecorder:
    """Fingerprints of the step under way, and where they are kept.

    keep: newest steps kept; 0: nothing is done or kept at all. `write` and `digests` are collectives.
    """

    def __init__(self, run_dir: Path, keep: int, policy: Policy, optimizer: PolicyOptimizer, parallel: Parallel):
        self.folder, self.keep = run_dir / FOLDER, keep
        self.parallel = parallel
        self._policy, self._optimizer = policy, optimizer
        self._groups: list[ScoredGroup] = []
        self._own: Digests = []
        if keep:
            optimizer.watch = self._optimizer_step

    def prepared(self, groups: list[ScoredGroup], batch: Batch) -> None:
        """Takes the step's groups, the dropped ones too, and what was made of them. Begins a step."""
        if not self.keep:
            return
        self._groups, self._own = groups, []
        self._add("weights before the step", self._policy.model.named_parameters())
        for number, part in enumerate(batch.parts):
            for place, micro in enumerate(part.micro_batches):
                name = f"part {number}, micro-batch {place}"
                self._add("batch", ((f"{name}, {field}", getattr(micro, field)) for field in _OF_MICRO_BATCH))
                self._add("old log-probabilities", [(name, part.old_logprobs[place])])
                if part.reference_logprobs:
                    self._add("reference's log-probabilities", [(name, part.reference_logprobs[place])])

    def _optimizer_step(self, phase: str) -> None:
        """Called by the optimizer with "gradient" before and "weights" after it updates."""
        weights = [(name, one) for name, one in self._policy.model.named_parameters() if one.requires_grad]
        if phase == "gradient":
            tensors = [(name, weight.grad) for name, weight in weights if weight.grad is not None]
        else:
            tensors = [(name, weight.data) for name, weight in weights]
        begun = sum(1 for name in dict.fromkeys(where for where, _, _ in self._own) if name.startswith("gradient"))
        number = begun if phase == "gradient" else begun - 1
        self._add(f"{phase} of optimizer step {number}", tensors)

    def _add(self, phase: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
        self._own += [(phase, name, fingerprint(tensor)) for name, tensor in tensors]

    def digests(self) -> Digests:
        """The step's fingerprints over all ranks, on rank 0; a collective."""
        every: list[Any] = [self._own]
        if self.parallel.world_size > 1:
            every = [None] * self.parallel.world_size
            dist.all_gather_object(every, self._own, group=self.parallel.control)
        found: Digests = []
        for own in zip(*every, strict=True):
            joined = "".join(digits for _, _, digits in own)
            found.append((own[0][0], own[0][1], hashlib.sha256(joined.encode()).hexdigest()[:16]))
        return found

    def write(self, step: int, config: TrainerConfig, metrics: Mapping[str, Any], left_out: Mapping[str, str]) -> None:
        """Keeps the step and removes the oldest one; a collective. Raises what `cannot_write` says, on every rank."""
        if not self.keep:
            return
        digests = self.digests()
        with together(self.parallel):
            if self.parallel.is_main:
                try:
                    self._keep(step, config, metrics, left_out, digests)
                except OSError as error:
                    raise cannot_write(self.folder, error) from None

    def _keep(
        self, step: int, config: TrainerConfig, metrics: Mapping[str, Any], left_out: Mapping[str, str],
        digests: Digests,
    ) -> None:  # fmt: skip
        stored = StoredStep(
            FORMAT, step, self.parallel.world_size, torch.get_num_threads(), versions(self.parallel),
            config.model_dump(mode="json"), self._groups, dict(left_out), digests, comparable(metrics),
        )  # fmt: skip
        self.folder.mkdir(exist_ok=True)
        publish_file(self.folder / f"step-{step:08d}.bin", zlib.compress(msgspec.msgpack.encode(stored), 6))
        for old in stored_steps(self.folder)[: -self.keep]:
            (self.folder / f"step-{old:08d}.bin").unlink()


def versions(parallel: Parallel) -> dict[str, str]:
    """What bits depend on beside the step itself."""
    device = torch.cuda.get_device_name(parallel.device) if parallel.device.type == "cuda" else "cpu"
    return {"torch": str(torch.__version__), "device": device}


def stored_steps(folder: Path) -> list[int]:
    """The steps that a folder `batches` holds, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(found[1]) for path in folder.iterdir() if (found := _NAME.fullmatch(path.name)))


def read_step(folder: Path, step: int) -> StoredStep:
    """A stored step.

    Raises:
        ConfigError: it is not there, damaged, or of another version.
    """
    path = folder / f"step-{step:08d}.bin"
    if not path.is_file():
        known = stored_steps(folder)
        kept = f"steps {known[0]} to {known[-1]} are kept" if known else "none is kept: train with --keep_batches N"
        raise ConfigError(f"--step {step}: no stored batch of it in {folder}; {kept}")
    try:
        stored = msgspec.msgpack.decode(zlib.decompress(path.read_bytes()), type=StoredStep)
    except (zlib.error, msgspec.MsgspecError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); replay another step") from None
    if stored.format != FORMAT:
        raise ConfigError(f"{path}: format {stored.format}, this version reads {FORMAT}")
    return stored
