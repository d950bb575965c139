"""Verified samples a second of the mode `evaluate` with recorded generations, and how busy the judges are meanwhile.

    python benchmarks/evaluation.py [--n 4] [--tokens 1000] [--problems FILE --programs FILE] [--out FILE.json]

A server in a process of its own answers every request at once with a recorded answer of so many tokens, in turn a
program that passes and one that fails, so that nothing but verification can be the bottleneck. The rest is the
product: configuration, rollout client, extraction, judge pool, samples on the disk. Busy: the time that judges had a
request, over wall time times judges; the judges' start counts as idle. Without --problems the warm-up set's problems
and reference programs; --programs: JSONL of {question_id, correct: [source], wrong: [{code}]}.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from environments.api_server.launch import bind
from environments.livecode import equipment
from environments.livecode.config import RunConfig
from environments.livecode.environment import LivecodeEnv
from environments.livecode.problems.load import load_problems, save_problems
from environments.livecode.problems.prompts import PromptBuilder
from environments.livecode.problems.warmup import build
from environments.livecode.verification.local import LocalVerifier

CONTEXT = 65_536


def prepare(folder: Path, problems: Path | None, programs: Path | None) -> int:
    """Model folder, problems.jsonl and programs.jsonl ({id, right, wrong}) in `folder`; the number of problems."""
    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(alphabet, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": CONTEXT}))
    if problems is not None and programs is not None:
        chosen = load_problems(problems)
        known = {row["question_id"]: row for row in map(json.loads, programs.read_text().splitlines())}
        pairs = {
            problem.id: (known[problem.id]["correct"][0], known[problem.id]["wrong"][0]["code"])
            for problem in chosen
            if known.get(problem.id, {}).get("correct") and known[problem.id]["wrong"]
        }
        chosen = [problem for problem in chosen if problem.id in pairs]
    else:
        sets = build(0)
        chosen = sets.train
        by_kind: dict[str, list[str]] = {}
        for problem in chosen:
            by_kind.setdefault(problem.kind, []).append(problem.id)
        # What solves the problem five places on; the few that pass by chance are counted as they are.
        wrong = {name: ids[(place + 5) % len(ids)] for ids in by_kind.values() for place, name in enumerate(ids)}
        pairs = {p.id: (sets.references[p.id], sets.references[wrong[p.id]]) for p in chosen}
    save_problems(chosen, folder / "problems.jsonl")
    rows = (json.dumps({"id": name, "right": right, "wrong": wrong}) for name, (right, wrong) in pairs.items())
    (folder / "programs.jsonl").write_text("\n".join(rows) + "\n")
    return len(chosen)


def serve(folder: str, tokens: int, port: Any) -> None:
    """The generation server: answers that were made before it began, by prompt, right and wrong in turn."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = PromptBuilder(tokenizer, limit=CONTEXT)
    programs = {row["id"]: row for row in map(json.loads, (Path(folder) / "programs.jsonl").read_text().splitlines())}
    recorded: dict[bytes, list[bytes]] = {}
    for problem in load_problems(Path(folder) / "problems.jsonl"):
        row, answers = programs[problem.id], []
        for code in (row["right"], row["wrong"]):
            ids = tokenizer.encode(f"```python\n{code}\n```")
            ids = tokenizer.encode("x " * max(0, (tokens - len(ids)) // 2) + "\n") + ids
            answers.append(json.dumps({"choices": [choice(ids)]}).encode())
        recorded[json.dumps(prompts(problem).ids).encode()] = answers
    asked: dict[bytes, int] = {}

    async def generate(request: Request) -> Response:
        body = await request.json()
        if body["sampling_params"]["max_tokens"] == 1:
            return JSONResponse({"choices": [choice([5], -0.7 * body["sampling_params"]["temperature"])]})
        key = json.dumps(body["token_ids"]).encode()
        asked[key] = asked.get(key, -1) + 1
        return Response(recorded[key][asked[key] % 2], media_type="application/json")

    async def served_models(_: Request) -> Response:
        return JSONResponse({"data": [{"id": "m", "max_model_len": CONTEXT}]})

    async def health(_: Request) -> Response:
        return Response()

    async def version(_: Request) -> Response:
        return JSONResponse({"weight_version": "0"})

    routes = [
        Route("/inference/v1/generate", generate, methods=["POST"]),
        Route("/v1/models", served_models),
        Route("/health", health),
        Route("/weight_info", version),
    ]
    listening = bind("127.0.0.1", 0)
    port.put(listening.getsockname()[1])
    config = uvicorn.Config(Starlette(routes=routes), log_level="critical", lifespan="off")
    uvicorn.Server(config).run(sockets=[listening])


def choice(ids: list[int], logprob: float = -0.5) -> dict[str, Any]:
    """One answer in the form of vLLM's token route."""
    content = [{"token_id": token, "logprob": logprob, "rank": 1, "top_logprobs": []} for token in ids]
    spans = [{"version": "0", "start": 0, "end": len(ids)}]
    return {"finish_reason": "stop", "token_ids": ids, "logprobs": {"content": content}, "weight_versions": spans}


async def measure(folder: Path, url: str, n: int, workers: int) -> dict[str, Any]:
    """One evaluation; its rate and the judges' share of time with a request."""
    verifiers: list[LocalVerifier] = []
    product = vars(equipment)["build_verifier"]

    def kept(*arguments: Any) -> Any:
        verifiers.append(product(*arguments))
        return verifiers[-1]

    vars(equipment)["build_verifier"] = kept
    settings = RunConfig.model_validate(
        {
            "model": str(folder), "servers": [url],
            "env": {"context": CONTEXT, "max_new_tokens": CONTEXT // 2, "run_dir": str(folder / "run"),
                    "verifier_workers": workers},
            "evaluation": {"problems": [str(folder / "problems.jsonl")], "n": n, "greedy": False},
        }
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        env = LivecodeEnv(settings)
        await env.open(stack, versions=False)
        started = time.monotonic()
        (record,) = await env.evaluate()
        wall = time.monotonic() - started
        busy = verifiers[0].busy_s
    return {
        "samples": record["total"] + record["no_verdict"],
        "no_verdict": record["no_verdict"],
        "pass_at_1": round(record["pass_at_1"], 3),
        "seconds": round(wall, 2),
        "samples_per_s": round((record["total"] + record["no_verdict"]) / wall, 2),
        "judges": workers,
        "judges_busy": round(busy / wall / workers, 4),
        "mean_tokens": round(record["mean_length"]),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--problems", type=Path)
    parser.add_argument("--programs", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if (options.problems is None) != (options.programs is None):
        parser.error("--problems and --programs belong together: give both or none")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = prepare(folder, options.problems, options.programs)
        context = multiprocessing.get_context("spawn")
        port = context.Queue()
        server = context.Process(target=serve, args=(name, options.tokens, port), daemon=True)
        server.start()
        try:
            url = f"http://127.0.0.1:{port.get(timeout=120)}"
            while True:
                try:
                    httpx.get(f"{url}/health", trust_env=False)
                    break
                except httpx.HTTPError:
                    time.sleep(0.1)
            found = asyncio.run(measure(folder, url, options.n, options.workers))
        finally:
            server.terminate()
            server.join()
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, Python {platform.python_version()}"
    result = {"machine": machine, "problems": count, **found}
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
