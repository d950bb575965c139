"""Every command and option that a message or a page names exists, spelled as the command line takes it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import environments.cli as cli
from environments.common.settings import option_names
from environments.launch.config import LaunchConfig
from environments.launch.demo_config import DemoConfig
from environments.launch.serve_model import ServeConfig
from environments.livecode.config import RunConfig
from environments.tools.select_checkpoint import SelectConfig
from tests.support.sources import parsed
from trainer.budget import BudgetConfig
from trainer.config import TrainerConfig

ROOT = Path(__file__).resolve().parents[1]
MODELS = (RunConfig, ServeConfig, DemoConfig, SelectConfig, TrainerConfig, BudgetConfig, LaunchConfig)


def said() -> Iterator[tuple[str, str]]:
    """(where, text) of each string in the project's sources that is no docstring, and of each page."""
    for package in ("environments", "trainer"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(parsed(path)):
                if isinstance(node, ast.JoinedStr):
                    parts = [str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values]
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", "".join(parts)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        yield str(page.relative_to(ROOT)), page.read_text(encoding="utf-8")


def commands() -> dict[str, typer.core.TyperCommand]:
    group = typer.main.get_command(cli.app)
    return group.commands  # type: ignore[attr-defined,no-any-return]


def test_every_command_that_is_named_exists() -> None:
    known = set(commands())
    wrong = []
    for where, text in said():
        for name in re.findall(r"(?:`|^    )atropos ([a-z][a-z-]*)", text, flags=re.MULTILINE):
            wrong += [f"{where}: atropos {name}"] if name not in known else []
    assert wrong == []


def test_every_dotted_option_that_is_named_exists() -> None:
    known = {name for model in MODELS for name in option_names(model)}
    sections = {name.partition(".")[0] for name in known if "." in name} - {"environment", "trainer", "server"}
    wrong = []
    for where, text in said():
        for name in re.findall(r"--([a-z_]+\.[a-z_.]*[a-z_])", text):
            if name.partition(".")[0] in sections and name not in known and not name.endswith(".option"):
                wrong.append(f"{where}: --{name}")
    assert wrong == []


@pytest.mark.parametrize("command", ["budget", "pretrained", "metrics", "warmup", "verifier"])
def test_the_readme_names_each_program_below_atropos(command: str) -> None:
    assert f"atropos {command}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_no_message_names_a_module_that_is_not_there() -> None:
    wrong = []
    for where, text in said():
        for name in re.findall(r"python -m ([a-z_]+(?:\.[a-z_]+)*)", text):
            path = ROOT / name.replace(".", "/")
            if name.partition(".")[0] in ("environments", "trainer", "verifier_app", "benchmarks") and not (
                path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
            ):
                wrong.append(f"{where}: python -m {name}")
    assert wrong == []
