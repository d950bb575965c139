"""Answers as text from any server with OpenAI's chat route: for evaluation only, since training needs the tokens."""

from __future__ import annotations

import logging
import os
import time
from array import array
from typing import Any

import httpx

from environments.common.http_clients import is_busy, pause_s, remote_client, shown, whole
from environments.common.retry import Failure, Retry, RetryLater
from environments.livecode.generation.completions import Completion, RetryCounters, SamplingParams
from environments.livecode.generation.vllm_responses import is_final
from environments.livecode.generation.vllm_servers import RolloutDeadlineExceeded, ServerRefused
from environments.livecode.problems.prompts import Prompt

logger = logging.getLogger(__name__)

CHAT = "/v1/chat/completions"
_LONGEST_PAUSE_S = 30.0
_STRANGE_ANSWERS = 5  # in a row, of one request, that are no chat completion at all: then it is another kind of server


class _NoAnswer(RetryLater):
    """An answer with status 200 that holds none. `strange`: it is no chat completion and no error either."""

    def __init__(self, message: str, *, strange: bool = False) -> None:
        super().__init__(message)
        self.strange = strange


class ChatClient:
    """One chat completion for each sample; a key, where the server wants one, from a variable of the environment.

    Args:
        url: the server's address, without /v1.
        model: the model's name at the server.
        key_variable: the environment variable that holds the key; the key is never written anywhere.
    """

    def __init__(self, url: str, model: str, *, deadline_s: float = 3600.0, key_variable: str = "OPENAI_API_KEY"):
        self.url, self.model, self.deadline_s = url.rstrip("/").removesuffix("/v1"), model, deadline_s
        self.counters = RetryCounters()
        self.running = 0
        self.published = False
        self.troubles = ""
        self._shown = shown(self.url)
        key = os.environ.get(key_variable)
        self._http = remote_client(
            "servers",
            [self.url],
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(deadline_s, connect=10.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=512),
        )

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def answer(self, prompt: Prompt, sampling: SamplingParams) -> Completion:
        """One answer: text without token ids.

        Raises:
            ServerRefused: a request that no try can serve.
            RolloutDeadlineExceeded: `deadline_s` passed; the message ends with the last failure.
        """
        started, strange = time.monotonic(), 0
        body: dict[str, Any] = {
            "model": self.model,
            "messages": prompt.messages,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed

        async def attempt() -> Completion:
            nonlocal strange
            try:
                response = await self._post(body, max(self.deadline_s - (time.monotonic() - started), 0.0))
                return self._sample(response, time.monotonic() - started)
            except _NoAnswer as error:
                error.wait_s = pause_s(response.headers, 0.0)
                strange = strange + 1 if error.strange else 0
                if strange == _STRANGE_ANSWERS:
                    raise ServerRefused(
                        f"{self._shown}{CHAT}: {error}. evaluation.route chat needs a server with OpenAI's routes."
                    ) from None
                raise

        tries = Retry(0.5, _LONGEST_PAUSE_S, deadline_s=self.deadline_s, on_retry=self._failed)
        self.running += 1
        try:
            return await tries.call_async(attempt)
        except RetryLater as error:
            raise RolloutDeadlineExceeded(
                f"no answer from {self._shown} within {self.deadline_s:g} s: {error}"
            ) from None
        finally:
            self.running -= 1

    def _failed(self, failure: Failure) -> None:
        if self.counters.resubmitted_failure == 0:
            logger.warning("%s: a request is sent again: %s", self._shown, failure.error)
        self.counters.resubmitted_failure += 1

    async def _post(self, body: dict[str, Any], timeout: float) -> httpx.Response:
        """A response with status 200. Raises RetryLater or ServerRefused for another one."""
        try:
            response = await self._http.post(self.url + CHAT, json=body, timeout=timeout)
        except httpx.HTTPError as error:
            raise RetryLater(f"{type(error).__name__} {error}") from error
        if response.status_code == 200:
            return response
        reason = f"status {response.status_code}: {response.text[:300]}"
        if not is_busy(response.status_code):
            raise ServerRefused(f"{self._shown}{CHAT}: {reason}")
        raise RetryLater(reason, wait_s=pause_s(response.headers, 0.0))

    def _sample(self, response: httpx.Response, seconds: float) -> Completion:
        """The answer in a response with status 200.

        Raises:
            _NoAnswer: there is none in it: gateways report errors so, and a choice may end in one.
            ServerRefused: an error whose code says that no other try can help.
        """
        try:
            data = response.json()
        except ValueError as error:
            raise _NoAnswer(f"status 200, not JSON ({error})", strange=True) from None
        fields = data if isinstance(data, dict) else {}
        choices = fields.get("choices")
        choice = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
        fault = fields.get("error") or (choice.get("error") if isinstance(choice, dict) else None)
        if fault:
            if is_final(fault):
                raise ServerRefused(f"{self._shown}{CHAT}: status 200 with an error: {str(fault)[:300]}")
            raise _NoAnswer(f"status 200 with an error: {str(fault)[:300]}")
        if not isinstance(data, dict) or (choices and choice is None):
            raise _NoAnswer(f"not a chat completion: {str(data)[:300]}", strange=True)
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict) or choice.get("finish_reason") == "error":
            raise _NoAnswer(f"status 200 without an answer: {str(data)[:300]}", strange="choices" not in data)
        # A server that takes the reasoning out of the answer gives it beside it.
        reason = "length" if choice.get("finish_reason") == "length" else "stop"
        text, tokens = _text(message.get("content")), _count(data)
        return Completion(array("i"), array("d"), reason, [], seconds, text=text, tokens=tokens)

    async def weight_version(self) -> None:
        """Unknown: this route has no versions."""

    async def check(
        self, *, context: int, need_versions: bool = True, patience_s: float = 0.0, wait_s: float = 0.0
    ) -> None:
        """Asks for the server's models, and raises before any work is lost; an evaluation waits for none.

        Raises:
            ServerRefused: no server there, it does not know the model, or serves too short a context.
        """
        try:
            response = await self._http.get(self.url + "/v1/models", timeout=10.0)
        except httpx.HTTPError as error:
            raise ServerRefused(f"servers: {self._shown} does not answer ({type(error).__name__}).") from error
        if response.status_code in (401, 403):
            raise ServerRefused(
                f"servers: {self._shown} says {response.status_code}. Put its key into the variable OPENAI_API_KEY."
            )
        if response.status_code != 200:
            return  # not every server lists its models
        try:
            rows = {row["id"]: row for row in response.json()["data"] or []}
        except (ValueError, KeyError, TypeError):
            return
        if rows and self.model not in rows:
            known = ", ".join(sorted(map(str, rows))[:5])
            raise ServerRefused(
                f"evaluation.served_model {self.model}: {self._shown} serves {known}. Name one of them."
            )
        limit = rows.get(self.model, {}).get("max_model_len")
        if limit is not None and limit < context:
            raise ServerRefused(
                f"servers: {self._shown} serves at most {limit} tokens, env.context is {context}. "
                "Serve a longer context or lower env.context."
            )


def _text(content: Any) -> str:
    """A message's content as text: a string, or the text parts of a list."""
    if isinstance(content, list):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return whole(str(content or ""))


def _count(data: dict[str, Any]) -> int:
    """The tokens of an answer, as the server counts them; 0 where it does not."""
    usage = data.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return int(tokens) if isinstance(tokens, int | float) else 0
