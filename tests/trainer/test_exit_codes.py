"""How the trainer ends where it cannot begin: one line, an exit code that says whether starting again can help, and
nothing read or imported that was not needed to find out."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import save_file

import environments
import trainer
from environments.common.errors import BAD_INPUT_NOTE, ConfigError, LivecodeError
from tests.support.forked import completed
from tests.trainer.test_run import ROOT, api_server
from trainer.main import main

WITHOUT_TORCH = """
import sys
from trainer.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
print([name for name in ("torch", "transformers", "vllm", "atroposlib") if name in sys.modules], code)
"""


def start(*flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return completed(main, list(flags), **variables)


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--help"], 0),
        (["--model", "m", "--run_dir", "r", "--objective.name", "ppo"], 2),
        (["--model", "m", "--run_dir", "r", "--optimizer.lr", "-1", "--activation_checkpointing", "some"], 2),
    ],
)
def test_help_and_wrong_settings_do_not_import_torch(flags: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *flags], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == f"[] {code}", done.stderr


def test_a_run_folder_of_another_format_is_one_line_before_the_model_is_read(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text('{"format": 99}')
    words = ["--model", str(tmp_path / "no-model"), "--run_dir", str(run)]
    done = start(*words, **{BAD_INPUT_NOTE: str(tmp_path / "note")})
    assert done.returncode == 2, done.stderr
    assert [line for line in done.stderr.splitlines() if "error" in line] == [
        f"error {run}: a run folder of format 99, this version reads 1. Use the version that wrote it, or give "
        "another folder."
    ]
    assert "Traceback" not in done.stderr
    assert (tmp_path / "note").exists()


def test_a_run_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = start("--model", "m", "--run_dir", str(tmp_path / "file" / "run"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error run_dir {tmp_path}/file/run: cannot be written (")


def test_servers_and_api_are_asked_before_the_model_is_read(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "other").mkdir()
    (model / "config.json").write_text("{}")
    save_file({"weight": torch.zeros(2)}, model / "model.safetensors")  # of no model that could be built
    where = ["--model", str(model), "--run_dir", str(tmp_path / "run"), "--checkpoint.export", "false"]
    done = start(*where, "--weights.servers", "http://127.0.0.1:9", "--weights.wait_s", "0")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error weights to http://127.0.0.1:9, phase health: ")
    with api_server(tmp_path) as url:
        done = start(*where, "--api.url", f"{url}/nothing-here")
        assert done.stderr.splitlines()[-1].startswith(f"error POST {url}/nothing-here/contract answered HTTP 404")
        httpx.post(f"{url}/ack", json={"checkpoint_step": 3}, trust_env=False).raise_for_status()
        done = start(*where, "--api.url", url)
        assert done.returncode == 2
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"error {url}/rollback refuses: step 0 is before the acknowledged checkpoint of step 3")
        assert last.endswith("or start `atropos run-api` with another --journal")
    with api_server(tmp_path / "other") as url:
        done = start(*where, "--api.url", url)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error model {model}: cannot be loaded: ")


def test_supervise_does_not_start_bad_input_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text('{"format": 99}')
    words = ["supervise", "--name", "trainer", "--", sys.executable, str(ROOT / "trainer" / "main.py")]
    done = completed([sys.executable, "-m", "environments.cli", *words, "--model", "m", "--run_dir", run])
    assert done.returncode == 2
    assert done.stderr.count("a run folder of format 99") == 1
    assert done.stderr.splitlines()[-1].startswith("trainer: exit code 2: bad input, not started again")


def test_a_command_that_does_not_exist_is_one_line_of_supervise() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "environments.cli", "supervise", "--", "no-such-program"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error supervise: no-such-program: cannot be started (No such file or directory); give a program's name or "
        "path after --"
    ]


INTERNAL = {
    *(
        "DeltaError",
        "Dropped",
        "Interrupted",
        "NoChoice",
        "Refused",
        "RetryLater",
        "RetryVerification",
        "Unusable",
        "WeightFolderError",
    ),
    *("_NoAnswer", "_Stopped"),
}
"""Errors that never end a process: they are caught where they were expected, or travel in a server's answer."""


def test_every_error_of_the_project_has_an_exit_code() -> None:
    outside = set()
    for package in (environments, trainer):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.startswith(
                ("trainer.weight_sync.vllm_plugin", "trainer.weight_sync.vllm_disk")
            ) or module.name.endswith("__main__"):
                continue  # vLLM's processes import these
            for name, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
                if issubclass(kind, Exception) and kind.__module__.startswith(("environments", "trainer")):
                    outside |= set() if issubclass(kind, LivecodeError) else {name}
    assert outside <= INTERNAL, outside - INTERNAL
    assert (LivecodeError("x").exit_code, ConfigError("x").exit_code) == (1, 2)
