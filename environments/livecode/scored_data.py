"""A judged group as the Atropos API takes it."""

from __future__ import annotations

from typing import Any

from environments.common.group_bytes import MASKED
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
            {
                "set_advantage_to_zero": rollout.overlong,
                "finish_reason": rollout.sample.finish_reason,
                "versions": [list(span) for span in rollout.sample.versions],
                "verdict": rollout.status,
            }
            for rollout in group.rollouts
        ],
        "group_overrides": {
            "group_id": group.group_id,
            "problem_id": group.problem.id,
            "temperature": temperature,
            "context": context,
        },
    }
