"""Does a server compute with the published weights? Its log-probabilities say it, not a status.

A status can be wrong in silence: vLLM 0.32 on a CPU keeps a packed copy of a tied output head through an update, a
prefix cache that was not cleared holds the old weights' keys, and a name that the server does not know loads nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from trainer.data.scored_groups import Rollout, ScoredGroup
from trainer.model.packing import pack
from trainer.model.policy import Policy
from trainer.parallel import broadcast, together
from trainer.weight_sync.vllm_routes import PROBE_TOKENS, Probe, WeightServer, WeightSyncError

PROMPT_TOKENS = 48
_SPREAD = 7919  # a prime: ids from all over the vocabulary


def probe_prompt(vocabulary: int, context: int) -> list[int]:
    """The ids after which servers are probed: always the same, so that a cache with old keys is found out too."""
    length = max(1, min(PROMPT_TOKENS, context - PROBE_TOKENS))
    return [(3 + _SPREAD * place) % vocabulary for place in range(length)]


def probe(
    server: str,
    prompt: Sequence[int],
    *,
    tokens: int = PROBE_TOKENS,
    temperature: float = 0.0,
    seed: int | None = None,
    deadline_s: float = 120.0,
) -> Probe:
    """Have a server sample `tokens` tokens after a prompt; log-probabilities are those after the temperature.

    With temperature 0 (greedy) vLLM gives them at temperature 1. Raises WeightSyncError (phase "probe").
    """
    return WeightServer(server, deadline_s).probe(prompt, tokens=tokens, temperature=temperature, seed=seed)


def verify_sync(
    server: str,
    prompt: Sequence[int],
    logprobs: Callable[[list[int], list[int]], Sequence[float]],
    *,
    version: int | None = None,
    tolerance: float = 2e-3,
    tokens: int = PROBE_TOKENS,
) -> float:
    """Largest difference between the server's log-probabilities and the trainer's on greedy tokens after `prompt`.

    Args:
        logprobs: the trainer's own at temperature 1: (prompt ids, sampled ids) -> one number per sampled id.
        version: the weight version that the tokens must carry; None: any.
        tolerance: largest difference allowed; 2e-3 fits fp32 on both sides.

    Raises WeightSyncError (phase "verify") when the difference exceeds the tolerance or is not a number.
    """
    sampled = probe(server, prompt, tokens=tokens)
    own = logprobs(list(prompt), sampled.tokens)
    return compare(server, sampled, own, Tolerance(largest=tolerance), version).largest


@dataclass(frozen=True)
class Tolerance:
    """How far a server's log-probabilities may be from the trainer's, in nats: of one token, and on average."""

    largest: float = math.inf
    mean: float = math.inf


EXACT = Tolerance(largest=2e-3)
"""fp32 on both sides: another order of summation is all that differs."""
ROUNDED = Tolerance(mean=0.15)
"""bf16 on either side. A single token may be off by 0.3 without a fault, about one in a hundred by more than 0.2, so a
bound for the largest of many would end sound runs; the mean is about 0.04. The bound is the alignment gate's. It finds
wrong weights, not one small step that is missing: for that watch `sync_difference` grow from one sync to the next."""


@dataclass(frozen=True)
class Difference:
    """|trainer - server| in nats over a probe's tokens."""

    mean: float
    largest: float


def compare(
    server: str, sampled: Probe, own: Sequence[float], tolerance: Tolerance, version: int | None = None
) -> Difference:
    """The difference; WeightSyncError (phase "verify") for another version, or where it exceeds the tolerance."""
    versions = {span[0] for span in sampled.versions}
    if version is not None and versions != {str(version)}:
        raise WeightSyncError(server, "verify", f"tokens carry weight version {sorted(versions)}, expected {version}")
    apart = [abs(a - b) for a, b in zip(sampled.logprobs, own, strict=True)]
    found = Difference(sum(apart) / len(apart), max(apart))
    for name, value, bound in (("", found.largest, tolerance.largest), ("on average ", found.mean, tolerance.mean)):
        # An infinite bound is none; else also true for NaN, which max() may have passed over.
        if bound < math.inf and not (value <= bound and all(map(math.isfinite, apart))):
            raise WeightSyncError(
                server,
                "verify",
                f"log-probabilities differ {name}by {value:.4g} from the trainer's, allowed are {bound:g}: the server "
                "computes with other weights than were published, with an old cache, or in another way",
            )
    return found


def policy_logprobs(prompt: Sequence[int], probes: Mapping[str, Probe], policy: Policy) -> dict[str, list[float]]:
    """The policy's log-probabilities at temperature 1 of what each server sampled. A collective: equal on all ranks."""
    servers = sorted(probes)
    rollouts = [Rollout(probes[server].tokens, probes[server].logprobs, 0.0, False, "length", []) for server in servers]
    group = ScoredGroup("probe", "probe", 1.0, len(prompt) + PROBE_TOKENS, list(prompt), rollouts)
    longest = len(prompt) + sum(len(rollout.completion) for rollout in rollouts)
    # Every rank computes the whole of it: few tokens, and FSDP wants every rank to take part.
    (micro,) = pack([group], [[0.0] * len(rollouts)], longest, device=policy.device)
    with torch.no_grad():
        own = policy.logprobs(micro)[0].cpu()
    sequence = micro.sequence.cpu()
    return {servers[number]: own[sequence == place].tolist() for place, (_, number) in enumerate(micro.origin)}


def tolerance_for(dtype: str, device: torch.device) -> Tolerance:
    """What fits the served type and the trainer's: fp32 served beside a trainer that computes in fp32, or not."""
    return EXACT if dtype == "float32" and device.type == "cpu" else ROUNDED


def check_probes(
    prompt: Sequence[int],
    probes: Mapping[str, Probe] | None,
    policy: Policy,
    dtype: str,
    version: int,
) -> Difference | None:
    """Compares what every server sampled after `prompt` with the policy; the worst of them. A collective.

    probes: on rank 0. Returns None without any. Raises WeightSyncError (phase "verify") on every rank.
    """
    every = broadcast(probes, policy.parallel)
    if not every:
        return None
    own = policy_logprobs(prompt, every, policy)
    tolerance = tolerance_for(dtype, policy.device)
    with together(policy.parallel):  # equal but for rounding: not one rank alone may find it too much
        found = [compare(server, sampled, own[server], tolerance, version) for server, sampled in every.items()]
    return Difference(max(one.mean for one in found), max(one.largest for one in found))
