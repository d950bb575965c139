"""The alignment gate: does the trainer compute the log-probabilities that the sampler reported for the same weights?

Checked once, on the first rollouts that were sampled with the weights the trainer holds. A wrong temperature, a
shifted label or other weights look like a noisy run for days; here they end it before the first update.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from environments.common.errors import LivecodeError
from trainer.data.scored_groups import Rollout, ScoredGroup
from trainer.model.packing import MicroBatch
from trainer.model.policy import Policy
from trainer.parallel import Parallel, all_reduce_sums

log = logging.getLogger(__name__)

WARN, REFUSE = 0.08, 0.15
"""Mean |trainer - sampler| in nats; bf16 against bf16 is about half the first."""
NOISE = 0.01
"""Below this nothing can fit better in earnest."""
LEAST_TOKENS = 32
ENOUGH_TOKENS = 512
"""The mean of this many separates 0.01 nats from 0.15; more would only take time before the first step."""


class Misaligned(LivecodeError, RuntimeError):
    """The trainer's log-probabilities are not the sampler's; the message says what fits better, and what to check."""


@dataclass(frozen=True)
class Alignment:
    """Mean |trainer - sampler| in nats over `tokens` tokens; the others are the same for a wrong reading of them."""

    tokens: int
    distance: float
    token_earlier: float
    token_later: float
    other_temperature: float

    def check(self) -> None:
        """Raises Misaligned above REFUSE, or where a wrong reading of the tokens fits better; warns above WARN.

        What is not a number is refused too: NaN is in no comparison larger than a limit.
        """
        if not all(map(math.isfinite, (self.distance, self.token_earlier, self.token_later, self.other_temperature))):
            raise Misaligned(
                f"the difference of trainer and sampler is {self.distance} nats a token, "
                f"{self.other_temperature} at another temperature: the trainer's log-probabilities are not finite; "
                "check the model's weights, and that its dtype holds them"
            )
        if self.distance > NOISE:
            rivals = {
                "the token before": self.token_earlier,
                "the token after": self.token_later,
                "another temperature": self.other_temperature,
            }
            best = min(rivals, key=lambda name: rivals[name])
            if rivals[best] < self.distance:
                raise Misaligned(
                    f"the sampler's log-probabilities fit those of {best} better (mean difference "
                    f"{rivals[best]:.3f} nats) than their own ({self.distance:.3f}): check the temperature that vLLM "
                    "uses, --logprobs-mode processed_logprobs, and who else writes the token ids"
                )
        if self.distance > REFUSE:
            raise Misaligned(
                f"trainer and sampler differ by {self.distance:.3f} nats a token on the same weights (limit {REFUSE}): "
                "check that vLLM serves this model, in which dtype, with top_p 1 and top_k off"
            )
        if self.distance > WARN:
            log.warning("trainer and sampler differ by %.3f nats a token; above %.2f is refused", self.distance, REFUSE)


def _sampled_by(version: int, rollout: Rollout) -> bool:
    """Whether all of it is known to be sampled by these weights, with its log-probabilities."""
    versions = {span[0] for span in rollout.versions}
    return versions == {version} and not math.isnan(rollout.logprobs[0])


def enough(groups: Sequence[ScoredGroup], version: int) -> list[ScoredGroup]:
    """The first groups with ENOUGH_TOKENS tokens sampled by `version`, in all; every group where there are fewer."""
    tokens = 0
    for count, group in enumerate(groups, 1):
        tokens += sum(len(rollout.completion) for rollout in group.rollouts if _sampled_by(version, rollout))
        if tokens >= ENOUGH_TOKENS:
            return list(groups[:count])
    return list(groups)


def measure(
    micro: MicroBatch, groups: Sequence[ScoredGroup], version: int, policy: Policy, parallel: Parallel
) -> Alignment | None:
    """The alignment over all ranks' micro-batches; None with fewer than LEAST_TOKENS tokens sampled by `version`.

    micro: this rank's, whose `origin` counts in `groups`. Costs one forward and the head twice; a collective.
    """
    fresh = torch.tensor([_sampled_by(version, groups[g].rollouts[r]) for g, r in micro.origin], dtype=torch.bool).to(
        micro.sequence.device
    )[micro.sequence]
    other = torch.where(micro.temperature == 1, 0.7, 1.0).to(micro.temperature)
    with torch.no_grad():
        ours, tempered = policy.logprobs_at(micro, [micro.temperature, other])
    sampler = micro.sampler_logprob
    pairs = fresh[1:] & (micro.sequence[1:] == micro.sequence[:-1])

    def distance(trainer: Tensor, reported: Tensor, mask: Tensor) -> float:
        return float((trainer - reported).abs()[mask].double().sum())

    sums = all_reduce_sums(
        {
            "tokens": int(fresh.sum()),
            "pairs": int(pairs.sum()),
            "distance": distance(ours, sampler, fresh),
            "earlier": distance(ours[:-1], sampler[1:], pairs),
            "later": distance(ours[1:], sampler[:-1], pairs),
            "tempered": distance(tempered, sampler, fresh),
        },
        parallel,
    )
    tokens, between = int(sums["tokens"]), int(sums["pairs"])
    if tokens < LEAST_TOKENS or not between:
        return None
    return Alignment(
        tokens,
        sums["distance"] / tokens,
        sums["earlier"] / between,
        sums["later"] / between,
        sums["tempered"] / tokens,
    )
