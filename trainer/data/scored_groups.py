"""Scored groups: what the trainer trains on, and how one is read from the Atropos API's JSON and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from environments.common.errors import LivecodeError

PROMPT_MASK = -100
"""Entry of `masks` on the prompt; on sampled tokens the mask holds the token id itself."""

FINISH_REASONS = ("stop", "length")
"""How a rollout may end. "abort" is unfinished: it is resubmitted or discarded, never scored."""


class BatchError(LivecodeError):
    """A group that cannot be trained on, or a batch that cannot be had; see trainer/data/api_client.py."""


@dataclass(frozen=True)
class Rollout:
    """One sampled sequence."""

    completion: list[int]
    """Sampled token ids, as sampled: never re-tokenised, the end-of-sequence token included."""
    logprobs: list[float]
    """The sampler's log-probabilities, one per completion token, <= 0; NaN where the sender did not say."""
    score: float
    overlong: bool
    """Truncated: its advantage is set to zero."""
    finish_reason: str
    versions: list[tuple[int, int, int]]
    """(weight version, start, end) spans that cover the completion; none where the sender did not say."""


@dataclass(frozen=True)
class ScoredGroup:
    """All rollouts of one problem."""

    group_id: str
    problem_id: str
    temperature: float
    context: int
    prompt: list[int]
    rollouts: list[Rollout]
    judged: bool = True
    """Whether the scores are verdicts, +1 and -1; else they are what another environment gives, any numbers."""

    @property
    def oldest_version(self) -> int | None:
        """Weight version of the oldest trained token; None for a group without a trained token."""
        return min((version for rollout in self.rollouts for version, _, _ in rollout.versions), default=None)


def staleness(group: ScoredGroup, step: int) -> int:
    """Batches, each of which makes one weight version, between the oldest trained token of `group` and `step`.

    0 without a trained token.
    """
    oldest = group.oldest_version
    return 0 if oldest is None else step - oldest


@dataclass(frozen=True)
class Reading:
    """What a group's sender may leave out, as environments written for plain Atropos do, and what must fit the run.

    Left out, a group is of the run's temperature and context and named by the API server, its rollouts have stopped,
    are not overlong and of unknown weights, and its scores may be any numbers.
    """

    temperature: float
    """The sampler's temperature."""
    context: int
    """Longest prompt and completion, in tokens."""
    vocabulary: int
    """Token ids are below it."""
    recompute: bool
    """Whether log-probabilities are recomputed, so that the sampler's may be missing."""


def parse_group(wire: Mapping[str, Any], reading: Reading | None = None) -> ScoredGroup:
    """One scored group from its JSON object (design: tokens, masks, scores, inference_logprobs, overrides,
    group_overrides). Raises BatchError with the group, the field, the value and the fix.

    reading: what is taken for fields that are missing; None: every field has to be there.
    """
    judged = reading is None or "problem_id" in (wire.get("group_overrides") or ())
    if reading is not None:
        wire = _completed(wire, reading)
    named = _mapping(wire.get("group_overrides"), "group_overrides", "?")
    group_id = named.get("group_id")
    if not isinstance(group_id, str) or not group_id:
        raise _error("?", "group_overrides.group_id", group_id, "the environment gives each group a UUID string")
    problem_id = named.get("problem_id")
    if not isinstance(problem_id, str) or not problem_id:
        raise _error(group_id, "group_overrides.problem_id", problem_id, "send the problem's id as a string")
    temperature = named.get("temperature")
    if not _is_number(temperature) or not 0 < temperature < math.inf:
        raise _error(
            group_id,
            "group_overrides.temperature",
            temperature,
            "send the sampling temperature, above 0: the trainer divides its logits by it",
        )
    context = named.get("context")
    if not isinstance(context, int) or isinstance(context, bool) or context < 1:
        raise _error(group_id, "group_overrides.context", context, "send the context length in tokens")
    columns = {
        name: _list(wire.get(name), name, group_id)
        for name in ("tokens", "masks", "scores", "inference_logprobs", "overrides")
    }
    size = len(columns["tokens"])
    for name, column in columns.items():
        if len(column) != size or not size:
            raise _error(group_id, name, f"{len(column)} entries", f"send one per rollout; tokens has {size}")
    prompt: list[int] | None = None
    rollouts = []
    for index in range(size):
        row = {name: column[index] for name, column in columns.items()}
        own, rollout = _parse_rollout(group_id, index, row, judged=judged)
        if reading is not None:
            _check_fit(group_id, index, own, rollout, reading)
        if prompt is None:
            prompt = own
        if own != prompt:
            raise _error(
                group_id,
                f"tokens[{index}]",
                f"a prompt of {len(own)} tokens",
                f"the prompt must equal rollout 0's ({len(prompt)} tokens): all rollouts of a group share it",
            )
        rollouts.append(rollout)
    return ScoredGroup(group_id, problem_id, float(temperature), context, prompt or [], rollouts, judged)


def _completed(wire: Mapping[str, Any], reading: Reading) -> Mapping[str, Any]:
    """The group with the run's values where its sender gave none."""
    whole = dict(wire)
    named, tokens = wire.get("group_overrides"), wire.get("tokens")
    named = {} if named is None else named
    if not isinstance(named, Mapping) or not isinstance(tokens, list):
        return wire
    given = {name: value for name, value in named.items() if value is not None}
    whole["group_overrides"] = {
        "group_id": wire.get("api_group_id"),
        "problem_id": f"environment {'?' if wire.get('env_id') is None else wire['env_id']}",
        "temperature": reading.temperature,
        "context": reading.context,
    } | given
    overrides = wire.get("overrides") or [{} for _ in tokens]
    if isinstance(overrides, list):
        defaults = {"set_advantage_to_zero": False, "finish_reason": "stop", "versions": None}
        whole["overrides"] = [defaults | row if isinstance(row, dict) else row for row in overrides]
    if not wire.get("inference_logprobs"):  # Atropos' own base class sends an empty list where it has none
        if not reading.recompute:
            fix = "let the environment send the sampler's, or set objective.old_logprobs: recompute"
            raise _error(str(whole["group_overrides"]["group_id"]), "inference_logprobs", None, fix)
        whole["inference_logprobs"] = [None for _ in tokens]
    return whole


def _check_fit(group_id: str, index: int, prompt: list[int], rollout: Rollout, reading: Reading) -> None:
    """What the group's own fields do not show: whether this run can train on it."""
    tokens = prompt + rollout.completion
    if not rollout.completion:
        raise _error(group_id, f"masks[{index}]", "-100 everywhere", "send a completion of one token or more")
    if len(tokens) > reading.context:
        fix = f"the run's batch.context is {reading.context}: raise it, or lower the environment's"
        raise _error(group_id, f"tokens[{index}]", f"{len(tokens)} tokens", fix)
    if max(tokens) >= reading.vocabulary:
        place = next(place for place, token in enumerate(tokens) if token >= reading.vocabulary)
        fix = f"the model has {reading.vocabulary} token ids: does the environment use another tokenizer?"
        raise _error(group_id, f"tokens[{index}][{place}]", tokens[place], fix)


def _parse_rollout(group_id: str, index: int, row: Mapping[str, Any], *, judged: bool) -> tuple[list[int], Rollout]:
    """Prompt ids and rollout of one row of the wire's columns."""

    def fail(field: str, value: object, fix: str) -> BatchError:
        return _error(group_id, field, value, fix)

    tokens = _array(row["tokens"], f"tokens[{index}]", group_id)
    if tokens.dtype.kind != "i" or tokens.size == 0 or tokens.min() < 0:
        raise fail(f"tokens[{index}]", _short(row["tokens"]), "send token ids: integers, 0 or more")
    mask = _array(row["masks"], f"masks[{index}]", group_id)
    if mask.shape != tokens.shape:
        raise fail(f"masks[{index}]", f"{mask.size} entries", f"send one per token, {tokens.size}")
    trained = mask != PROMPT_MASK
    start = int(trained.argmax()) if trained.any() else tokens.size
    if start == 0:
        raise fail(
            f"masks[{index}]",
            _short(row["masks"]),
            "the first token has no predecessor: mask the prompt with -100",
        )
    if not np.array_equal(mask[start:], tokens[start:]):
        position = start + int((mask[start:] != tokens[start:]).argmax())
        raise fail(
            f"masks[{index}][{position}]",
            row["masks"][position],
            f"after the prompt's -100 the mask holds the token ids without a gap, here {int(tokens[position])}",
        )
    unknown = row["inference_logprobs"] is None
    if unknown:
        logprobs = np.full(tokens.shape, np.nan)
    else:
        logprobs = _array(row["inference_logprobs"], f"inference_logprobs[{index}]", group_id)
    if logprobs.shape != tokens.shape or logprobs.dtype.kind not in "if":
        raise fail(f"inference_logprobs[{index}]", f"{logprobs.size} entries", f"send one per token, {tokens.size}")
    bad = ~np.isfinite(logprobs[start:]) | (logprobs[start:] > 0)
    if bad.any() and not unknown:
        position = start + int(bad.argmax())
        raise fail(
            f"inference_logprobs[{index}][{position}]",
            row["inference_logprobs"][position],
            "a sampled token needs a finite log-probability <= 0; 1.0 is the filler for the prompt: check that "
            "mask and log-probabilities are aligned",
        )
    score = row["scores"]
    if not _is_number(score) or not math.isfinite(score) or (judged and score not in (1.0, -1.0)):
        raise fail(
            f"scores[{index}]",
            score,
            "send +1.0 or -1.0; a rollout without a verdict is replaced, not scored",
        )
    override = _mapping(row["overrides"], f"overrides[{index}]", group_id)
    overlong = override.get("set_advantage_to_zero")
    if not isinstance(overlong, bool):
        raise fail(
            f"overrides[{index}].set_advantage_to_zero",
            overlong,
            "send true for a truncated rollout, else false",
        )
    finish_reason = override.get("finish_reason")
    if finish_reason not in FINISH_REASONS:
        raise fail(
            f"overrides[{index}].finish_reason",
            finish_reason,
            "send stop or length; an aborted rollout is unfinished",
        )
    said, field = override.get("versions", ()), f"overrides[{index}].versions"
    versions = [] if said is None else _parse_versions(said, tokens.size - start, field, group_id)
    rollout = Rollout(
        tokens[start:].tolist(),
        logprobs[start:].astype(float).tolist(),
        float(score),
        overlong,
        finish_reason,
        versions,
    )
    return tokens[:start].tolist(), rollout


def _parse_versions(value: Any, length: int, field: str, group_id: str) -> list[tuple[int, int, int]]:
    """Weight-version spans, which must cover 0..length in order."""
    spans: list[tuple[int, int, int]] = []
    reached = 0
    for entry in _list(value, field, group_id):
        if not (
            isinstance(entry, list | tuple)
            and len(entry) == 3
            and all(isinstance(part, int) and not isinstance(part, bool) for part in entry)
            and entry[0] >= 0
            and entry[1] == reached < entry[2]
        ):
            raise _error(
                group_id,
                field,
                _short(value),
                "send [version, start, end] spans, the first from 0, without gaps",
            )
        reached = entry[2]
        spans.append((entry[0], entry[1], entry[2]))
    if reached != length:
        raise _error(group_id, field, _short(value), f"the spans must end at {length}, the number of sampled tokens")
    return spans


def _error(group_id: str, field: str, value: object, fix: str) -> BatchError:
    return BatchError(f"group {group_id}: {field} is {value!r}: {fix}")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _mapping(value: Any, field: str, group_id: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _error(group_id, field, _short(value), "send an object; the environment of this project does")
    return value


def _list(value: Any, field: str, group_id: str) -> list[Any]:
    if not isinstance(value, list):
        raise _error(group_id, field, _short(value), "send a list; the environment of this project does")
    return value


def _array(value: Any, field: str, group_id: str) -> np.ndarray:
    """A flat numeric array, or one of a JSON list; None and nested lists are refused."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, list):
        try:
            array = np.asarray(value)
        except (ValueError, OverflowError):
            array = np.empty((0, 0))
        if array.ndim == 1 and (array.dtype.kind in "if" or array.size == 0):
            return array
    raise _error(group_id, field, _short(value), "send a flat list of numbers")
