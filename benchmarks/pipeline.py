"""How busy generation slots stay while verification is slow: this environment against one slot held until the verdict.

    python benchmarks/pipeline.py [--rounds 3] [--seconds 20] [--out FILE.json]

A scripted generation server on a real socket answers after a heavy-tailed time (log-normal), with as many rollouts at
a time as it has slots; the verifier is a sleep five times as long on average, with containers enough for all of it.
Ours: LivecodeEnv against this project's API server and a trainer that takes every batch at once and whose weights
are always the newest, so that admission is no bound. Upstream: atroposlib 0.4.0 counts a worker (max_num_workers) until
its group is scored, so that waiting for verdicts takes the place of generation; here as many workers as there
are slots for groups, each generating a group's rollouts and then having them judged, on the same client, server and
delays. Groups a second: ours are those sent (flat ones are dropped), upstream's are all. Busy: time average of requests
at the server over its slots, in the second half of the run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import platform
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from environments.api_server.launch import bind
from environments.api_server.server import build
from environments.api_server.store import Store
from environments.livecode import equipment
from environments.livecode.config import RunConfig
from environments.livecode.environment import LivecodeEnv
from environments.livecode.generation.completions import CompletionClient, SamplingParams
from environments.livecode.pipeline import Pipeline, all_of
from environments.livecode.problems.load import save_problems
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.problems.prompts import PromptBuilder
from environments.livecode.problems.sampler import UniformSampler
from verifier_app.judge.verdict import Verdict

SLOTS, GROUP, CONTEXT = 32, 8, 512
GENERATE_S, VERIFY_S = 0.5, 2.5
PROBLEMS = [
    Problem(id=f"p{n}", source="b", kind="stdin", statement=f"Problem {n}.", tests=[TestCase(input="1", output="1")])
    for n in range(500)
]


def delay(draw: random.Random, mean: float, sigma: float = 0.8) -> float:
    """Log-normal with this mean."""
    return draw.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)


class Generation:
    """A generation server that knows the time integral of its running requests."""

    def __init__(self, tokenizer: Any, seed: int) -> None:
        self.ids = tokenizer.encode("```python\nprint(input())\n```")
        self.draw = random.Random(seed)
        self.version = 0
        self.running, self.area, self.since = 0, 0.0, time.monotonic()

    def _change(self, by: int) -> None:
        now = time.monotonic()
        self.area += self.running * (now - self.since)
        self.running, self.since = self.running + by, now

    def mark(self) -> float:
        """Request-seconds so far."""
        self._change(0)
        return self.area

    async def generate(self, request: Request) -> Response:
        params = (await request.json())["sampling_params"]
        ids = self.ids[: params["max_tokens"]]
        if params["max_tokens"] > 1:
            self._change(1)
            await asyncio.sleep(delay(self.draw, GENERATE_S))
            self._change(-1)
        logprob = -0.7 * params["temperature"]
        content = [{"token_id": token, "logprob": logprob, "top_logprobs": []} for token in ids]
        spans = [{"version": str(self.version), "start": 0, "end": len(ids)}]
        choice = {"finish_reason": "stop", "token_ids": ids, "logprobs": {"content": content}, "weight_versions": spans}
        return JSONResponse({"choices": [choice]})

    def app(self) -> Starlette:
        async def models(_: Request) -> Response:
            return JSONResponse({"data": [{"id": "m", "max_model_len": CONTEXT}]})

        async def version(_: Request) -> Response:
            return JSONResponse({"weight_version": str(self.version)})

        async def health(_: Request) -> Response:
            return Response()

        routes = [
            Route("/inference/v1/generate", self.generate, methods=["POST"]),
            Route("/v1/models", models),
            Route("/weight_info", version),
            Route("/health", health),
        ]
        return Starlette(routes=routes)


class SlowVerifier:
    """A verdict after a while, half of them passes; no bound on how many at once."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def verify(self, request: dict[str, Any]) -> Verdict:
        status = self.draw.choice(["accepted", "wrong_answer"])
        await asyncio.sleep(delay(self.draw, VERIFY_S))
        return {"status": status, "passed": 0, "ran": 1, "total": 1, "tests": []}


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """The address of an app in a thread of its own."""
    listening = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


def make_model(folder: Path) -> Any:
    """A byte-level tokenizer with a chat template, saved as a model's folder."""
    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(alphabet, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'][-40:] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": CONTEXT}))
    save_problems(PROBLEMS, folder / "problems.jsonl")
    return tokenizer


async def busy(generation: Generation, seconds: float) -> float:
    """Share of the slots that are taken in the second half of so many seconds."""
    await asyncio.sleep(seconds / 2)
    area, start = generation.mark(), time.monotonic()
    await asyncio.sleep(seconds / 2)
    return (generation.mark() - area) / (time.monotonic() - start) / SLOTS


async def take_batches(url: str, generation: Generation) -> None:
    """A trainer whose step takes no time."""
    body = dict.fromkeys(("wandb_group", "wandb_project", "checkpoint_dir"), "") | {
        "batch_size": 2 * GROUP, "max_token_len": -1, "save_checkpoint_interval": -1, "starting_step": 0,
        "num_steps": 10_000,
    }  # fmt: skip
    async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as http:
        (await http.post("/register", json=body)).raise_for_status()
        while True:
            if (await http.get("/batch")).json()["batch"]:
                generation.version += 1
            else:
                await asyncio.sleep(0.02)


async def ours(folder: Path, url: str, generation: Generation, seed: int, seconds: float) -> tuple[float, float]:
    """(busy share, groups a second) of LivecodeEnv."""
    with served(build(Store())) as api, tempfile.TemporaryDirectory() as run_dir:
        options = {
            "problems": str(folder / "problems.jsonl"), "group_size": GROUP, "rollout_server_url": api,
            "run_dir": run_dir, "context": CONTEXT, "max_new_tokens": 200, "total_steps": 10_000, "max_staleness": 1000,
            "max_concurrent_rollouts": SLOTS, "record_rollouts_per_group": 0,
        }  # fmt: skip
        vars(equipment)["build_verifier"] = lambda *_, **__: SlowVerifier(seed)
        env = LivecodeEnv(RunConfig.model_validate({"model": str(folder), "servers": [url], "env": options}))
        async with AsyncExitStack() as stack:
            await env.open(stack, versions=True)
            trainer = asyncio.create_task(take_batches(api, generation))
            feeding = asyncio.create_task(env.env_manager())
            while env.serving is None or not env.serving.in_flight:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            before = env.serving.sent
            share = await busy(generation, seconds)
            rate = (env.serving.sent - before) / seconds
            for task in (feeding, trainer):
                task.cancel()
            await asyncio.gather(feeding, trainer, return_exceptions=True)
    return share, rate


async def upstream(tokenizer: Any, url: str, generation: Generation, seed: int, seconds: float) -> tuple[float, float]:
    """(busy share, groups a second) where a worker holds its place until its group is scored."""
    done = 0
    async with CompletionClient([url]) as client:
        pipeline = Pipeline(
            client=client, verifier=SlowVerifier(seed), prompts=PromptBuilder(tokenizer, limit=CONTEXT - 200),
            max_concurrent=SLOTS, time_limit_s=15, memory_limit_mb=4096,
        )  # fmt: skip
        problems, sampling = UniformSampler(PROBLEMS, 0), SamplingParams(200, 1.0)

        async def worker() -> None:
            nonlocal done
            while True:
                problem = problems.next()
                await all_of([pipeline.run(problem, sampling) for _ in range(GROUP)])
                done += 1

        workers = [asyncio.create_task(worker()) for _ in range(SLOTS // GROUP)]
        share = await busy(generation, seconds)
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return share, done / seconds


def main() -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "upstream": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = make_model(folder)
        for seed in range(options.rounds):
            for side, results in found.items():
                generation = Generation(tokenizer, seed)
                with served(generation.app()) as url:
                    if side == "ours":
                        one = asyncio.run(ours(folder, url, generation, seed, options.seconds))
                    else:
                        one = asyncio.run(upstream(tokenizer, url, generation, seed, options.seconds))
                print(f"{side}: slots busy {one[0]:.1%}, {one[1]:.2f} groups/s", file=sys.stderr)
                results.append(one)
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "slots": SLOTS,
        "group_size": GROUP,
        "generate_s": GENERATE_S,
        "verify_s": VERIFY_S,
    }
    for side, results in found.items():
        share, rate = (statistics.median(values) for values in zip(*results, strict=True))
        result[side] = {"slots_busy": round(share, 3), "groups_per_s": round(rate, 2)}
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
