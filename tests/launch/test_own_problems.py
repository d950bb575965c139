"""Training on problems of one's own, as docs/how-to says: by one command, and by four processes started by hand."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from environments.launch.processes import free_port
from environments.livecode.problems.load import load_problems
from environments.tools.audit import audit

ROOT = Path(__file__).resolve().parents[2]
ATROPOS = [sys.executable, "-m", "environments.cli"]
PROBLEMS = [
    {
        "question_id": "sum",
        "question_content": "Read two integers from one line and print their sum.",
        "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
    },
    {
        "id": "greatest", "source": "mine", "kind": "stdin",
        "statement": "Read integers from one line and print the greatest of them.",
        "tests": [{"input": "3 9 2\n", "output": "9\n"}, {"input": "-5 -7\n", "output": "-5\n"}],
    },
    {
        "id": "double", "source": "mine", "kind": "function", "fn_name": "double",
        "statement": "Return twice the number x.", "tests": [{"input": "4", "output": "8"}],
    },
]  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def block(page: str, heading: str) -> str:
    """The first indented block after a heading of a page in docs/how-to."""
    text = (ROOT / "docs" / "how-to" / page).read_text()
    after = text[text.index(heading) :]
    found = re.search(r"\n\n((?:    .*\n)+)", after)
    assert found is not None
    return re.sub(r"(?m)^    ", "", found.group(1))


def logs(run: Path) -> str:
    return "\n".join(f"{log}:\n{log.read_text()[-1500:]}" for log in sorted(run.glob("logs/*.log")))


def test_the_page_s_problems_are_read_and_its_commands_exist(tmp_path: Path) -> None:
    rows = block("own-problems.md", "`problems.jsonl` has one problem a line")
    path = tmp_path / "problems.jsonl"
    path.write_text(rows)
    assert [(problem.id, problem.kind) for problem in load_problems(path)] == [
        ("sum", "stdin"), ("twice", "function"), ("max", "stdin"),
    ]  # fmt: skip
    for name, program in {
        "sum": "print(sum(map(int, input().split())))",
        "twice": "def twice(x):\n    return 2 * x",
        "max": "print(max(map(int, input().split())))",
    }.items():
        (tmp_path / "solution.py").write_text(program)
        command = ["verify", str(tmp_path / "solution.py"), "--problems", str(path), "--problem", name]
        done = subprocess.run([*ATROPOS, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    typed = [
        line.split("#")[0].split() for line in block("own-problems.md", "# Train on your own problems").splitlines()
    ]
    assert [words[:2] for words in typed[2:]] == [["atropos", n] for n in ("verify", "init", "train", "report")]
    for words in typed[2:]:
        shown = subprocess.run([*ATROPOS, words[1], "--help"], capture_output=True, text=True, check=True).stdout
        assert [option for option in words if option.startswith("--") and option not in shown] == []


@pytest.mark.slow  # two starts of vLLM and trainer: three minutes alone on two cores
@pytest.mark.timeout(1800)
def test_own_problems_are_trained_on_by_one_command_that_ctrl_c_saves_and_that_goes_on(
    smollm2: Path, tmp_path: Path
) -> None:
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS))
    sizes = ["--steps", "3", "--groups", "2", "--group-size", "4", "--max-new-tokens", "64"]
    subprocess.run(
        [*ATROPOS, "init", "mine", "--model", str(smollm2), "--problems", "problems.jsonl", *sizes],
        cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    run = tmp_path / "runs" / "mine"
    command = [*ATROPOS, "train", "--config", "mine.yaml", "--environment.env.verifier_workers", "1"]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while not lines(run / "metrics.jsonl"):
            assert first.poll() is None, logs(run)
            time.sleep(0.2)
        first.send_signal(signal.SIGINT)
        shown, _ = first.communicate(timeout=900)
    finally:
        first.kill()
        first.wait()
    assert first.returncode == 130, shown + logs(run)
    saved = re.search(r"Saved after step (\d) of 3\. `(atropos train .*)` resumes", shown)
    assert saved, shown
    assert saved.group(2).split()[2:] == command[4:]
    assert "disk: at most" in shown
    assert "3 problems" in shown
    assert len(lines(run / "metrics.jsonl")) == int(saved.group(1))

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr + logs(run)
    assert f"resumes after step {saved.group(1)} of 3 steps" in done.stdout
    assert [row["step"] for row in lines(run / "metrics.jsonl")] == [1, 2, 3]
    assert (run / "export" / "model.safetensors").is_file()
    proof = audit(run)
    assert proof.violations == []
    assert proof.counts["groups trained on"] == 6
    for log in run.glob("logs/*.log"):
        assert "HTTP Request" not in log.read_text()
        if log.stem == "vllm":
            assert log.read_text().count("vLLM is ready") == 2

    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert "all 3 steps are done" in again.stdout


@pytest.mark.slow  # a start of vLLM and trainer, and two steps: two minutes alone on two cores
@pytest.mark.timeout(1200)
def test_the_page_s_four_processes_train_as_printed(smollm2: Path, tmp_path: Path) -> None:
    """Literally, but for sizes, ports and the place of the run's folder."""
    script = block("processes.md", "# Start the processes yourself")
    changed: dict[str, dict[str, Any]] = {
        "environment": {"env": {"group_size": 4, "max_new_tokens": 48, "max_concurrent_rollouts": 32}},
        "trainer": {"steps": 2, "batch": {"rollouts": 8, "group_size": 4}},
        "server": {},
    }
    for name, changes in changed.items():
        config = yaml.safe_load((ROOT / f"configs/demo/{name}.yaml").read_text())
        for key, value in changes.items():
            config[key] = {**config[key], **value} if isinstance(value, dict) else value
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
        assert f"configs/demo/{name}.yaml" in script
        script = script.replace(f"configs/demo/{name}.yaml", str(tmp_path / f"{name}.yaml"))
    for port in ("8000", "8001"):
        assert port in script
        script = script.replace(port, str(free_port()))
    run = tmp_path / "mine"
    script = script.replace("runs/mine", str(run))
    # In the order that is printed, each at once: they wait for each other. The last one runs in the foreground.
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "atropos").write_text(f'#!/bin/sh\nexec {sys.executable} -m environments.cli "$@"\n')
    (bin_folder / "atropos").chmod(0o755)
    variables = {**os.environ, "PATH": f"{bin_folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    output = (tmp_path / "output").open("w+")
    shell = shutil.which("bash")
    assert shell is not None
    hand = subprocess.Popen(
        [shell, "-c", script + "\nstatus=$?; wait $TRAINER; echo ended $status $?\n"],
        cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=variables, start_new_session=True,
    )  # fmt: skip
    try:
        hand.wait(1000)
    finally:
        os.killpg(hand.pid, signal.SIGKILL)
        hand.wait()
        output.close()
    said = (tmp_path / "output").read_text()
    assert "ended 0 0" in said, said[-6000:]
    for words in ("vLLM is ready", "the Atropos API server listens", "feeding 2 steps", "done: "):
        assert words in said
    assert "HTTP Request" not in said
    assert [row["step"] for row in lines(run / "metrics.jsonl")] == [1, 2]
    proof = audit(run)
    assert proof.violations == []
    assert proof.counts["groups trained on"] == 4
