"""A judged group as the Atropos API takes it."""

from __future__ import annotations

from typing import Any

import msgspec

from environments.common.group_bytes import MASKED
from environments.common.scored_group import GroupFacts, RolloutFacts
from environments.livecode.pipeline import JudgedGroup

_PROMPT_LOGPROB = 1.0  # Atropos' filler where nothing was sampled


def as_scored_data(group: JudgedGroup, *, temperature: float, context: int) -> dict[str, Any]:
    """The group in Atropos' form: prompt + sampled ids, -100 masks and filler log-probabilities on the prompt.

    Facts that the trainer needs ride in `overrides` and `group_overrides`, since the API drops unknown keys.
    """
    prompt, samples = group.prompt.ids, [rollout.sample for rollout in group.rollouts]
    return {
        "tokens": [[*prompt, *sample.ids] for sample in samples],
        "masks": [[MASKED] * len(prompt) + list(sample.ids) for sample in samples],
        "scores": group.scores,
        "inference_logprobs": [[_PROMPT_LOGPROB] * len(prompt) + list(sample.logprobs) for sample in samples],
        "overrides": [
            msgspec.to_builtins(
                RolloutFacts(
                    set_advantage_to_zero=rollout.overlong,
                    finish_reason="length" if rollout.overlong else "stop",
                    versions=rollout.sample.versions,
                    verdict=rollout.status,
                )
            )
            for rollout in group.rollouts
        ],
        "group_overrides": msgspec.to_builtins(
            GroupFacts(group_id=group.group_id, problem_id=group.problem.id, temperature=temperature, context=context)
        ),
    }
