"""Flags as a mapping: `--section.option value`, `--section.option=value`, dashes and underscores alike."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from environments.common.errors import ConfigError
from environments.common.option_rules import EMPTY, kinds_of

_OPTION = re.compile(r"--[A-Za-z]")


@dataclass
class Flags:
    """What a command line says: the options, nested as in a file, and the dotted names of those that it gave."""

    values: dict[str, Any] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)
    """{dotted name: the flag as it was written}"""
    wants_help: bool = False


def parse(model: type[BaseModel], words: Sequence[str]) -> Flags:
    """The flags of a settings model; values stay text where the model converts them.

    Raises:
        ConfigError: an unknown option, one without its value, a list or mapping that cannot be read; all at once.
    """
    flags, faults = Flags(), []
    known = dict(_fields(model))
    left = list(words)
    while left:
        word = left.pop(0)
        if word in ("-h", "--help"):
            flags.wants_help = True
            continue
        if not _OPTION.match(word):
            faults.append(f"{word!r}: unexpected. Options are given as --name value.")
            continue
        flag, given, text = word.partition("=")
        name = flag[2:].replace("-", "_")
        if name not in known:
            _value(left, given)  # what follows an unknown option is no fault of its own
            faults.append(f"{flag}: unknown option. {nearest(name, _open(model))}")
            continue
        kinds = kinds_of(known[name])
        value = text if given else _value(left, given)
        if value is None:
            if bool not in kinds:
                faults.append(f"{flag}: needs a value. Write {flag} VALUE.")
                continue
            value = "true"
        try:
            _put(flags.values, name.split("."), _read(value, kinds))
        except ValueError as error:
            faults.append(f"{flag} = {value!r}: {error}")
            continue
        flags.given[name] = flag
    if faults and not flags.wants_help:
        raise ConfigError("\n  ".join(faults))
    return flags


def nearest(name: str, known: Sequence[str]) -> str:
    """A sentence that names the option that was probably meant, or those of its section."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"Did you mean {near[0]}?"
    section = name.rpartition(".")[0]
    siblings = [one for one in known if one.rpartition(".")[0] == section] or known
    return f"Known here: {', '.join(siblings)}."


def option_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted option of a settings model, in order of definition."""
    for name, kind in _fields(model, prefix):
        if not is_section(kind):
            yield name


def is_section(kind: Any) -> bool:
    """Whether a field holds options of its own."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both mappings, section by section; what `above` says counts."""
    both = dict(below)
    for name, value in above.items():
        old = both.get(name)
        both[name] = merged(old or {}, value) if isinstance(value, dict) and isinstance(old, dict | None) else value
    return both


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, info in model.model_fields.items():
        yield prefix + name, info.annotation
        if is_section(info.annotation):
            yield from _fields(info.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]


def _open(model: type[BaseModel]) -> list[str]:
    """Names that a message may propose: options that have an effect, and sections."""
    return [name for name, _ in _fields(model) if name not in hidden(model)]


def hidden(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Options that the model has and refuses; a section names its own in HIDDEN."""
    found = {prefix + name for name in getattr(model, "HIDDEN", ())}
    for name, info in model.model_fields.items():
        if is_section(info.annotation):
            found |= hidden(info.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
    return found


def _value(left: list[str], given: str) -> str | None:
    return left.pop(0) if not given and left and not _OPTION.match(left[0]) and left[0] != "-h" else None


def _read(text: str, kinds: set[Any]) -> Any:
    """A flag's text as a list or mapping where the option is one."""
    start = text.lstrip()[:1]
    if type(None) in kinds and text.strip().lower() in EMPTY:
        return text
    if kinds & {list, tuple}:
        return _json(text) if start == "[" else [part.strip() for part in text.split(",")] if text.strip() else []
    if dict in kinds:
        if start == "{":
            return _json(text)
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError('need KEY=VALUE,KEY=VALUE or {"KEY": "VALUE"}')
        return {key.strip(): value for key, _, value in pairs}
    if any(map(is_section, kinds)):
        if start != "{":
            raise ValueError("is a section; give its options one by one, or an object of JSON")
        return _json(text)
    return text


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    """Into the nested mapping; a list or mapping that is given again grows, anything else is replaced."""
    *sections, name = path
    for section in sections:
        values = values.setdefault(section, {})
    old = values.get(name)
    if isinstance(old, list) and isinstance(value, list):
        values[name] = old + value
    elif isinstance(old, dict) and isinstance(value, dict):
        values[name] = merged(old, value)
    else:
        values[name] = value
