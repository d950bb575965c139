"""The whole loop with every part real: API server, vLLM, environment, judge, torchrun; two steps of a small setting."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from environments.api_server.launch import bind
from environments.common.packed import IDS, REALS, unpacked
from environments.launch.demo_config import CONFIGS
from environments.launch.processes import tail
from environments.tools.audit import audit
from environments.tools.report.collect import collect
from tests.conftest import VllmServer
from trainer.weight_sync.publisher import verify_sync

ATROPOS = [sys.executable, "-m", "environments.cli"]


def small(folder: Path) -> list[str]:
    """The demo's own files with fewer and shorter rollouts, on-policy so that nothing is stale."""
    environment = yaml.safe_load((CONFIGS / "environment.yaml").read_text())
    environment["env"] |= {"group_size": 4, "max_new_tokens": 48, "max_staleness": 0, "max_concurrent_rollouts": 32}
    environment["evaluation"] |= {"limit": 1}
    trainer = yaml.safe_load((CONFIGS / "trainer.yaml").read_text())
    trainer["batch"] |= {"rollouts": 8, "group_size": 4}
    trainer["api"] = {"batch_deadline_s": 240}
    flags = []
    for name, content in (("environment", environment), ("trainer", trainer)):
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        flags += [f"--{name}_config", str(path)]
    return flags


SECRETS = ("WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY", "MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET", "VERIFIER_TOKEN")
CANARY = "canary-a41c77"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def processes_naming(word: str) -> list[int]:
    """Live processes whose command line holds `word`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and word in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def descendants(pid: int) -> list[int]:
    """Children, their children and so on."""
    children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [below for child in children for below in descendants(child)]


@pytest.fixture(scope="module")
def finished(vllm_server: VllmServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two steps."""
    folder = tmp_path_factory.mktemp("demo")
    run_dir = folder / "run"
    done = subprocess.run(
        [*ATROPOS, "demo", "--steps", "2", "--eval_samples", "1", "--run-dir", str(run_dir)]
        + ["--model", str(vllm_server.model), "--server_url", vllm_server.url, *small(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, **dict.fromkeys(SECRETS, CANARY)},
    )
    logs = "\n".join(f"{log}:\n{tail(log, 8)}" for log in sorted(run_dir.glob("logs/*.log")))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
    (folder / "screen.txt").write_text(done.stdout)
    return run_dir


pytestmark = pytest.mark.timeout(900)


def test_every_step_is_trained_on_one_whole_batch_of_fresh_tokens(finished: Path) -> None:
    rows = lines(finished / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["groups"] == 2
        assert row["rollouts"] == 8
        assert row["staleness_max"] == 0
        assert row["tokens_trained"] > 0
        assert row["grad_norm"] > 0


def test_trained_tokens_are_the_sampled_tokens(finished: Path) -> None:
    # In fp32 and on-policy the trainer's log-probabilities equal the sampler's only when tokens, positions,
    # temperature and weights are the same on both sides.
    for row in lines(finished / "metrics.jsonl"):
        assert row["mismatch_abs_max"] < 5e-3


def test_the_server_was_compared_with_the_trainer_after_the_first_two_publications(finished: Path) -> None:
    # Versions 0 and 1 are in the first row; version 2 is not due.
    first, second = lines(finished / "metrics.jsonl")
    assert 0 < first["sync_difference_max"] < 2e-3
    assert second["sync_difference_max"] is None


def test_only_groups_whose_rewards_differ_are_sent(finished: Path) -> None:
    groups = lines(finished / "environment.jsonl")
    sent = [group for group in groups if group["sent"]]
    assert len(sent) >= 4
    assert all(len(set(group["scores"])) == 2 for group in sent)
    assert all(group["dropped"] for group in groups if not group["sent"])


def test_the_running_server_computes_with_the_trained_weights(finished: Path, vllm_server: VllmServer) -> None:
    version = httpx.get(f"{vllm_server.url}/weight_info").json()["weight_version"]
    model = AutoModelForCausalLM.from_pretrained(finished / "export", dtype=torch.float32)

    def logprobs(prompt: list[int], sampled: list[int]) -> list[float]:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + sampled])).logits[0, len(prompt) - 1 : -1]
        found: list[float] = logits.log_softmax(-1).gather(1, torch.tensor(sampled)[:, None])[:, 0].tolist()
        return found

    assert version == "2"
    assert verify_sync(vllm_server.url, [1, 4093, 198, 28120, 253], logprobs, version=2) < 2e-3


def test_the_journals_prove_that_each_group_was_trained_on_once(finished: Path) -> None:
    found = audit(finished)
    assert found.violations == []
    assert found.counts["groups trained on"] == 4
    assert found.counts["rollouts with a score"] >= 16
    assert found.notes == []


def test_no_secret_of_the_environment_is_in_the_run_folder(finished: Path) -> None:
    written = [path for path in [finished.parent / "screen.txt", *finished.rglob("*")] if path.is_file()]
    assert len(written) > 10
    assert [path for path in written if CANARY.encode() in path.read_bytes()] == []


def test_the_run_folder_holds_what_the_user_needs(finished: Path) -> None:
    assert {path.name for path in (finished / "config").iterdir()} >= {"demo.yaml", "environment.yaml", "trainer.yaml"}
    assert (finished / "checkpoints" / "latest").exists()
    assert {path.stem for path in (finished / "logs").iterdir()} >= {"api", "environment", "trainer"}
    rollouts = [row for path in (finished / "rollouts").iterdir() for row in lines(path)]
    assert rollouts
    assert all(row["prompt"] and row["status"] and "code" in row for row in rollouts)
    evaluations = lines(finished / "evaluations.jsonl")
    assert len(evaluations) == 4
    page = collect(finished, 1000)
    trained = [one["trained"] for one in page["tokens"].values() if "trained" in one]
    assert {one["step"] for one in trained} == {1, 2}  # in the report they meet the sampler's
    for one in page["tokens"].values():
        spoken = "".join(page["vocabulary"][token] for token in unpacked(one["ids"], IDS).tolist())
        assert spoken.encode("latin-1").decode("utf-8", "replace")
        assert "trained" not in one or unpacked(one["trained"]["old"], REALS).size == unpacked(one["ids"], IDS).size
    assert [(row["step"], row["weight_version"]) for row in evaluations] == [(0, 0)] * 2 + [(2, 2)] * 2


def test_the_screen_shows_each_step_and_the_gain(finished: Path) -> None:
    screen = (finished.parent / "screen.txt").read_text()
    for words in (
        "Atropos API server",
        "held-out, step 0: new instances",
        "held-out, step 2",
        "generate+judge/train/sync",
        "points",
    ):
        assert words in screen


def test_nothing_that_the_run_started_survives_it(finished: Path) -> None:
    assert processes_naming(str(finished)) == []


def test_a_port_in_use_is_one_error_with_the_log_s_last_lines(smollm2: Path, tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*ATROPOS, "demo", "--run-dir", str(tmp_path / "run"), "--model", str(smollm2), "--api_port", port],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "api ended" in done.stdout
    assert f"port {port} on 127.0.0.1 is in use" in done.stdout


def test_a_missing_model_is_one_error_before_anything_starts(tmp_path: Path) -> None:
    done = subprocess.run(
        [*ATROPOS, "demo", "--run-dir", str(tmp_path / "run"), "--model", str(tmp_path / "nothing")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no model there" in done.stderr
    assert not (tmp_path / "run").exists()


def test_ctrl_c_stops_everything_the_demo_started(smollm2: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    demo = subprocess.Popen(
        [*ATROPOS, "demo", "--run-dir", str(run_dir), "--model", str(smollm2)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    end = time.monotonic() + 60
    started: list[int] = []
    # A log file is there before the process that writes it, so the processes themselves are counted.
    while len(started) < 2 and time.monotonic() < end:
        time.sleep(0.1)
        started = descendants(demo.pid)
    demo.send_signal(signal.SIGINT)
    out, _ = demo.communicate(timeout=240)
    assert demo.returncode == 130
    assert "stopping what this run started" in out
    assert len(started) >= 2
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow  # four starts of vLLM and trainer on top of a run of its own: several minutes
@pytest.mark.timeout(1800)
def test_whatever_dies_in_a_demo_is_started_again_and_nothing_is_lost(smollm2: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    demo = subprocess.Popen(
        [*ATROPOS, "demo", "--steps", "4", "--eval_samples", "1", "--run-dir", str(run_dir), "--model", str(smollm2)]
        + small(tmp_path),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def steps() -> int:
        path = run_dir / "metrics.jsonl"
        return len(path.read_bytes().splitlines()) if path.exists() else 0

    def kill(word: str) -> None:
        victims = [pid for pid in descendants(demo.pid) if word in Path(f"/proc/{pid}/cmdline").read_text()]
        os.kill(victims[-1], signal.SIGKILL)

    try:
        for after, word in ((1, "trainer/main.py"), (2, "run-api"), (2, "run-env"), (3, "vllm.entrypoints")):
            end = time.monotonic() + 600
            while steps() < after:
                assert demo.poll() is None
                assert time.monotonic() < end
                time.sleep(0.2)
            kill(word)
        out, _ = demo.communicate(timeout=900)
    finally:
        demo.terminate()
    assert demo.returncode == 0, out
    for name in ("trainer", "api", "environment", "vllm"):
        assert f"{name}: ended with " in out
    found = audit(run_dir)
    assert found.violations == []
    assert found.counts["steps trained"] == 4


def test_the_demo_ends_with_the_commands_that_come_next(finished: Path, tmp_path: Path) -> None:
    shown = (finished.parent / "screen.txt").read_text()
    named = [line.split("       ")[0].split() for line in shown.splitlines() if line.startswith("  atropos ")]
    assert [words[1] for words in named] == ["report", "rejudge", "demo"]
    words = [str(tmp_path / "again") if word.endswith("-again") else word for word in named[1][1:]]
    done = subprocess.run([*ATROPOS, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "programs judged again" in done.stdout
