"""Scored groups: what the trainer trains on, and how one is read from the Atropos API's JSON and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from environments.common.errors import LivecodeError
from environments.common.group_bytes import MASKED
from environments.common.scored_group import GroupError, GroupFacts, RolloutFacts, facts, fault, short

COLUMNS = ("tokens", "masks", "scores", "inference_logprobs", "overrides")
"""Of a group on the wire: what has an entry for each rollout and is trained on."""


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
    try:
        named = facts(wire.get("group_overrides"), GroupFacts, "group_overrides")
    except GroupError as error:
        raise BatchError(f"group {_name(wire)}: {error}") from None
    try:
        return _parsed(wire, named, reading, judged)
    except GroupError as error:
        raise BatchError(f"group {named.group_id}: {error}") from None


def _name(wire: Mapping[str, Any]) -> str:
    """The group's id, where it has one."""
    named = wire.get("group_overrides")
    group_id = named.get("group_id") if isinstance(named, Mapping) else None
    return group_id if isinstance(group_id, str) and group_id else "?"


def _parsed(wire: Mapping[str, Any], named: GroupFacts, reading: Reading | None, judged: bool) -> ScoredGroup:
    columns = {name: _list(wire.get(name), name) for name in COLUMNS}
    size = len(columns["tokens"])
    for name, column in columns.items():
        if len(column) != size or not size:
            raise fault(name, f"{len(column)} entries", f"send one per rollout; tokens has {size}")
    prompt: list[int] = []
    rollouts = []
    for index in range(size):
        own, rollout = _parse_rollout(index, {name: column[index] for name, column in columns.items()}, judged=judged)
        if reading is not None:
            _check_fit(index, own, rollout, reading)
        prompt = prompt or own
        if own != prompt:
            raise fault(
                f"tokens[{index}]",
                f"a prompt of {len(own)} tokens",
                f"the prompt must equal rollout 0's ({len(prompt)} tokens): all rollouts of a group share it",
            )
        rollouts.append(rollout)
    return ScoredGroup(named.group_id, named.problem_id, named.temperature, named.context, prompt, rollouts, judged)


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
            raise BatchError(f"group {_name(whole)}: {fault('inference_logprobs', None, fix)}")
        whole["inference_logprobs"] = [None for _ in tokens]
    return whole


def _check_fit(index: int, prompt: list[int], rollout: Rollout, reading: Reading) -> None:
    """What the group's own fields do not show: whether this run can train on it."""
    tokens = prompt + rollout.completion
    if not rollout.completion:
        raise fault(f"masks[{index}]", "-100 everywhere", "send a completion of one token or more")
    if len(tokens) > reading.context:
        fix = f"the run's batch.context is {reading.context}: raise it, or lower the environment's"
        raise fault(f"tokens[{index}]", f"{len(tokens)} tokens", fix)
    if max(tokens) >= reading.vocabulary:
        place = next(place for place, token in enumerate(tokens) if token >= reading.vocabulary)
        fix = f"the model has {reading.vocabulary} token ids: does the environment use another tokenizer?"
        raise fault(f"tokens[{index}][{place}]", tokens[place], fix)


def _parse_rollout(index: int, row: Mapping[str, Any], *, judged: bool) -> tuple[list[int], Rollout]:
    """Prompt ids and rollout of one row of the wire's columns."""
    tokens = _array(row["tokens"], f"tokens[{index}]")
    if tokens.dtype.kind != "i" or tokens.size == 0 or tokens.min() < 0:
        raise fault(f"tokens[{index}]", row["tokens"], "send token ids: integers, 0 or more")
    start = _prompt_length(tokens, row["masks"], f"masks[{index}]")
    logprobs = _logprobs(row["inference_logprobs"], start, tokens.size, f"inference_logprobs[{index}]")
    score = row["scores"]
    if not _is_number(score) or not math.isfinite(score) or (judged and score not in (1.0, -1.0)):
        raise fault(f"scores[{index}]", score, "send +1.0 or -1.0; a rollout without a verdict is replaced, not scored")
    said = facts(row["overrides"], RolloutFacts, f"overrides[{index}]")
    if said.versions is not None:
        _check_versions(said.versions, tokens.size - start, f"overrides[{index}].versions")
    rollout = Rollout(
        tokens[start:].tolist(),
        logprobs[start:].astype(float).tolist(),
        float(score),
        said.set_advantage_to_zero,
        said.finish_reason,
        said.versions or [],
    )
    return tokens[:start].tolist(), rollout


def _prompt_length(tokens: np.ndarray, given: Any, field: str) -> int:
    """Tokens of the prompt, by the mask: -100 there, and the token's id on each one after it."""
    mask = _array(given, field)
    if mask.shape != tokens.shape:
        raise fault(field, f"{mask.size} entries", f"send one per token, {tokens.size}")
    trained = mask != MASKED
    start = int(trained.argmax()) if trained.any() else tokens.size
    if start == 0:
        raise fault(field, short(given), "the first token has no predecessor: mask the prompt with -100")
    if not np.array_equal(mask[start:], tokens[start:]):
        position = start + int((mask[start:] != tokens[start:]).argmax())
        raise fault(
            f"{field}[{position}]",
            given[position],
            f"after the prompt's -100 the mask holds the token ids without a gap, here {int(tokens[position])}",
        )
    return start


def _logprobs(given: Any, start: int, size: int, field: str) -> np.ndarray:
    """The sampler's log-probabilities, [size]; NaN where the sender did not say."""
    if given is None:
        return np.full(size, np.nan)
    logprobs = _array(given, field)
    if logprobs.shape != (size,) or logprobs.dtype.kind not in "if":
        raise fault(field, f"{logprobs.size} entries", f"send one per token, {size}")
    bad = ~np.isfinite(logprobs[start:]) | (logprobs[start:] > 0)
    if bad.any():
        position = start + int(bad.argmax())
        raise fault(
            f"{field}[{position}]",
            given[position],
            "a sampled token needs a finite log-probability <= 0; 1.0 is the filler for the prompt: check that "
            "mask and log-probabilities are aligned",
        )
    return logprobs


def _check_versions(spans: Sequence[tuple[int, int, int]], length: int, field: str) -> None:
    """Weight-version spans must cover 0..length in order."""
    reached = 0
    for _, start, end in spans:
        if not start == reached < end:
            raise fault(field, spans, "send [version, start, end] spans, the first from 0, without gaps")
        reached = end
    if reached != length:
        raise fault(field, spans, f"the spans must end at {length}, the number of sampled tokens")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise fault(field, short(value), "send a list; the environment of this project does")
    return value


def _array(value: Any, field: str) -> np.ndarray:
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
    raise fault(field, short(value), "send a flat list of numbers")
