"""The options of `atropos plan`: the files of a recipe, what its problems are like, a cluster, constants and prices."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from environments.common.settings import Section, Settings

GpuKind = Literal["a100", "h100", "h200", "h20", "b200", "cpu"]


class RecipeConfig(Section):
    """What of the files is replaced, to ask what would be; empty: as in the files."""

    steps: int | None = Field(None, ge=1, description="Training steps of the run.")
    rollouts: int | None = Field(None, ge=2, description="As the trainer's batch.rollouts.")
    group_size: int | None = Field(None, ge=2, description="As env.group_size.")
    max_staleness: int | None = Field(None, ge=0, description="As env.max_staleness.")
    max_concurrent_rollouts: int | None = Field(None, ge=1, description="As env.max_concurrent_rollouts.")
    max_new_tokens: int | None = Field(None, ge=1, description="As env.max_new_tokens.")
    max_num_seqs: int | None = Field(None, ge=1, description="As the servers' max_num_seqs.")
    tensor_parallel_size: int | None = Field(None, ge=1, description="As the servers' tensor_parallel_size.")
    evaluation_every: int | None = Field(None, ge=0, description="As evaluation.every.")
    checkpoint_every: int | None = Field(None, ge=0, description="As the trainer's checkpoint.every.")
    backend: Literal["disk", "nccl"] | None = Field(None, description="As weights.backend.")
    pause_while_training: bool | None = Field(None, description="As weights.pause_while_training.")


class WorkloadConfig(Section):
    """What answers and programs are like: of a run that was, or drawn from distributions."""

    records: Path | None = Field(
        None,
        description="environment.jsonl of a run: its groups' lengths and verdicts are drawn; empty: the distributions.",
    )
    prompt_tokens: int = Field(600, ge=1, description="Tokens of a prompt.")
    length_mean: float = Field(10_000.0, gt=0, description="Mean tokens of an answer before it is cut; log-normal.")
    length_sigma: float = Field(0.8, ge=0, description="Standard deviation of the logarithm of the length.")
    length_shared: float = Field(0.5, ge=0, le=1, description="Share of that variance which lies between problems.")
    pass_rate: float = Field(0.5, ge=0, le=1, description="Mean share of answers that pass.")
    pass_concentration: float = Field(
        1.0,
        gt=0,
        description="Of the beta distribution of pass rates; small: most problems are solved always or never.",
    )
    no_program: float = Field(0.0, ge=0, le=1, description="Share of answers without a program, among those that fail.")
    tests: int = Field(50, ge=1, description="Tests that a passing program runs.")
    tests_failed: float = Field(3.0, ge=1, description="Tests that a failing program runs.")
    test_s: float = Field(0.05, ge=0, description="Seconds of one test in the program itself.")
    evaluation_problems: int = Field(454, ge=0, description="Problems of an evaluation.")


class ClusterConfig(Section):
    """Machines and links. A gigabyte is 1e9 bytes."""

    trainer_gpu: GpuKind = Field("h100", description="Kind of GPU that trains.")
    trainer_gpus: int = Field(8, ge=1, description="GPUs that train.")
    server_gpu: GpuKind = Field("h100", description="Kind of GPU that generates.")
    server_gpus: int = Field(8, ge=1, description="GPUs that generate; the servers' tensor_parallel_size each.")
    verifier_places: int | None = Field(
        None,
        ge=1,
        description="Programs judged at a time; empty: env.verifier_workers (local), or env.verifier_concurrency.",
    )
    disk_write_gb_s: float = Field(2.0, gt=0, description="Gigabytes a second that the trainer writes to the disk.")
    disk_read_gb_s: float = Field(2.0, gt=0, description="Gigabytes a second that one server reads.")
    disk_shared_gb_s: float = Field(20.0, gt=0, description="Gigabytes a second that all servers read together.")
    nccl_gb_s: float = Field(25.0, gt=0, description="Gigabytes a second from the trainer to all servers by NCCL.")


class RatesConfig(Section):
    """Constants. What is measured replaces what the model computes; empty: computed."""

    mfu: float = Field(0.3, gt=0, le=1, description="Share of the peak that training reaches; assumed, see `budget`.")
    memory_efficiency: float = Field(0.7, gt=0, le=1, description="Share of a GPU's bandwidth that decoding reaches.")
    compute_efficiency: float = Field(0.5, gt=0, le=1, description="Share of the peak that prompts reach.")
    memory_utilization: float = Field(0.9, gt=0, le=1, description="As the servers' gpu_memory_utilization.")
    decode_overhead_s: float = Field(0.004, ge=0, description="Seconds of a decode step beside the GPU's own work.")
    decode_weights_s: float | None = Field(None, ge=0, description="Seconds of a decode step at least.")
    decode_sequence_s: float | None = Field(None, ge=0, description="Seconds of a decode step for each sequence.")
    decode_kv_token_s: float | None = Field(None, ge=0, description="Seconds of a decode step for each cached token.")
    prompt_token_s: float | None = Field(None, ge=0, description="Seconds of one prompt token.")
    cache_tokens: int | None = Field(None, ge=1, description="Tokens that one server's cache holds.")
    train_s: float = Field(0.0, ge=0, description="Seconds of a training step beside its tokens.")
    train_token_s: float | None = Field(None, ge=0, description="Seconds of a training step for each packed token.")
    publish_s: float = Field(0.0, ge=0, description="Seconds of a publication before the pause, beside the bytes.")
    pause_s: float = Field(0.5, ge=0, description="Seconds of the pause, beside the bytes.")
    weights_gb: float | None = Field(None, gt=0, description="Size of the published weights; empty: the model's.")
    checkpoint_s: float | None = Field(None, ge=0, description="Seconds of a checkpoint; empty: its bytes.")
    verify_call_s: float | None = Field(
        None, ge=0, description="Seconds of a verification beside its tests; empty: measured, by the verifier's kind."
    )
    verify_test_s: float | None = Field(
        None, ge=0, description="Seconds of a test beside the program; empty: measured, by the verifier's kind."
    )
    modal_starts_per_s: float = Field(30.0, gt=0, description="Containers that Modal starts in a second.")
    modal_burst: int = Field(2000, ge=1, description="Containers that Modal starts at once before that limit holds.")
    environment_rollout_s: float = Field(0.0, ge=0, description="Seconds of the environment's process for an answer.")
    environment_token_s: float = Field(
        3.2e-6, ge=0, description="Seconds of the environment's process for a token (benchmarks/results/load.json)."
    )
    api_post_token_s: float = Field(
        1.24e-7, ge=0, description="Seconds of the API server for a token that comes (benchmarks/results/api.json)."
    )
    api_lease_token_s: float = Field(
        1.64e-7, ge=0, description="Seconds of the API server for a token that goes (benchmarks/results/api.json)."
    )
    wire_bytes_token: float = Field(9.7, gt=0, description="Bytes of a token at the API, gzipped (the same file).")


class PricesConfig(Section):
    """In one currency; 0: not counted."""

    trainer_gpu_hour: float = Field(0.0, ge=0, description="One GPU that trains, an hour.")
    server_gpu_hour: float = Field(0.0, ge=0, description="One GPU that generates, an hour.")
    verifier_place_hour: float = Field(0.0, ge=0, description="One judge's core of a rented machine, an hour.")
    container_s: float = Field(
        1.532e-5, ge=0, description="modal: a container's second, one core and one GiB at Modal's prices of June 2026."
    )


class BoundsConfig(Section):
    """What `search` keeps to; empty: no bound."""

    gpus: int | None = Field(None, ge=2, description="GPUs in all; empty: as in cluster.")
    gpus_together: int = Field(8, ge=1, description="GPUs a node: GPUs are assigned in multiples of it.")
    places: list[int] = Field([], description="Numbers of verifier places to try; empty: as in cluster.")
    hours: float | None = Field(None, gt=0, description="Longest run.")
    money: float | None = Field(None, gt=0, description="Most that the run may cost.")
    money_hour: float | None = Field(None, gt=0, description="Most that an hour may cost.")


class PlanConfig(Settings):
    """What a recipe does on a cluster, simulated: steps an hour, idle parts, queues, staleness, money, bottleneck."""

    START: ClassVar[tuple[str, ...]] = ("trainer", "environment", "server", "search")
    COMMON: ClassVar[tuple[str, ...]] = (
        *("cluster.trainer_gpu", "cluster.trainer_gpus", "cluster.server_gpu", "cluster.server_gpus"),
        *("cluster.verifier_places", "workload.length_mean", "workload.pass_rate", "rates.mfu", "out"),
    )
    EXAMPLE: ClassVar[str] = "atropos plan --config configs/plan/48-b200.yaml --search fastest"

    trainer: Path = Field(description="The trainer's file.")
    environment: Path = Field(description="The environment's file.")
    server: Path = Field(description="The servers' file.")
    recipe: RecipeConfig = Field(default_factory=RecipeConfig, description="What of the files is replaced.")
    workload: WorkloadConfig = Field(default_factory=WorkloadConfig, description="Answers and programs.")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="Machines and links.")
    rates: RatesConfig = Field(default_factory=RatesConfig, description="Constants.")
    prices: PricesConfig = Field(default_factory=PricesConfig, description="Prices.")
    bounds: BoundsConfig = Field(default_factory=BoundsConfig, description="Bounds of a search.")
    search: Literal["none", "fastest", "cheapest"] = Field(
        "none", description="Try divisions of the GPUs and sizes of the verifier, and show the best ones."
    )
    simulated_steps: int = Field(40, ge=2, description="Steps that are simulated.")
    first_steps: int = Field(5, ge=0, description="Of them the first ones, which no figure counts.")
    seed: int = Field(0, ge=0, description="Seed of the drawn answers.")
    bottleneck: bool = Field(True, description="Simulate each part a quarter faster as well, to name the bottleneck.")
    memory: bool = Field(True, description="Check that a step fits the training GPUs' memory; it loads torch.")
    out: Path | None = Field(None, description="JSON file for all figures.")

    @model_validator(mode="after")
    def _something_is_counted(self) -> PlanConfig:
        if self.first_steps >= self.simulated_steps:
            raise ValueError(
                f"first_steps {self.first_steps} >= simulated_steps {self.simulated_steps}: no step would be counted; "
                f"set first_steps to {self.simulated_steps - 1} or less"
            )
        return self
