"""A token-exact stand-in for vLLM as a process of its own: `python -m tests.support.policy_server MODEL PORT`.

The routes that environment and trainer use, with vLLM 0.32's answers, over a small model in fp32 that transformers
computes on the CPU. Each token is drawn by a forward over all running requests with the weights that were published
last, so the reported log-probabilities are those that the trainer computes with the same weights. vLLM takes a minute
or two to start; this takes seconds, and may be killed often.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import uvicorn
from safetensors.torch import load_file
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from transformers import AutoModelForCausalLM

from trainer.model.weight_files import checkpoint_files

START_LABEL = "default"
"""vLLM's name for the weights that it was started with."""


@dataclass
class Running:
    """A request that is being generated."""

    prompt: list[int]
    params: dict[str, Any]
    done: Future[dict[str, Any]]
    ids: list[int] = field(default_factory=list)
    content: list[dict[str, Any]] = field(default_factory=list)
    spans: list[dict[str, Any]] = field(default_factory=list)
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if "seed" in self.params:
            self.generator = torch.Generator().manual_seed(int(self.params["seed"]))

    def draw(self, logits: torch.Tensor, version: str) -> None:
        """One more token. logits: [vocabulary]. Log-probabilities are after the temperature; greedy ones at 1."""
        temperature = float(self.params.get("temperature", 1.0))
        logprobs = (logits / (temperature or 1.0)).log_softmax(-1)
        if temperature == 0:
            token = int(logprobs.argmax())
        else:
            token = int(torch.multinomial(logprobs.exp(), 1, generator=self.generator))
        best = logprobs.topk(int(self.params.get("logprobs") or 0))
        top = [
            {"token_id": int(one), "logprob": float(value), "rank": rank}
            for rank, (one, value) in enumerate(zip(best.indices, best.values, strict=True), 1)
        ]
        rank = int((logprobs > logprobs[token]).sum()) + 1
        self.content.append({"token_id": token, "logprob": float(logprobs[token]), "rank": rank, "top_logprobs": top})
        if not self.spans or self.spans[-1]["version"] != version:
            self.spans.append({"version": version, "start": len(self.ids), "end": len(self.ids)})
        self.ids.append(token)
        self.spans[-1]["end"] = len(self.ids)

    def finish_reason(self, ends: set[int]) -> str | None:
        """stop, length, or None while it goes on."""
        if self.ids[-1] in ends and not self.params.get("ignore_eos"):
            return "stop"
        return "length" if len(self.ids) >= int(self.params["max_tokens"]) else None

    def settle(self, reason: str) -> None:
        """Answers; whoever asked may be gone."""
        with contextlib.suppress(InvalidStateError):
            self.done.set_result(self.answer(reason))

    def answer(self, reason: str) -> dict[str, Any]:
        """vLLM's answer."""
        choice = {
            "index": 0,
            "finish_reason": reason,
            "stop_reason": None,
            "token_ids": self.ids,
            "logprobs": {"content": self.content},
            "weight_versions": self.spans,
        }
        return {"request_id": "r", "output_mode": "tokens", "choices": [choice]}


class Refused(RuntimeError):
    """A call that vLLM answers with 500."""


class Engine:
    """The model, its requests and the state of a weight update, in a thread of its own.

    token_s: pause after each token, so that faults find requests under way. ipc: reads the tensors that an update by
    CUDA IPC names.
    """

    def __init__(
        self,
        model: Path,
        *,
        token_s: float,
        most_running: int = 32,
        ipc: Callable[[dict[str, Any]], dict[str, torch.Tensor]] | None = None,
    ) -> None:
        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        ends = json.loads((model / "config.json").read_text())["eos_token_id"]
        self.ends = {ends} if isinstance(ends, int) else set(ends)
        self.token_s, self.most_running = token_s, most_running
        self.version = START_LABEL
        self.paused = self.initialised = self.updating = False
        self.asleep: set[str] = set()
        self._kept: dict[str, torch.Tensor] = {}
        self._ipc = ipc
        self.requests: list[Running] = []
        self.lock = threading.Condition()
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, prompt: list[int], params: dict[str, Any]) -> Future[dict[str, Any]]:
        """A new request; it waits while generation is paused."""
        request = Running(prompt, params, Future())
        with self.lock:
            self.requests.append(request)
            self.lock.notify_all()
        return request.done

    def pause(self, mode: str) -> None:
        """No token is drawn after this until `resume`; abort ends what runs."""
        with self.lock:
            self.paused = True
            if mode == "abort":
                for request in self.requests:
                    request.settle("abort")
                self.requests.clear()

    def resume(self) -> None:
        with self.lock:
            if self.asleep:
                raise Refused("a forward over memory that is not there")
            self.paused = False
            self.lock.notify_all()

    def sleep(self, level: int, mode: str) -> None:
        """Pauses, and gives up the memory of weights and cache; level 1 keeps the weights on the host."""
        self.pause(mode)
        with self.lock:
            if "weights" in self.asleep:
                return
            self.asleep = {"weights", "kv_cache"}
            state = self.model.state_dict()
            self._kept = {name: value.clone() for name, value in state.items()} if level == 1 else {}
            for value in state.values():
                value.zero_()

    def wake(self, tags: Sequence[str]) -> bool:
        """Brings memory back; whether all of it is there, and with it generation resumed."""
        with self.lock:
            wanted = set(tags) or set(self.asleep)
            if wanted <= self.asleep:
                if "weights" in wanted and self._kept:
                    self.model.load_state_dict(self._kept)
                self.asleep -= wanted
            if not self.asleep:
                self.resume()
            return not self.asleep

    def start(self) -> None:
        """Begins an update; one at a time, as in vLLM's worker."""
        with self.lock:
            if not self.initialised:
                raise Refused("the weight transfer engine is not initialised")
            if self.updating:
                raise Refused(
                    "start_weight_update called while a weight update is already active. Call finish_weight_update "
                    "first."
                )
            self.updating = True

    def update(self, info: dict[str, Any]) -> None:
        """Loads a folder's tensors, or those of another process; a running forward would have killed vLLM's worker."""
        with self.lock:
            if not self.updating:
                raise Refused("start_weight_update must be called before update_weights.")
            if not self.paused:
                raise Refused("weights were sent without a pause")
            if "weights" in self.asleep:
                raise Refused("weights were sent into memory that is not there")
            if self._ipc is not None:
                self.model.load_state_dict(self._ipc(info), strict=False)
                return
            folder = Path(info["folder"])
            files = checkpoint_files(folder)
            if not files:
                self.updating = False
                raise Refused(f"no safetensors in {folder} (the served weights are unchanged)")
            tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
            missing, unknown = self.model.load_state_dict(tensors, strict=False)
            tied = {"lm_head.weight"} if self.model.config.tie_word_embeddings else set()
            if set(missing) - tied or unknown:
                raise Refused(f"half loaded: missing {missing}, unknown {unknown}")

    def finish(self, version: str | None) -> None:
        """Ends an update."""
        with self.lock:
            if not self.updating:
                raise Refused("finish_weight_update called without a matching start_weight_update.")
            self.updating = False
            self.version = version or self.version

    def _run(self) -> None:
        while True:
            with self.lock:
                self.lock.wait_for(lambda: self.requests and not self.paused)
                self._step(self.requests[: self.most_running])
            time.sleep(self.token_s)

    @torch.no_grad()
    def _step(self, batch: Sequence[Running]) -> None:
        # Right padding: under a causal mask it reaches no earlier position.
        rows = [request.prompt + request.ids for request in batch]
        longest = max(len(row) for row in rows)
        logits = self.model(torch.tensor([row + [0] * (longest - len(row)) for row in rows])).logits
        for row, request in enumerate(batch):
            request.draw(logits[row, len(rows[row]) - 1], self.version)
            reason = request.finish_reason(self.ends)
            if reason is not None:
                self.requests.remove(request)
                request.settle(reason)


class Server:
    """vLLM's routes over an engine."""

    def __init__(self, engine: Engine, context: int) -> None:
        self.engine, self.context = engine, context

    async def generate(self, request: Request) -> Response:
        body = await request.json()
        params = body["sampling_params"]
        if len(body["token_ids"]) + params["max_tokens"] > self.context:
            return JSONResponse({"error": {"message": "longer than the context"}}, 400)
        return JSONResponse(await asyncio.wrap_future(self.engine.submit(body["token_ids"], params)))

    async def models(self, _: Request) -> Response:
        return JSONResponse({"data": [{"id": "policy", "max_model_len": self.context}]})

    async def health(self, _: Request) -> Response:
        return Response()

    async def weight_info(self, _: Request) -> Response:
        return JSONResponse({"weight_version": self.engine.version})

    async def is_sleeping(self, _: Request) -> Response:
        return JSONResponse({"is_sleeping": self.engine.paused})

    async def is_paused(self, _: Request) -> Response:
        return JSONResponse({"is_paused": self.engine.paused})

    async def control(self, request: Request) -> Response:
        """The routes that change something."""
        body = json.loads(await request.body() or b"null") or {}
        engine, name = self.engine, request.url.path.strip("/")
        try:
            if name == "pause":
                await asyncio.to_thread(engine.pause, request.query_params.get("mode", "abort"))
            elif name == "resume":
                await asyncio.to_thread(engine.resume)
            elif name == "sleep":
                level, mode = int(request.query_params.get("level", 1)), request.query_params.get("mode", "abort")
                await asyncio.to_thread(engine.sleep, level, mode)
                return JSONResponse({"status": "sleeping", "level": level})
            elif name == "wake_up":
                tags = request.query_params.getlist("tags")
                awake = await asyncio.to_thread(engine.wake, tags)
                return JSONResponse({"status": "awake" if awake else "sleeping", "tags": tags})
            elif name == "init_weight_transfer_engine":
                engine.initialised = True
            elif name == "start_weight_update":
                await asyncio.to_thread(engine.start)
            elif name == "update_weights":
                await asyncio.to_thread(engine.update, body["update_info"])
            elif name == "finish_weight_update":
                await asyncio.to_thread(engine.finish, body.get("weight_version"))
            elif name == "update_weight_version":
                engine.version = body["new_version"]
        except Refused as error:
            return JSONResponse({"error": {"message": str(error)}}, 500)
        return JSONResponse({"success": True})  # nothing is cached between tokens: there is no prefix cache to clear

    def app(self) -> Starlette:
        controls = (
            *(
                "pause",
                "resume",
                "sleep",
                "wake_up",
                "init_weight_transfer_engine",
                "start_weight_update",
                "update_weights",
            ),
            *("finish_weight_update", "update_weight_version", "reset_prefix_cache"),
        )
        return Starlette(
            routes=[
                Route("/inference/v1/generate", self.generate, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/health", self.health),
                Route("/weight_info", self.weight_info),
                Route("/is_paused", self.is_paused),
                Route("/is_sleeping", self.is_sleeping),
                *(Route(f"/{name}", self.control, methods=["POST"]) for name in controls),
            ]
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--token-s", type=float, default=0.01)
    wanted = parser.parse_args()
    server = Server(Engine(wanted.model, token_s=wanted.token_s), wanted.context)
    uvicorn.run(server.app(), host="127.0.0.1", port=wanted.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
