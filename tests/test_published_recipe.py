"""The shipped configurations are the published recipe: every difference is declared with its reason."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from environments.livecode.config import RunConfig
from trainer.config import TrainerConfig

FOLDER = Path(__file__).parents[1] / "configs" / "nouscoder-14b"
KINDS = {"announcement": "announcement", "environment": "published (environment)"}
KINDS |= {"trainer family": "published (trainer family)"}
NAMES = ("train-32k", "train-40k", "environment-32k", "environment-40k", "eval-40k", "eval-81920")
PUBLISHED: list[dict[str, Any]] = yaml.safe_load((FOLDER / "published.yaml").read_text(encoding="utf-8"))


def entries(name: str) -> Iterator[dict[str, Any]]:
    """What is published of the options of one file."""
    for entry in PUBLISHED:
        if name in entry["in"] or name.partition("-")[0] in entry["in"]:
            yield entry


def value_of(name: str, option: str) -> Any:
    """The option's value in a shipped file, its default where the file leaves it out."""
    found: Any = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    model: Any = TrainerConfig if name.startswith("train") else RunConfig
    for part in option.split("."):
        field = model.model_fields[part]
        model = field.annotation
        found = found.get(part, field.get_default(call_default_factory=True)) if isinstance(found, dict) else None
    return list(found) if isinstance(found, tuple) else found


def marks(name: str) -> dict[str, str]:
    """The comment behind each option that a file holds."""
    found, section = {}, ""
    for line in (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        if top := re.match(r"(\w+):(?:\s|$)", line):
            section = "" if re.match(r"\w+: *[^#\s]", line) else f"{top[1]}."
            option = top[1]
        elif inner := re.match(r"  (\w+):", line):
            option = section + inner[1]
        else:
            continue
        if "#" in line:
            found[option] = line.partition("#")[2].strip()
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_published_value_is_ours_or_the_difference_has_a_reason(name: str) -> None:
    for entry in entries(name):
        value = value_of(name, entry["option"])
        if "why" in entry:
            assert (value, len(entry["why"]) > 20) == (entry["ours"], True), entry
            assert entry["ours"] != entry["published"], f"{entry['option']}: no difference, so no reason is due"
        else:
            assert value == entry["published"], f"{name}: {entry['option']}"


@pytest.mark.parametrize("name", NAMES)
def test_every_mark_in_a_file_is_in_the_table_and_every_entry_is_marked(name: str) -> None:
    found = marks(name)
    table = {entry["option"]: entry for entry in entries(name)}
    marked = {option: text for option, text in found.items() if text.startswith(("published", "announcement"))}
    by_hand = {"env.problems", "env.thinking", "model"}  # what names a thing and not a value
    for option, text in marked.items():
        if option in by_hand:
            continue
        entry = table.pop(option)
        if "why" not in entry:
            assert text.startswith(KINDS[entry["source"]]), f"{name}: {option}: {text}"
    for option, entry in table.items():  # a default that is the published value need not be written out
        assert option not in found or "why" in entry or option in by_hand, f"{name}: {option}: {found.get(option)}"


@pytest.mark.parametrize("name", NAMES)
def test_our_own_choices_say_why(name: str) -> None:
    for option, text in marks(name).items():
        if text.startswith("our choice"):
            assert len(text.partition(":")[2].strip()) > 3, f"{name}: {option}: {text}"


def test_a_file_of_the_table_exists_for_every_name_in_it() -> None:
    kinds = {name.partition("-")[0] for name in NAMES} | set(NAMES)
    assert {place for entry in PUBLISHED for place in entry["in"]} <= kinds
    assert {entry["source"] for entry in PUBLISHED} == set(KINDS)
