"""A cluster in seconds: what each part of the loop takes, computed from shapes and data sheets, or measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from environments.common.settings import ConfigError
from environments.tools.plan.config import ClusterConfig, PlanConfig, RatesConfig
from environments.tools.plan.recipe import Files, Recipe, model_shape
from environments.tools.plan.servers import Speed
from trainer.planning.flops import GPUS, Gpu, block_weights, flops, head_dim

GIB, GB = 2**30, 1e9
BANDWIDTH = {"a100": 2.039e12, "h100": 3.35e12, "h200": 4.8e12, "b200": 8.0e12, "h20": 4.0e12}
"""Bytes a second of a GPU's memory, from NVIDIA's data sheets; H20 as its sellers give it."""
KINDS = {**GPUS, "h20": Gpu(95.6, 148e12)}
_ADAM = 12
"""Bytes of one parameter in a checkpoint."""
VERIFIERS = {"local": (0.0085, 0.006), "http": (0.0085, 0.006), "modal": (3.0, 0.041)}
"""(seconds of a call, seconds of a test beside the program) by kind: one program on two cores took 14.8 to 16.3 ms, a
test 6 ms; in a container inside gVisor calls of 1 to 100 tests took 2.3 to 6.6 s, a test 41 ms
(benchmarks/results/verification.json)."""


@dataclass(frozen=True)
class Answer:
    """One answer: its tokens, whether it was cut, and the tests that its program runs; None: there is no program."""

    length: int
    overlong: bool
    passed: bool
    tests: float | None


@dataclass(frozen=True)
class Rates:
    """Seconds of every part."""

    speed: Speed
    servers: int
    train_s: float
    train_token_s: float | None
    train_flops_s: float
    """Operations a second of all training GPUs."""
    shape: Any
    recompute_old: bool
    publish_s: float
    """Of a publication before the pause."""
    pause_s: float
    checkpoint_s: float
    verify_call_s: float
    verify_test_s: float
    starts_per_s: float | None
    burst: int
    environment_rollout_s: float
    environment_token_s: float
    api_post_token_s: float
    api_lease_token_s: float

    def verify(self, answer: Answer, test_s: float) -> float:
        """Seconds of a place that one program takes."""
        assert answer.tests is not None
        return self.verify_call_s + answer.tests * (self.verify_test_s + test_s)

    def train(self, groups: Sequence[tuple[int, Sequence[int]]]) -> tuple[float, float]:
        """(seconds of old log-probabilities, of training) for groups of (prompt tokens, lengths of the answers)."""
        tokens = sum(prompt + sum(lengths) for prompt, lengths in groups)
        if self.train_token_s is not None:
            return 0.0, self.train_s + tokens * self.train_token_s
        trained = sum(sum(lengths) for _, lengths in groups)
        pairs = sum(_pairs(prompt, lengths) for prompt, lengths in groups)
        step = flops(self.shape, tokens, pairs, trained, backward=True) / self.train_flops_s
        old = flops(self.shape, tokens, pairs, trained, backward=False) / self.train_flops_s
        return (old if self.recompute_old else 0.0), self.train_s + step


def _pairs(prompt: int, lengths: Sequence[int]) -> int:
    return prompt * (prompt + 1) // 2 + sum(length * prompt + length * (length + 1) // 2 for length in lengths)


def parameters(shape: Any) -> int:
    """Weights of a dense decoder, norms left out."""
    embeddings = 1 if getattr(shape, "tie_word_embeddings", False) else 2
    return int(shape.num_hidden_layers * block_weights(shape) + embeddings * shape.vocab_size * shape.hidden_size)


def rates(config: PlanConfig, files: Files, recipe: Recipe) -> Rates:
    """What the parts take; ConfigError where a server cannot hold the model, or no GPU is left for one."""
    cluster, asked = config.cluster, config.rates
    shape = model_shape(files.trainer.model)
    size = asked.weights_gb * GB if asked.weights_gb else float(parameters(shape) * recipe.bytes_weight)
    servers = cluster.server_gpus // recipe.tensor_parallel
    if not servers:
        raise ConfigError(
            f"cluster.server_gpus {cluster.server_gpus} < tensor_parallel_size {recipe.tensor_parallel}: no server "
            "could start; raise the first or lower the second"
        )
    if cluster.trainer_gpu == "cpu" and asked.train_token_s is None:
        raise ConfigError("cluster.trainer_gpu cpu: a CPU's speed is not known; set rates.train_token_s")
    call, test = VERIFIERS.get(recipe.verifier, VERIFIERS["local"])
    modal = recipe.verifier == "modal"
    peak = 0.0 if cluster.trainer_gpu == "cpu" else KINDS[cluster.trainer_gpu].bf16_flops
    return Rates(
        speed=_speed(cluster, asked, recipe, shape),
        servers=servers,
        train_s=asked.train_s,
        train_token_s=asked.train_token_s,
        train_flops_s=peak * cluster.trainer_gpus * asked.mfu,
        shape=shape,
        recompute_old=recipe.recompute_old,
        publish_s=asked.publish_s + (size / cluster.disk_write_gb_s / GB if recipe.backend == "disk" else 0.0),
        pause_s=asked.pause_s + _transfer(cluster, recipe, size, servers),
        checkpoint_s=(
            parameters(shape) * _ADAM / cluster.disk_write_gb_s / GB
            if asked.checkpoint_s is None
            else asked.checkpoint_s
        ),
        verify_call_s=call if asked.verify_call_s is None else asked.verify_call_s,
        verify_test_s=test if asked.verify_test_s is None else asked.verify_test_s,
        starts_per_s=asked.modal_starts_per_s if modal else None,
        burst=asked.modal_burst if modal else 1,
        environment_rollout_s=asked.environment_rollout_s,
        environment_token_s=asked.environment_token_s,
        api_post_token_s=asked.api_post_token_s,
        api_lease_token_s=asked.api_lease_token_s,
    )


def _transfer(cluster: ClusterConfig, recipe: Recipe, size: float, servers: int) -> float:
    """Seconds in which the weights reach all servers while they are paused."""
    if recipe.backend == "nccl":
        return size / cluster.nccl_gb_s / GB
    return size / min(cluster.disk_read_gb_s, cluster.disk_shared_gb_s / servers) / GB


def _speed(cluster: ClusterConfig, asked: RatesConfig, recipe: Recipe, shape: Any) -> Speed:
    """A server by its roofline; what is measured replaces it."""
    measured = (asked.decode_weights_s, asked.decode_sequence_s, asked.decode_kv_token_s, asked.prompt_token_s)
    if cluster.server_gpu == "cpu":
        if None in measured or asked.cache_tokens is None:
            raise ConfigError(
                "cluster.server_gpu cpu: a CPU's speed is not known; set rates.decode_weights_s, decode_sequence_s, "
                "decode_kv_token_s, prompt_token_s and cache_tokens"
            )
        computed, cache = (0.0, 0.0, 0.0, 0.0), float(asked.cache_tokens)
    else:
        kind, many, count = KINDS[cluster.server_gpu], recipe.tensor_parallel, parameters(shape)
        band = BANDWIDTH[cluster.server_gpu] * asked.memory_efficiency * many
        done = kind.bf16_flops * asked.compute_efficiency * many
        row = 2 * 2 * shape.num_hidden_layers * prod((shape.num_key_value_heads, head_dim(shape)))
        room = kind.memory_gib * GIB * asked.memory_utilization * many - 2 * count - 2 * GIB * many
        if room <= 0 and asked.cache_tokens is None:
            raise ConfigError(
                f"cluster.server_gpu {cluster.server_gpu}: {many} of them do not hold {2 * count / GIB:.0f} GiB of "
                "weights; set recipe.tensor_parallel_size"
            )
        cache = room / row if asked.cache_tokens is None else float(asked.cache_tokens)
        computed = (2 * count / band, 2 * count / done, row / band, 2 * count / done)
    weights, sequence, token, prompt = (
        own if given is None else given for given, own in zip(measured, computed, strict=True)
    )
    return Speed(weights, sequence, token, asked.decode_overhead_s, prompt, cache, recipe.max_num_seqs)
