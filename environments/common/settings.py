"""Settings from one YAML file and dotted flags, checked before anything starts.

`load(Model, argv)` reads ``--config FILE`` and every ``--section.field value`` flag; a flag beats the file,
the file beats the default. Everything that is wrong is reported at once: field, value and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ValidationError

from environments.common.errors import BAD_INPUT_NOTE, ConfigError, note_bad_input
from environments.common.flags import hidden, merged, nearest, option_names, parse
from environments.common.option_help import describe
from environments.common.option_rules import PathText, StrictModel, Url, expanded

__all__ = [
    "BAD_INPUT_NOTE",
    "ConfigError",
    "PathText",
    "Section",
    "Settings",
    "Url",
    "explain",
    "load",
    "note_bad_input",
    "option_names",
    "read_yaml",
    "without_password",
    "write_yaml",
]


class Section(StrictModel):
    """A part of a configuration: unknown keys are errors."""


class Settings(StrictModel):
    """A whole configuration: YAML and flags only: no environment variables that nobody sees."""

    USAGE: ClassVar[str] = ""
    START: ClassVar[tuple[str, ...]] = ()
    COMMON: ClassVar[tuple[str, ...]] = ()
    MORE: ClassVar[str] = ""
    EXAMPLE: ClassVar[str] = ""


S = TypeVar("S", bound=Settings)


def load(model: type[S], argv: Sequence[str], program: str = "", *, leave_out: Sequence[str] = ()) -> S:
    """The validated settings of `argv` (no program name in it).

    Args:
        leave_out: sections that `--help` does not show, since they have no effect in this call.

    Raises:
        ConfigError: a missing or broken file, an unknown key, a wrong type, a refused combination.
        SystemExit: after ``--help``, which lists every option with its sentence.
    """
    path, words = _take_config(list(argv))
    flags = parse(model, words)
    if flags.wants_help:
        print(describe(model, program, leave_out=leave_out))
        raise SystemExit(0)
    from_file = read_yaml(path) if path else {}
    try:
        return model.model_validate(merged(from_file, flags.values))
    except ValidationError as error:
        raise ConfigError(explain(error, model, str(path) if path else "settings", flags.given)) from None


class _Loader(yaml.SafeLoader):
    """YAML in which each key of a mapping occurs once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name, line = self.construct_object(key, deep=True), key.start_mark.line + 1
            if not isinstance(name, str):
                raise ConfigError(f"line {line}: the key {name!r} is a {type(name).__name__}; put it in quotes")
            if name in seen:
                raise ConfigError(
                    f"line {line}: {name} is on line {seen[name]} already, the second would replace the first; "
                    "leave one of them out"
                )
            seen[name] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError when it is missing, broken, not a mapping, or has a key twice."""
    try:
        loader = _Loader(Path(path).read_text(encoding="utf-8"))
        try:
            loaded = loader.get_single_data()
        finally:
            loader.dispose()
    except FileNotFoundError:
        raise ConfigError(f"--config {path}: no such file. Give the path of a YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: cannot be read ({error}).") from None
    except (yaml.YAMLError, yaml.reader.ReaderError) as error:
        raise ConfigError(f"--config {path}: not valid YAML: {' '.join(str(error).split())}") from None
    except ConfigError as error:
        raise ConfigError(f"--config {path}: {error}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"--config {path}: holds a {type(loaded).__name__}, need `key: value` lines.")
    return loaded


def write_yaml(settings: BaseModel, path: str | Path) -> None:
    """Writes the settings as used, with every default, to `path`."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def explain(error: ValidationError, model: type[BaseModel], where: str, given: dict[str, str] | None = None) -> str:
    """One line for each thing that is wrong: the dotted field, the value, what to do; by its source.

    Args:
        where: the file, for what no flag said.
        given: {dotted name: flag} of the command line.
    """
    known = [name for name in option_names(model) if name not in hidden(model)]
    known += sorted({name.rpartition(".")[0] for name in known} - {""})
    said: dict[str, list[str]] = {}
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"] if not str(part).startswith("function-"))
        if item["type"] == "extra_forbidden":
            line = f"{field}: unknown option. {nearest(field, known)}"
        elif item["type"] == "missing":
            line = f"{field}: required. Set it in the file or by --{field}."
        else:
            message = item["msg"].removeprefix("Value error, ")
            value = "" if isinstance(item["input"], dict) or not field else f" = {item['input']!r}"
            line = f"{field}{value}: {message}" if field else message
        source = "" if item["type"] == "missing" else _flags_that_said(field, line, given or {})
        said.setdefault(source or where, []).append(line)
    return "\n".join(
        f"{source}: " + ("\n  " if len(lines) > 1 else "") + "\n  ".join(lines) for source, lines in said.items()
    )


def _flags_that_said(field: str, line: str, given: dict[str, str]) -> str:
    """The flags that a fault comes from; empty where none has a part in it.

    A fault of one option is its own flag's; one of a whole section is attributed to the flags that it names.
    """
    own = {name for name in given if field == name or field.startswith(f"{name}.")}
    if not own:
        named = set(re.findall(r"[\w.]+", line.removeprefix(f"{field}:")))
        below = {name for name in given if not field or name.startswith(f"{field}.")}
        own = {name for name in below if {name, name.rpartition(".")[2]} & named}
    return ", ".join(given[name] for name in given if name in own)


def without_password(field: str, urls: Sequence[str]) -> None:
    """ValueError for an address that holds a password: it would stand in logs and in the run's folder."""
    for url in urls:
        if "@" in urlsplit(url).netloc:
            raise ValueError(
                f"{field}: an address with user and password would stand in logs and run folder: leave it out"
            )


def _take_config(argv: list[str]) -> tuple[str | None, list[str]]:
    paths: list[str] = []
    rest = []
    words = iter(argv)
    for word in words:
        if word == "--config":
            path = next(words, None)
            if path is None or path.startswith("--"):
                raise ConfigError("--config: needs a path. Give the path of a YAML file.")
            paths.append(path)
        elif word.startswith("--config="):
            paths.append(word.partition("=")[2])
        else:
            rest.append(word)
    if len(paths) > 1:
        raise ConfigError(f"--config: given {len(paths)} times ({', '.join(paths)}); one file has all options.")
    try:
        return (str(expanded(paths[0])) if paths else None), rest
    except ValueError as error:
        raise ConfigError(f"--config {paths[0]}: {error}") from None
