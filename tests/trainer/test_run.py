"""The trainer as a user starts it: torchrun with two ranks and a real API server, stopped, resumed, and misled."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from environments.livecode.atropos_compat import encode_group
from tests.support.forked import Forked
from tests.trainer.conftest import VOCABULARY, make_groups
from trainer.tracking import run_id

ROOT = Path(__file__).parents[2]
STEPS = 3


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def api_server(folder: Path) -> Iterator[str]:
    """A real API server with its journal in `folder`."""
    port = str(free_port())
    command = ["-m", "environments.cli", "run-api", "--port", port, "--journal", str(folder / "journal")]
    with (folder / "api.log").open("w") as output:
        server = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                httpx.get(f"{url}/health", trust_env=False)
                break
            except httpx.TransportError:
                assert server.poll() is None
                time.sleep(0.05)
        yield url
    finally:
        server.kill()
        server.wait()


def post_groups(url: str, model: Path, first: int, last: int) -> None:
    """Groups number first to last - 1, sampled by version 0: their log-probabilities are the model's own."""
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for number, group in enumerate(make_groups([(9, [6, 7, 5, 8])] * last)[first:], first):
        rows, own = [], []
        for rollout in group.rollouts:
            ids = group.prompt + rollout.completion
            with torch.no_grad():
                logits = policy(torch.tensor([ids])).logits[0, len(group.prompt) - 1 : -1] / group.temperature
            picked = logits.log_softmax(-1).gather(1, torch.tensor(rollout.completion)[:, None])[:, 0]
            rows.append(ids)
            own.append([1.0] * len(group.prompt) + picked.tolist())
        body: dict[str, Any] = {
            "tokens": rows,
            "masks": [[-100] * len(group.prompt) + row[len(group.prompt) :] for row in rows],
            "scores": [1.0, -1.0, -1.0, 1.0],
            "inference_logprobs": own,
            "overrides": [
                {
                    "set_advantage_to_zero": False,
                    "finish_reason": "stop",
                    "versions": [[0, 0, len(row) - len(group.prompt)]],
                }
                for row in rows
            ],
            "group_overrides": {
                "group_id": f"g-{number}",
                "problem_id": "p",
                "temperature": group.temperature,
                "context": 64,
            },
        }
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        answer = httpx.post(f"{url}/scored_data", content=encode_group(body), headers=headers, trust_env=False)
        assert answer.status_code == 200, answer.text


def trainer_words(url: str, model: Path, run_dir: Path, *flags: str) -> list[str]:
    """The trainer's command line for three steps of two groups."""
    options = {
        "--model": model,
        "--run_dir": run_dir,
        "--steps": STEPS,
        "--api.url": url,
        "--batch.rollouts": 8,
        "--batch.group_size": 4,
        "--batch.context": 64,
        "--batch.max_tokens": 64,
        "--optimizer.lr": 0.01,
        "--checkpoint.every": 1,
        "--checkpoint.export": "false",
    }
    return [str(word) for pair in options.items() for word in pair] + list(flags)


def start_trainer(
    url: str,
    model: Path,
    run_dir: Path,
    *flags: str,
    ranks: int = 2,
    program: Path = ROOT / "trainer" / "main.py",
    packages: str = "",
) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", str(free_port())]
    return Forked(
        [sys.executable, *launcher, str(program), *trainer_words(url, model, run_dir, *flags)],
        cwd=run_dir.parent,
        env={**os.environ, "PYTHONPATH": packages},
        stderr=subprocess.PIPE,
        text=True,
    )


def with_tokenizer(model: Path, folder: Path) -> Path:
    """The model with a tokenizer whose every token is a word: token 7 is w7."""
    shutil.copytree(model, folder)
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


def losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_sigterm_saves_and_the_resumed_run_equals_the_uninterrupted_one(
    models: dict[str, Path], tmp_path: Path
) -> None:
    model, stopped, whole = models["qwen3"], tmp_path / "stopped", tmp_path / "whole"
    stopped.mkdir()
    whole.mkdir()
    speaking, plugins = with_tokenizer(model, tmp_path / "speaking"), str(ROOT / "tests" / "plugins" / "example_plugin")
    with api_server(stopped) as url, api_server(whole) as other:
        trainer = start_trainer(url, model, stopped)
        uninterrupted = start_trainer(other, speaking, whole, "--trackers", "csv", ranks=1, packages=plugins)
        try:
            post_groups(url, model, 0, 2)
            post_groups(other, model, 0, 6)
            until = time.monotonic() + 120
            while not (stopped / "metrics.jsonl").exists() and trainer.poll() is None and time.monotonic() < until:
                time.sleep(0.1)
            trainer.send_signal(signal.SIGTERM)  # torchrun hands it on to both ranks
            errors = trainer.communicate(timeout=240)[1]
            assert "saved after step 1 of 3; the same command resumes" in errors, errors
            assert (stopped / "checkpoints" / "latest").read_text().strip() == "step-00000001"

            post_groups(url, model, 2, 6)
            trainer = start_trainer(url, model, stopped, "--checkpoint.resume", "auto", ranks=1)
            for one in (trainer, uninterrupted):
                errors = one.communicate(timeout=120)[1]
                assert one.returncode == 0, errors
        finally:
            trainer.kill()
            uninterrupted.kill()
    assert len(losses(whole)) == STEPS
    assert losses(stopped) == pytest.approx(losses(whole), abs=1e-6)
    tracked = list(csv.reader((whole / f"{run_id(whole, 'csv')}.csv").read_text().splitlines()))
    assert [(step, float(loss)) for step, loss in tracked[:-1:5]] == list(zip("123", losses(whole), strict=True))
    trained = [json.loads(line)["groups"] for line in (whole / "trained.jsonl").read_text().splitlines()]
    groups = {f"g-{number}": group for number, group in enumerate(make_groups([(9, [6, 7, 5, 8])] * 6))}
    for step, text in (row for number, row in enumerate(tracked[:-1]) if number % 5):
        row = json.loads(text)
        rollout = groups[row["group"]].rollouts[row["rollout"]]
        assert row["group"] in trained[int(step) - 1]
        assert (row["step"], row["problem"], row["tokens"]) == (int(step), "p", len(rollout.completion))
        assert row["completion"].split() == [f"w{token}" for token in rollout.completion]
        assert row["prompt"].split() == [f"w{token}" for token in groups[row["group"]].prompt]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint.resume", "latest"], "error checkpoint 'latest': "),
        (
            ["--weights.servers", "http://127.0.0.1:9", "--weights.wait_s", "1"],
            "error weights to http://127.0.0.1:9, phase health: ",
        ),
        (["--init_from.run", "elsewhere"], "error checkpoint 'best': elsewhere/checkpoints has none"),
        (["--model", "elsewhere"], "error model elsewhere: no model there (no config.json)"),
        (["--memory_gib", "0.0001"], "error batch.max_tokens = 64, batch.context = 64 of "),
    ],
)
def test_what_is_missing_is_said_once_and_ends_every_rank(
    models: dict[str, Path], tmp_path: Path, flags: list[str], message: str
) -> None:
    trainer = start_trainer("http://127.0.0.1:9", models["llama"], tmp_path / "run", *flags)
    errors = trainer.communicate(timeout=240)[1]
    assert trainer.returncode == 1
    assert errors.count("\nerror ") + errors.startswith("error ") == 1, errors
    assert message in errors, errors
