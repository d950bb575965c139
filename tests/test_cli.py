"""The `atropos` command finds environments by entry point and says what is wrong in one line."""

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

import environments.cli as cli

Run = Callable[..., Result]

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run() -> Run:
    return lambda *words: CliRunner().invoke(cli.app, list(words))


def test_help_lists_every_command(run: Run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in ("run-env", "run-api", "serve-model", "verify", "demo"):
        assert command in result.output


def test_livecode_is_found_by_its_entry_point() -> None:
    assert cli.installed_environments()["livecode"].value == "environments.livecode.environment:LivecodeEnv"


def test_an_unknown_environment_lists_what_is_installed(run: Run) -> None:
    result = run("run-env", "livecod")
    assert result.exit_code == 2
    assert "livecod: no such environment" in result.output
    assert "livecode" in result.output.split("Installed:")[1]


def test_an_unknown_mode_lists_the_modes(run: Run) -> None:
    result = run("run-env", "livecode", "train")
    assert result.exit_code == 2
    assert "serve, process, evaluate" in result.output


def test_an_environment_of_plain_atropos_gets_its_own_command_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    class Plain:
        @staticmethod
        def cli() -> None:
            seen.append(list(sys.argv))

    monkeypatch.setattr(
        cli, "installed_environments", lambda: {"plain": EntryPoint("plain", "unused:unused", cli.GROUP)}
    )
    monkeypatch.setattr(EntryPoint, "load", lambda self: Plain)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    result = run("run-env", "plain", "process", "--env.group_size", "4")
    assert result.exit_code == 0
    assert seen == [["plain", "process", "--env.group_size", "4"]]


def test_serve_is_the_mode_when_none_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[str]]] = []

    class Ours:
        @staticmethod
        def run_command(mode: str, argv: list[str]) -> int:
            seen.append((mode, argv))
            return 3

    monkeypatch.setattr(cli, "installed_environments", lambda: {"x": EntryPoint("x", "unused:unused", cli.GROUP)})
    monkeypatch.setattr(EntryPoint, "load", lambda self: Ours)
    assert run("run-env", "x", "--env.seed", "1").exit_code == 3
    assert seen == [("serve", ["--env.seed", "1"])]


def test_a_port_in_use_is_one_clear_error(run: Run) -> None:
    from environments.api_server.launch import bind

    with bind("127.0.0.1", 0) as sock:
        sock.listen()
        result = run("run-api", "--port", str(sock.getsockname()[1]))
    assert result.exit_code == 2
    assert "is in use" in result.output
    assert "--port" in result.output


PROGRAMS = (
    *("run-api", "init", "train", "demo", "supervise", "serve-model", "run-trainer", "verifier", "verifier serve"),
    *(
        "data",
        "data build",
        "data check",
        "data audit",
        "data calibrate",
        "data filter",
        "data show",
        "data push",
        "warmup",
        "pretrained",
    ),
    *("report", "watch", "diff", "export", "audit", "rejudge", "verify"),
    *("select", "replay", "budget", "plan", "metrics"),
)

HELP = """
import sys
from environments.cli import app
for words in sys.argv[1:]:
    try:
        app([*words.split(), "--help"])
    except SystemExit as ended:
        assert not ended.code, words
    heavy = {"torch", "transformers", "atroposlib", "modal"} & set(sys.modules)
    assert not heavy, (words, heavy)
"""


def test_help_of_every_command_imports_nothing_heavy() -> None:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    commands = group.commands
    assert set(commands) == {name.split()[0] for name in (*PROGRAMS, "run-env")}
    words = [*PROGRAMS, "run-env livecode", "run-env livecode evaluate"]
    done = subprocess.run([sys.executable, "-c", HELP, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_underscores_in_the_options_of_the_verifier_are_dashes() -> None:
    words = [sys.executable, "-m", "verifier_app", "serve", "--max_body_mb", "0"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "VERIFIER_MAX_BODY_MB" in done.stderr
    assert "greater than or equal to 1" in done.stderr
