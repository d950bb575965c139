"""The trainer's options: one YAML file and dotted flags, each with its sentence, checked before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from environments.common.plugins import check_known
from environments.common.server_list import ServerSource, either
from environments.common.settings import Section, Settings, Url, without_password
from trainer.adapter_config import AdapterConfig
from trainer.checkpoint_config import CheckpointConfig, InitFromConfig
from trainer.objective.table import token_twin
from trainer.objective_config import ObjectiveConfig
from trainer.tracking import GROUP as TRACKER_GROUP
from trainer.tracking import TRACKERS

Recompute = Literal["full", "selective", "none"]


Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """AdamW (arXiv 1711.05101) and its schedule."""

    lr: float = Field(1e-6, gt=0, description="Learning rate after the warm-up.")
    betas: tuple[Decay, Decay] = Field((0.9, 0.95), description="Decay of the first and second moment.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of matrices; vectors have none.")
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    warmup_steps: int = Field(0, ge=0, description="Updates over which the learning rate rises linearly.")
    decay: Literal["none", "linear", "cosine"] = Field(
        "none", description="How the learning rate falls over the last share of the updates: linearly or as a cosine."
    )
    decay_share: float = Field(0.1, gt=0, le=1, description="Share of all updates over which it falls, at their end.")
    max_grad_norm: float = Field(1.0, gt=0, description="The gradient is scaled down to this norm over all ranks.")
    state: Literal["device", "cpu"] = Field(
        "device",
        description="Where AdamW's moments are kept: beside the weights, or in CPU memory, from where an update brings "
        "them in parts (8 bytes a parameter less on a GPU with fp32, the same numbers). On a CPU both are the same "
        "memory.",
    )
    moments: Literal["fp32", "bf16", "int8"] = Field(
        "fp32",
        description="How AdamW's moments are kept, in 8, 4 (rounded stochastically) or about 2 bytes a parameter "
        "(blocks of up to 256); updates are computed in fp32 in any case.",
    )

    @model_validator(mode="after")
    def _decays_by_something(self) -> OptimizerConfig:
        if self.decay == "none" and self.decay_share != type(self).model_fields["decay_share"].default:
            raise ValueError(
                f"decay_share {self.decay_share:g} has no effect with decay none: set decay to linear or cosine, or "
                "leave it out"
            )
        return self


class BatchConfig(Section):
    """What one batch from the Atropos API holds and how it is cut."""

    rollouts: int = Field(96, ge=2, description="Rollouts in one batch (Atropos' batch_size, in sequences).")
    group_size: int = Field(8, ge=2, description="Rollouts of one problem.")
    context: int = Field(1024, ge=16, description="Longest prompt + completion in tokens.")
    max_tokens: int = Field(4096, ge=16, description="Packed tokens of one micro-batch on one rank.")
    temperature: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="Sampling temperature of groups that do not say theirs, as those of stock Atropos environments.",
    )
    untrainable: Literal["stop", "leave_out"] = Field(
        "stop",
        description="A group that cannot be trained on: stop with its id and field, or leave_out: continue without it, "
        "counted.",
    )

    @property
    def groups(self) -> int:
        """Groups in one batch."""
        return self.rollouts // self.group_size

    @model_validator(mode="after")
    def _fits_together(self) -> BatchConfig:
        if self.rollouts % self.group_size:
            down = self.rollouts - self.rollouts % self.group_size
            raise ValueError(
                f"rollouts {self.rollouts} is not divisible by group_size {self.group_size}: "
                f"set rollouts to {max(down, self.group_size)} or {down + self.group_size}"
            )
        if self.max_tokens < self.context:
            raise ValueError(
                f"max_tokens {self.max_tokens} < context {self.context}: one sequence must fit into a "
                f"micro-batch; set max_tokens to {self.context} or more"
            )
        return self


class ApiConfig(Section):
    """The Atropos API server."""

    url: Url = Field("http://127.0.0.1:8000", description="Address of the Atropos API server.")
    batch_deadline_s: float = Field(3600.0, gt=0, description="Longest wait for one batch, evaluations not counted.")


class WeightsConfig(Section):
    """How new weights reach vLLM."""

    backend: Literal["disk", "nccl", "colocated"] = Field(
        "disk",
        description="Transfer: disk (a folder that both sides see; also without a GPU), nccl (from GPU to GPU) or "
        "colocated (trainer and vLLM on one GPU, in turns).",
    )
    servers: list[Url] = Field([], description="Addresses of the vLLM servers; none: nothing is sent.")
    servers_from: ServerSource | None = Field(
        None,
        description="Servers that come and go, instead of servers: a file with their addresses, or dns://NAME:PORT; "
        "read again every 2 s.",
    )
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="The served weights' type.")
    pause_mode: Literal["keep", "abort", "wait"] = Field(
        "keep", description="What happens to running generations during an update."
    )
    deadline_s: float = Field(120.0, gt=0, description="Longest time of one phase of an update, in seconds.")
    wait_s: float = Field(
        300.0, ge=0, description="Longest wait at the start for servers that do not answer yet, in seconds; 0: none."
    )
    verify_every: int = Field(
        10,
        ge=0,
        description="Publications between two comparisons of the servers' log-probabilities with the trainer's; the "
        "first two after a start are always compared. 0: never.",
    )
    nccl_address: str | None = Field(
        None,
        description="Address of rank 0 where the servers reach it (backend nccl); empty: the one on the way to them.",
    )
    full_every: int = Field(
        1,
        ge=1,
        description="Publications of which one holds all weights (backend disk); the others hold the numbers that "
        "changed, and rank 0 keeps the published weights in CPU memory. 1: all do.",
    )
    pause_while_training: bool = Field(
        False, description="Stop generation while a step is computed: for trainer and vLLM on the same cores."
    )

    sleep_level: int = Field(
        1, ge=1, le=2, description="While vLLM sleeps (colocated) its weights are in host memory (1) or dropped (2)."
    )
    server_share: float = Field(
        0.85,
        gt=0,
        lt=1,
        description="Share of the GPU's memory that vLLM takes while it is awake (colocated), its "
        "gpu_memory_utilization: for the budget.",
    )

    @property
    def sends(self) -> bool:
        """Whether there are servers that get the weights."""
        return bool(self.servers) or self.servers_from is not None


class TrainerConfig(Settings):
    """Trains on the groups that the Atropos API has and sends new weights to the vLLM servers."""

    START: ClassVar[tuple[str, ...]] = ("model", "run_dir", "steps", "weights.servers", "api.url")
    COMMON: ClassVar[tuple[str, ...]] = (
        *("objective.name", "objective.optimizer_steps_per_batch", "optimizer.lr", "batch.rollouts"),
        *("batch.group_size", "batch.context", "batch.max_tokens", "weights.backend", "weights.dtype"),
        *("checkpoint.every", "checkpoint.resume", "init_from.run", "adapter.rank", "use_wandb"),
    )
    EXAMPLE: ClassVar[str] = (
        "torchrun --nproc-per-node 1 trainer/main.py --config configs/demo/trainer.yaml "
        "--model models/SmolLM2-135M-Instruct --run-dir runs/mine --weights.servers http://127.0.0.1:8001"
    )

    model: Path = Field(description="Folder, or hub name, of a Hugging Face causal language model (safetensors).")
    run_dir: Path = Field(description="Folder of this run: config, metrics, checkpoints.")
    steps: int = Field(10, ge=1, description="Batches to train on: one weight version each.")
    seed: int = Field(0, ge=0, description="Seed of everything random in the trainer.")
    activation_checkpointing: Recompute = Field(
        "full",
        description="Blocks computed again in the backward pass: full, selective (attention and every other product "
        "kept) or none.",
    )
    compile: bool = Field(False, description="torch.compile each block: minutes at the start, faster steps.")
    logprob_chunk: int = Field(1024, ge=16, description="Tokens whose logits exist at the same time.")
    memory_gib: float | None = Field(
        None,
        ge=0,
        description="Memory of one device that the run has to fit in, in GiB; empty: what a GPU has free, and no check "
        "on a CPU; 0: no check. See `atropos budget`.",
    )
    keep_batches: int = Field(
        0,
        ge=0,
        description="Newest batches kept in run_dir/batches with fingerprints of the step's tensors, for `atropos "
        "replay`; 0: none.",
    )
    record_tokens: int = Field(
        1,
        ge=0,
        description="Rollouts of each group, the first ones, of whose tokens run_dir/trained_tokens keeps old "
        "log-probability, ratio and whether they were clipped, for the report: about 5 bytes a token, of short answers "
        "7; 0: none.",
    )
    use_wandb: bool = Field(False, description="Log to Weights & Biases as Atropos does, beside metrics.jsonl.")
    trackers: list[str] = Field(
        [],
        description="Where each step's metrics go beside metrics.jsonl: wandb (as use_wandb), "
        "tensorboard, mlflow, trackio, or those of installed packages.",
    )
    tracked_rollouts: int = Field(
        4,
        ge=0,
        description="Rollouts of each step, drawn at random, that trackers show with their texts; 0: none.",
    )
    init_from: InitFromConfig = Field(default_factory=InitFromConfig, description="The stage before.")
    adapter: AdapterConfig = Field(default_factory=AdapterConfig, description="LoRA instead of full training.")
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig, description="The policy objective.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="AdamW and its schedule.")
    batch: BatchConfig = Field(default_factory=BatchConfig, description="What a batch holds.")
    api: ApiConfig = Field(default_factory=ApiConfig, description="The Atropos API server.")
    weights: WeightsConfig = Field(default_factory=WeightsConfig, description="How weights reach vLLM.")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="Saving and resuming.")

    @property
    def tracker_names(self) -> list[str]:
        """Every tracker that is asked for, once."""
        return list(dict.fromkeys([*(["wandb"] if self.use_wandb else []), *self.trackers]))

    @model_validator(mode="after")
    def _trackers_are_installed(self) -> TrainerConfig:
        for name in self.trackers:
            check_known(TRACKER_GROUP, TRACKERS, name, "trackers")
        return self

    @property
    def updates(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps * self.objective.optimizer_steps_per_batch

    @model_validator(mode="after")
    def _nccl_fits(self) -> TrainerConfig:
        if self.weights.backend != "nccl" and self.weights.nccl_address is not None:
            raise ValueError(
                f"weights.nccl_address {self.weights.nccl_address!r} with weights.backend {self.weights.backend}: "
                "leave it empty, or set weights.backend: nccl"
            )
        return self

    @model_validator(mode="after")
    def _deltas_fit(self) -> TrainerConfig:
        if self.weights.full_every > 1 and (self.weights.backend != "disk" or self.adapter.rank):
            what = (
                f"adapter.rank {self.adapter.rank}" if self.adapter.rank else f"weights.backend {self.weights.backend}"
            )
            raise ValueError(
                f"weights.full_every {self.weights.full_every} with {what}: deltas are files of whole weights; set "
                "weights.full_every: 1"
            )
        return self

    @model_validator(mode="after")
    def _shares_one_gpu(self) -> TrainerConfig:
        weights = self.weights
        if weights.backend != "colocated":
            for name in ("sleep_level", "server_share"):
                value, default = getattr(weights, name), type(weights).model_fields[name].default
                if value != default:
                    raise ValueError(
                        f"weights.{name} {value} has no effect with weights.backend {weights.backend}: leave it out, "
                        "or set weights.backend: colocated"
                    )
            return self
        if len(weights.servers) != 1 or weights.servers_from is not None:
            raise ValueError(
                f"weights.servers {weights.servers} with weights.backend colocated: one server shares the trainer's "
                "GPU; give its address alone, or set weights.backend: nccl"
            )
        for name in ("pause_mode", "pause_while_training"):
            value, default = getattr(weights, name), type(weights).model_fields[name].default
            if value != default:
                raise ValueError(
                    f"weights.{name} {value} with weights.backend colocated: vLLM sleeps while a step is computed and "
                    "keeps its requests; leave it out"
                )
        return self

    @model_validator(mode="after")
    def _adapter_travels(self) -> TrainerConfig:
        if self.adapter.rank and self.weights.backend != "disk":
            raise ValueError(
                f"weights.backend {self.weights.backend} with adapter.rank {self.adapter.rank}: vLLM loads an adapter "
                "from files alone; set weights.backend: disk, or adapter.rank: 0"
            )
        return self

    @model_validator(mode="after")
    def _reference_of_an_adapter(self) -> TrainerConfig:
        chosen = self.objective
        if self.adapter.rank and chosen.reference == "ema":
            raise ValueError(
                f"objective.reference ema with adapter.rank {self.adapter.rank}: the reference of an adapter is its "
                "base; set objective.reference: frozen"
            )
        if self.adapter.rank and chosen.reference_offload:
            raise ValueError(
                f"objective.reference_offload with adapter.rank {self.adapter.rank}: the reference of an adapter is "
                "its base, which the policy computes with; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _addresses_can_be_shown(self) -> TrainerConfig:
        without_password("api.url", [self.api.url])
        without_password("weights.servers", self.weights.servers)
        either(self.weights.servers, [], self.weights.servers_from, ("weights.servers", "weights.servers_from"))
        named = [url.rstrip("/") for url in self.weights.servers]
        twice = sorted({url for url in named if named.count(url) > 1})
        if twice:
            raise ValueError(
                f"weights.servers names {twice[0]} twice: two updates of one server at a time break each other; "
                "leave one out"
            )
        return self

    @model_validator(mode="after")
    def _objective_can_differ(self) -> TrainerConfig:
        chosen = self.objective
        sequence_ratio = chosen.row.ratio == "sequence"
        if sequence_ratio and chosen.old_logprobs == "recompute" and chosen.optimizer_steps_per_batch == 1:
            twin = token_twin(chosen.row) or "one with a ratio for each token"
            raise ValueError(
                f"objective.name {chosen.name} with one optimizer step per batch: every ratio is 1, so nothing is "
                f"clipped, and it differs from {twin} only by averaging the sampler's mismatch over a sequence; set "
                f"objective.optimizer_steps_per_batch to 2 or more, or objective.name to {twin}"
            )
        if chosen.optimizer_steps_per_batch > self.batch.groups:
            raise ValueError(
                f"objective.optimizer_steps_per_batch {chosen.optimizer_steps_per_batch} with {self.batch.groups} "
                f"groups in a batch: a group is never cut, so no more than {self.batch.groups} steps can be taken; set "
                f"it to {self.batch.groups} or less, or batch.rollouts to "
                f"{chosen.optimizer_steps_per_batch * self.batch.group_size} or more"
            )
        return self
