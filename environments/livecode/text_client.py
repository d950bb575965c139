"""Answers as text from any server with OpenAI's chat route: for evaluation only, since training needs the tokens."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from array import array
from typing import Any

import httpx

from environments.livecode.prompts import Prompt
from environments.livecode.rollouts import Counters, Sample, Sampling
from environments.livecode.servers import RolloutDeadlineExceeded, ServerRefused, without_credentials

logger = logging.getLogger(__name__)

CHAT = "/v1/chat/completions"
_BUSY = frozenset({408, 409, 425, 429})  # a later try may succeed, as with every status from 500
_LONGEST_PAUSE_S = 30.0


class TextClient:
    """One chat completion for each sample; a key, where the server wants one, from a variable of the environment.

    Args:
        url: the server's address, without /v1.
        model: the model's name at the server.
        key_variable: the environment variable that holds the key; the key is never written anywhere.
    """

    def __init__(self, url: str, model: str, *, deadline_s: float = 3600.0, key_variable: str = "OPENAI_API_KEY"):
        self.url, self.model, self.deadline_s = url.rstrip("/").removesuffix("/v1"), model, deadline_s
        self.counters = Counters()
        self.running = 0
        self.published = False
        self.troubles = ""
        self._shown = without_credentials(self.url)
        key = os.environ.get(key_variable)
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(deadline_s, connect=10.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=512),
        )

    async def __aenter__(self) -> TextClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def answer(self, prompt: Prompt, sampling: Sampling) -> Sample:
        """One answer: text without token ids.

        Raises:
            ServerRefused: a request that no try can serve.
            RolloutDeadlineExceeded: `deadline_s` passed; the last failure stands in the message.
        """
        started, pause, last = time.monotonic(), 0.5, "no answer"
        body: dict[str, Any] = {
            "model": self.model,
            "messages": prompt.messages,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        self.running += 1
        try:
            while (left := self.deadline_s - (time.monotonic() - started)) > 0:
                try:
                    response = await self._http.post(self.url + CHAT, json=body, timeout=left)
                except httpx.HTTPError as error:
                    last = f"{type(error).__name__} {error}"
                else:
                    if response.status_code == 200:
                        return self._sample(response, time.monotonic() - started)
                    last = f"status {response.status_code}: {response.text[:300]}"
                    if response.status_code < 500 and response.status_code not in _BUSY:
                        raise ServerRefused(f"{self._shown}{CHAT}: {last}")
                if self.counters.resubmitted_failure == 0:
                    logger.warning("%s: a request is sent again: %s", self._shown, last)
                self.counters.resubmitted_failure += 1
                await asyncio.sleep(min(pause, max(left, 0.0)))
                pause = min(2 * pause, _LONGEST_PAUSE_S)
        finally:
            self.running -= 1
        raise RolloutDeadlineExceeded(f"no answer from {self._shown} within {self.deadline_s:g} s: {last}")

    def _sample(self, response: httpx.Response, seconds: float) -> Sample:
        try:
            data = response.json()
            (choice,) = data["choices"]
            message = choice["message"]
            # A server that takes the reasoning out of the answer gives it beside it.
            text = str(message.get("content") or "")
            tokens = int((data.get("usage") or {}).get("completion_tokens") or 0)
            reason = "length" if choice.get("finish_reason") == "length" else "stop"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ServerRefused(
                f"{self._shown}{CHAT}: not a chat completion ({type(error).__name__} {error}). "
                "evaluation.route chat needs a server with OpenAI's routes."
            ) from None
        return Sample(array("i"), array("d"), reason, [], seconds, text=text, tokens=tokens)

    async def weight_version(self) -> None:
        """Unknown: this route has no versions."""

    async def check(self, *, context: int, need_versions: bool = True, patience_s: float = 0.0) -> None:
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
        rows = {row.get("id"): row for row in response.json().get("data") or []}
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
