"""What vLLM's token routes answer, decoded straight into the few fields that are needed.

An answer of 40k tokens has a JSON object for each of them: as dicts they cost the event loop twenty times as long.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from environments.common.http_clients import is_busy

GENERATE = "/inference/v1/generate"
COMPLETIONS = "/v1/completions"
NOT_A_LOGPROB = -9999.0  # vLLM writes NaN and -inf as this number


class Logprob(msgspec.Struct, gc=False):
    """One sampled token; the other candidates stay as they came."""

    token_id: int
    logprob: float
    top_logprobs: msgspec.Raw = msgspec.Raw(b"[]")


class Logprobs(msgspec.Struct):
    """Of /inference/v1/generate (content) or of /v1/completions (the others)."""

    content: list[Logprob] | None = None
    token_logprobs: list[float] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class TextSpan(msgspec.Struct):
    """Which weights drew the tokens from start to end."""

    version: str | int | None
    start: int
    end: int


class Choice(msgspec.Struct):
    """One rollout."""

    finish_reason: str | None = None
    token_ids: list[int] | None = None
    logprobs: Logprobs | None = None
    weight_versions: list[TextSpan] | None = None


class Answer(msgspec.Struct):
    """A route's answer."""

    choices: list[Choice] | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


class _Top(msgspec.Struct):
    logprob: float


_ANSWERS = msgspec.json.Decoder(Answer)
_TOPS = msgspec.json.Decoder(list[_Top] | None)


class Unusable(ValueError):
    """An answer that is no rollout; the message says what is wrong with it."""


class NoChoice(Unusable):
    """An answer without a choice, such as a gateway's error with status 200: a later try may have one."""


def only_choice(body: bytes) -> Choice:
    """The one rollout of a route's answer; Unusable where it is something else."""
    try:
        answer = _ANSWERS.decode(body)
    except msgspec.DecodeError as error:
        raise Unusable(f"not an answer of vLLM: {error}") from None
    choices = answer.choices or []
    if not choices:
        fault = msgspec.json.decode(answer.error)
        kind = Unusable if is_final(fault) else NoChoice
        raise kind(f"0 choices, need one{f': {str(fault)[:300]}' if fault else ''}")
    if len(choices) != 1:
        raise Unusable(f"{len(choices)} choices, need one")
    return choices[0]


def is_final(fault: object) -> bool:
    """Whether an `error` in an answer's body says by its code that no other try can help."""
    code = fault.get("code") if isinstance(fault, dict) else None
    code = int(code) if isinstance(code, str) and code.isdecimal() else code
    return isinstance(code, int) and 400 <= code < 500 and not is_busy(code)


def from_completions(choice: Choice, version: str | None) -> Choice:
    """A choice of /v1/completions in the form of /inference/v1/generate's; `version` drew all its tokens."""
    ids = choice.token_ids
    given = choice.logprobs or Logprobs()
    values = given.token_logprobs or []
    if ids is None or len(values) != len(ids):
        raise Unusable(f"no token_ids, or log-probabilities of {len(values)} tokens. Use vLLM 0.32.")
    tops = given.top_logprobs or [None] * len(ids)
    content = [
        Logprob(token, value, msgspec.Raw(msgspec.json.encode([_Top(other) for other in (top or {}).values()])))
        for token, value, top in zip(ids, values, tops, strict=True)
    ]
    return Choice(choice.finish_reason, ids, Logprobs(content), [TextSpan(version, 0, len(ids))])


def sampled(choice: Choice) -> tuple[list[int], list[float]]:
    """Ids and their log-probabilities; Unusable where they do not belong together or are not finite."""
    ids = choice.token_ids or []
    content = (choice.logprobs.content if choice.logprobs else None) or []
    if [entry.token_id for entry in content] != ids:
        raise Unusable(f"{len(ids)} token ids with log-probabilities of {len(content)} others")
    logprobs = [entry.logprob for entry in content]
    if logprobs and not (min(logprobs) > NOT_A_LOGPROB and math.isfinite(sum(logprobs))):
        raise Unusable("a log-probability is not finite; the served weights are damaged")
    # fp32 rounding can leave a log-probability just above 0.
    return ids, [value if value < 0.0 else 0.0 for value in logprobs]


def best_logprob(choice: Choice) -> float:
    """The highest log-probability among the first token's candidates; Unusable where there is none."""
    content = (choice.logprobs.content if choice.logprobs else None) or []
    if not content:
        raise Unusable("no log-probabilities")
    tops = _TOPS.decode(content[0].top_logprobs) or []
    return float(max([content[0].logprob, *(top.logprob for top in tops)]))


def for_completions(params: dict[str, Any]) -> dict[str, Any]:
    """Sampling parameters in the spelling of /v1/completions."""
    return {name: value for name, value in params.items() if name != "detokenize"}


def refusal(url: str, route: str, status: int, text: str) -> str:
    """What a server's refusal means, in words with the fix where there is one."""
    reason = text[:500]
    if route == GENERATE and status == 403:
        return f"{url}{route} says 403: start vLLM with --enable-scale-out. ({reason})"
    if status == 404:
        return f"{url}{route} says 404: not a vLLM 0.32 server, or another model is served. ({reason})"
    return f"{url}{route} says {status}: {reason}"
