"""A scripted generation server, Atropos' own API server and a byte-level tokenizer, all on real sockets.

The generation server stands in for vLLM, which takes more than a minute to start: it speaks the same JSON on the same
routes. The end-to-end test runs the real one.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.served import Served

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder with a byte-level tokenizer and a config of 4,096 positions."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 4096}))
    return folder


@pytest.fixture(scope="session")
def tokenizer(model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_dir)


Answer = dict[str, Any]  # text, finish_reason, delay in seconds, and until: a threading.Event that it waits for


@dataclass
class Generation:
    """What the stand-in does: `script(prompt text, number of the request)` gives the answer."""

    tokenizer: Any
    script: Callable[[str, int], Answer] = lambda prompt, number: {"text": "no program"}
    version: str = "default"
    max_model_len: int = 4096
    raw_logprobs: bool = False
    status: int = 200
    first_reason: str = "length"  # why the one token of a check is the last
    scale_out: bool = True
    weight_info_silent: bool = False  # as a machine that is gone
    requests: list[dict[str, Any]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0

    async def generate(self, request: Request) -> Response:
        body = await request.json()
        params = body["sampling_params"]
        if self.status != 200 or not self.scale_out:
            return JSONResponse({"error": {"message": "scripted"}}, self.status if self.scale_out else 403)
        if params["max_tokens"] == 1:
            base = -0.7 if self.raw_logprobs else -0.7 * params["temperature"]
            return self._choice([5], [base], self.first_reason, params["logprobs"])
        self.requests.append(body)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            answer = self.script(self.tokenizer.decode(body["token_ids"]), len(self.requests) - 1)
            version = self.version
            await asyncio.sleep(answer.get("delay", 0.0))
            if "until" in answer:
                await asyncio.to_thread(answer["until"].wait, 60.0)
        finally:
            self.running -= 1
        ids = self.tokenizer.encode(answer["text"])
        reason = answer.get("finish_reason", "stop")
        if reason == "stop":
            ids.append(self.tokenizer.eos_token_id)
        spans = [(version, 0, len(ids))]
        if version != self.version:
            spans = [(version, 0, 3), (self.version, 3, len(ids))]
        logprobs = answer.get("logprobs", [-0.5 - n / 1000 for n in range(len(ids))])
        return self._choice(ids, logprobs, reason, 0, spans)

    def _choice(
        self, ids: list[int], logprobs: list[float], reason: str, top: int, spans: list[Any] | None = None
    ) -> Response:
        content = [
            {
                "token_id": token,
                "logprob": value,
                "rank": 1,
                "top_logprobs": [{"token_id": token, "logprob": value, "rank": 1}] * top,
            }
            for token, value in zip(ids, logprobs, strict=True)
        ]
        versions = [{"version": v, "start": a, "end": b} for v, a, b in spans or [(self.version, 0, len(ids))]]
        choice = {
            "index": 0,
            "finish_reason": reason,
            "stop_reason": None,
            "token_ids": ids,
            "logprobs": {"content": content},
            "weight_versions": versions,
        }
        return JSONResponse({"request_id": "r", "output_mode": "tokens", "choices": [choice]})

    async def completions(self, request: Request) -> Response:
        """Answers two tokens; the last one ends it."""
        body = await request.json()
        self.requests.append(body)
        ids, values = [5, 7][: body["max_tokens"]], [-0.7 * body["temperature"], -0.1][: body["max_tokens"]]
        logprobs = {"token_logprobs": values, "top_logprobs": [{"t": value} for value in values]}
        choice = {"token_ids": ids, "logprobs": logprobs, "finish_reason": "stop", "text": ""}
        return JSONResponse({"choices": [choice]})

    async def models(self, request: Request) -> Response:
        return JSONResponse({"data": [{"id": "m", "max_model_len": self.max_model_len}]})

    async def weight_info(self, request: Request) -> Response:
        while self.weight_info_silent:  # noqa: ASYNC110
            await asyncio.sleep(1.0)
        return JSONResponse({"weight_version": self.version})

    async def health(self, request: Request) -> Response:
        return Response()

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/inference/v1/generate", self.generate, methods=["POST"]),
                Route("/v1/completions", self.completions, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/weight_info", self.weight_info),
                Route("/health", self.health),
            ]
        )


@pytest.fixture
def generation(tokenizer: Any) -> Iterator[Any]:
    """A running stand-in; `.url` is its address."""
    stand_in: Any = Generation(tokenizer)
    served = Served(stand_in.app())
    stand_in.url = served.url
    yield stand_in
    served.stop()


@pytest.fixture(scope="session")
def _stock_api() -> Iterator[Served]:
    from atroposlib.api.server import app

    served = Served(app)
    yield served
    served.stop()


@pytest.fixture
def stock_api(_stock_api: Served) -> str:
    """The address of Atropos' own API server, as it is when nobody has registered."""
    from atroposlib.api.server import app

    app.state._state.clear()
    return _stock_api.url


@pytest.fixture
def api() -> Iterator[str]:
    """The address of this project's API server, as it is when nobody has registered."""
    from environments.api_server.server import build
    from environments.api_server.store import Store

    served = Served(build(Store()))
    yield served.url
    served.stop()


class Trainer:
    """The trainer's side of the API: register, then take batches."""

    def __init__(self, url: str) -> None:
        self.http = httpx.AsyncClient(base_url=url, timeout=30)

    async def register(self, *, batch: int, context: int = -1, steps: int = 10) -> None:
        body = {
            "wandb_group": "g",
            "wandb_project": "p",
            "batch_size": batch,
            "max_token_len": context,
            "checkpoint_dir": "",
            "save_checkpoint_interval": -1,
            "starting_step": 0,
            "num_steps": steps,
        }
        (await self.http.post("/register", json=body)).raise_for_status()
        await self.http.get("/batch")

    async def batch(self, deadline_s: float = 30.0) -> list[dict[str, Any]]:
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            if groups := (await self.http.get("/batch")).json()["batch"]:
                return list(groups)
            await asyncio.sleep(0.02)
        raise AssertionError(f"no batch within {deadline_s} s")


@pytest.fixture
async def trainer(api: str) -> Any:
    client = Trainer(api)
    yield client
    await client.http.aclose()
