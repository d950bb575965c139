"""What the pages name exists: links, and files by their path from the repository's root."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel

from environments import cli
from environments.common.flags import option_names
from environments.launch.config import LaunchConfig
from environments.launch.serve_model import ServeConfig
from environments.livecode.config import RunConfig
from environments.tools.plan.config import PlanConfig
from environments.tools.select_checkpoint import SelectConfig
from trainer.budget import BudgetConfig
from trainer.config import TrainerConfig
from trainer.metric_table import METRICS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("README.md")),
    ROOT / "verifier_app" / "THREATS.md", ROOT / "verifier_app" / "judge" / "README.md",
]  # fmt: skip
ROOMS = "environments|trainer|verifier_app|configs|tests|benchmarks|requirements|docs|examples"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_is_named_by_its_path_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(rf"(?<![\w/.~])((?:{ROOMS})/[\w./-]*\w)", text))
    folders = {path for path in named if "." not in path.rpartition("/")[2]}
    assert {path for path in named - folders if not (ROOT / path).exists()} == set()


def test_every_row_of_the_rooms_names_files_that_are_in_them() -> None:
    room = ""
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 3 or cells[0] in ("folder", "---"):
            continue
        below = cells[0].removeprefix("- ")
        room = room if below != cells[0] else below
        folder = ROOT / room / (below if below != cells[0] else "")
        assert folder.is_dir(), folder
        for name in re.findall(r"[\w./]+\.(?:py|md)", cells[2]):
            assert (folder / name).is_file(), folder / name


MODELS: dict[str, type[BaseModel]] = {
    "run-env": RunConfig, "serve-model": ServeConfig, "run-trainer": TrainerConfig, "train": LaunchConfig,
    "select": SelectConfig, "budget": BudgetConfig, "plan": PlanConfig,
}  # fmt: skip
OTHERS = {"--config", "--help", "--nproc-per-node"}  # of every command with a file, and torchrun's


def typed() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of each `atropos` command in a block of a page."""
    for page in PAGES:
        for line in re.findall(r"(?m)^(?:    )?((?:[A-Z_]+=\S+ )*atropos .*)$", page.read_text(encoding="utf-8")):
            words = shlex.split(re.split(r"\s#\s", line)[0].rstrip("\\& ").replace("[", " ").replace("]", " "))
            while "=" in words[0]:
                words.pop(0)
            yield page.name, words[1:]


def flags_of(words: list[str]) -> set[str] | None:
    """The flags that a command takes; None for one that hands them on."""
    if (model := MODELS.get(words[0])) is not None:
        below: dict[str, type[BaseModel]] = (
            {"environment": RunConfig, "trainer": TrainerConfig, "server": ServeConfig} if words[0] == "train" else {}
        )
        parts = {f"--{part}.{name}" for part, its in below.items() for name in option_names(its)}
        return {f"--{name}" for name in option_names(model)} | OTHERS | parts
    command: Any = typer.main.get_command(cli.app).commands[words[0]]  # type: ignore[attr-defined]
    if hasattr(command, "commands"):
        command = command.commands[words[1]]
    found = {flag for param in command.params for flag in param.opts}
    if found - {"--help"} and command.context_settings.get("ignore_unknown_options"):  # the environment's options
        found |= {f"--{name}" for name in option_names(RunConfig)} | OTHERS
    return found if found - {"--help"} else None


def test_every_command_of_a_page_is_taken_by_the_command_line() -> None:
    found = list(typed())
    assert len(found) > 30
    wrong = []
    for page, words in found:
        known = flags_of(words)
        given = [word.partition("=")[0] for word in words if word.startswith("--")]
        named = [flag for flag in given if known is not None and flag not in known]
        named = [flag for flag in named if flag.replace("-", "_").replace("__", "--", 1) not in known]  # type: ignore[operator]
        wrong += [f"{page}: atropos {' '.join(words)}: {flag}" for flag in named if not flag.endswith(".option")]
    assert wrong == []


def test_every_page_is_in_the_site() -> None:
    listed = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["strict"] is True
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {name for name in listed if not name.startswith("reference/")} == pages


def test_the_reference_names_every_option_command_and_metric() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        pages = importlib.import_module("reference_pages").pages()
    finally:
        sys.path.pop(0)
    for model, page in ((RunConfig, "environment"), (TrainerConfig, "trainer"), (LaunchConfig, "train")):
        rows = re.findall(r"^\| `([\w.]+)` \|.*\| (.*) \|$", pages[f"reference/{page}.md"], flags=re.MULTILINE)
        names = {name for name, _ in rows}
        assert names <= set(option_names(model))
        assert len(names) > 10
        assert [name for name, sentence in rows if not sentence] == []
    group: Any = typer.main.get_command(cli.app)
    alone = [name for name, command in group.commands.items() if not hasattr(command, "commands")]
    assert [name for name in alone if f"## atropos {name}\n" not in pages["reference/commands.md"]] == []
    assert [name for name in METRICS if f"| `{name}` |" not in pages["reference/metrics.md"]] == []
    assert str(ROOT) not in "".join(pages.values())
    listed = re.findall(r": (reference/[\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert set(listed) == set(pages)
