"""`--help` of a settings model: how it is called, its options in three groups, an example."""

from __future__ import annotations

import json
import shutil
import textwrap
import types
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from environments.common.flags import hidden, is_section

_NAME_WIDTH = 38
_SAID = (
    "Options come from the YAML file and from flags; a flag beats the file. Dashes and underscores are the same, "
    "a list is written a,b,c, and empty is '' or null."
)


def describe(model: type[BaseModel], program: str, *, leave_out: Sequence[str] = ()) -> str:
    """The help of a model. It says in START and COMMON which options come first, in USAGE and EXAMPLE how it is run.

    Args:
        leave_out: sections that have no effect in this call.
    """
    gone = hidden(model)
    rows = [
        (name, info)
        for name, info in _fields(model)
        if name not in gone and not any(name.startswith(f"{section}.") for section in leave_out)
    ]
    start, common = getattr(model, "START", ()), getattr(model, "COMMON", ())
    required = [name for name, info in rows if info.is_required() and name not in start]
    first = [*start, *required]
    groups = {
        "Start here": [row for name in first for row in rows if row[0] == name],
        "Common": [row for name in common for row in rows if row[0] == name],
        "Advanced" if first or common else "Options": [row for row in rows if row[0] not in (*first, *common)],
    }
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
    usage = getattr(model, "USAGE", "") or f"{program} [--config FILE] [--option value ...]"
    lines = [f"usage: {usage}", "", *textwrap.wrap(" ".join((model.__doc__ or "").split()), width), ""]
    lines += textwrap.wrap(_SAID, width)
    for title, group in groups.items():
        if title == "Start here":
            lines += ["", title, *_row("--config FILE", "YAML file of options.", width)]
        elif group:
            lines += ["", title]
        for name, info in group:
            lines += _row(f"--{name.replace('_', '-')} {_kind(info.annotation)}", _sentence(info), width)
    if more := getattr(model, "MORE", ""):
        lines += ["", *textwrap.wrap(more, width)]
    if example := getattr(model, "EXAMPLE", ""):
        lines += ["", "Example", *(f"  {line}" for line in example.strip().splitlines())]
    return "\n".join(lines)


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, info in model.model_fields.items():
        if is_section(info.annotation):
            yield from _fields(info.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield prefix + name, info


def options_of(model: type[BaseModel]) -> list[tuple[str, str, str, str]]:
    """(dotted name, kind of value, default or "", sentence) of each option, in order of definition."""
    gone = hidden(model)
    rows = []
    for name, info in _fields(model):
        if name in gone:
            continue
        default = None if info.is_required() else info.get_default(call_default_factory=True)
        shown = "required" if info.is_required() else "" if default in (None, []) else _shown(default)
        rows.append((name, _kind(info.annotation), shown, info.description or ""))
    return rows


def _row(name: str, sentence: str, width: int) -> list[str]:
    told = textwrap.wrap(sentence, width - _NAME_WIDTH - 2) or [""]
    head = f"  {name}"
    if len(head) >= _NAME_WIDTH:
        return [head, *(" " * _NAME_WIDTH + part for part in told)]
    return [head.ljust(_NAME_WIDTH) + told[0], *(" " * _NAME_WIDTH + part for part in told[1:])]


def _sentence(info: FieldInfo) -> str:
    if info.is_required():
        return f"{info.description} (required)"
    default = info.get_default(call_default_factory=True)
    if default is None or default == []:
        return info.description or ""
    return f"{info.description} (default: {_shown(default)})"


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_shown, value))
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if isinstance(value, bool | dict) else str(value)


def _kind(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0])
    if origin is Literal:
        return "{" + ",".join(map(str, inner)) + "}"
    if origin in (Union, types.UnionType):
        return "|".join(dict.fromkeys(_kind(one) for one in inner if one is not type(None)))
    if origin is list:
        return f"{_kind(inner[0])},..."
    if origin is tuple:
        return ",".join(map(_kind, inner))
    if origin is dict:
        return "KEY=VALUE,..."
    names = {int: "INT", float: "NUMBER", bool: "{true,false}", Path: "PATH", str: "TEXT"}
    return names.get(annotation, "VALUE")
