"""The reference pages of the site, made from the code: options, commands, metrics, fields of a problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from environments import cli
from environments.common.option_help import options_of
from environments.dataset.cli import app as data_cli
from environments.launch.config import LaunchConfig
from environments.launch.demo_config import DemoConfig
from environments.launch.serve_model import ServeConfig
from environments.livecode.config import RunConfig
from environments.livecode.problems.problem import Problem
from environments.tools.plan.config import PlanConfig
from environments.tools.select_checkpoint import SelectConfig
from trainer.budget import BudgetConfig
from trainer.config import TrainerConfig
from trainer.metric_table import markdown as metrics

ROOT = Path(__file__).parents[1]
OPTIONS: dict[str, tuple[str, type[BaseModel]]] = {
    "environment": ("atropos run-env livecode", RunConfig),
    "trainer": ("atropos run-trainer", TrainerConfig),
    "train": ("atropos train", LaunchConfig),
    "serve-model": ("atropos serve-model", ServeConfig),
    "demo": ("atropos demo", DemoConfig),
    "select": ("atropos select", SelectConfig),
    "budget": ("atropos budget", BudgetConfig),
    "plan": ("atropos plan", PlanConfig),
}


def pages() -> dict[str, str]:
    """Path below docs/ -> Markdown."""
    found = {f"reference/{name}.md": options(*row) for name, row in OPTIONS.items()}
    return found | {
        "reference/commands.md": commands(),
        "reference/metrics.md": f"# Metrics of the trainer\n\n{metrics()}",
        "reference/problem.md": f"# Fields of a problem\n\n{_table(Problem)}",
    }


def options(program: str, model: type[BaseModel]) -> str:
    """The options of one settings model as a page."""
    return f"# Options of `{program}`\n\n{' '.join((model.__doc__ or '').split())}\n\n{_table(model)}"


def _table(model: type[BaseModel]) -> str:
    lines = ["| name | value | default | meaning |", "|---|---|---|---|"]
    for name, kind, default, sentence in options_of(model):
        default = default.replace(f"{ROOT}/", "")
        cells = [f"`{name}`", f"`{kind}`", f"`{default}`" if default else "", sentence]
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def commands() -> str:
    """Every command with its sentence, its arguments and flags."""
    parts = ["# Commands\n"]
    for prefix, app in (("atropos", cli.app), ("atropos data", data_cli)):
        group: Any = typer.main.get_command(app)
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                continue
            parts.append(f"## {prefix} {name}\n\n{command.help or ''}\n")
            rows = [
                f"| `{'/'.join(param.opts)}` | {(getattr(param, 'help', None) or '').replace('|', chr(92) + '|')} |"
                for param in command.params
                if getattr(param, "help", None)
            ]
            if rows:
                parts.append("\n".join(["| argument | meaning |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)
