"""Settings from one YAML file and dotted flags, checked before anything starts.

`load(Model, argv)` reads ``--config FILE`` and every ``--section.field value`` flag; a flag beats the file,
the file beats the default. Everything that is wrong is said at once: field, value and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from environments.errors import BAD_INPUT_NOTE, ConfigError, note_bad_input

__all__ = [
    "BAD_INPUT_NOTE",
    "ConfigError",
    "Section",
    "Settings",
    "empty_is_none",
    "explain",
    "load",
    "note_bad_input",
    "option_names",
    "read_yaml",
    "without_password",
    "write_yaml",
]


_EMPTY = ("", "null", "none")


def empty_is_none(model: type[BaseModel], values: Any) -> Any:
    """A field that may be empty is None however that is written: nothing, null or None, in a file or by a flag."""
    if not isinstance(values, dict):
        return values
    fields = model.model_fields
    return {
        name: None
        if isinstance(value, str)
        and value.strip().lower() in _EMPTY
        and name in fields
        and type(None) in get_args(fields[name].annotation)
        else value
        for name, value in values.items()
    }


class Section(BaseModel):
    """A part of a configuration: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _empty_is_none(cls, values: Any) -> Any:
        return empty_is_none(cls, values)


class Settings(BaseSettings):
    """A whole configuration: YAML and flags only: no environment variables that nobody sees."""

    model_config = SettingsConfigDict(
        extra="forbid", cli_avoid_json=True, cli_implicit_flags=False, cli_hide_none_type=True
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_is_none(cls, values: Any) -> Any:
        return empty_is_none(cls, values)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


S = TypeVar("S", bound=Settings)


def load(model: type[S], argv: Sequence[str], program: str = "") -> S:
    """The validated settings of `argv` (no program name in it).

    Raises:
        ConfigError: a missing or broken file, an unknown key, a wrong type, a refused combination.
        SystemExit: after ``--help``, which lists every option with its sentence.
    """
    path, flags = _take_config(list(argv))
    from_file = read_yaml(path) if path else {}
    try:
        if not flags:
            return model(**from_file)
        return model(_cli_parse_args=flags, _cli_exit_on_error=False, _cli_prog_name=program or None, **from_file)
    except ValidationError as error:
        raise ConfigError(explain(error, model, str(path) if path else "flags")) from None
    except SettingsError as error:
        raise ConfigError(_explain_flags(str(error), model)) from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError when it is missing, broken or not a mapping."""
    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"--config {path}: no such file. Give the path of a YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: cannot be read ({error}).") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: not valid YAML: {' '.join(str(error).split())}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"--config {path}: holds a {type(loaded).__name__}, need `key: value` lines.")
    return loaded


def write_yaml(settings: BaseModel, path: str | Path) -> None:
    """Writes the settings as used, with every default, to `path`."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def explain(error: ValidationError, model: type[BaseModel], where: str) -> str:
    """One line for each thing that is wrong: the dotted field, the value, what to do."""
    known = list(option_names(model))
    known += sorted({name.rpartition(".")[0] for name in known} - {""})
    lines = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"] if not str(part).startswith("function-"))
        if item["type"] == "extra_forbidden":
            lines.append(f"{field}: unknown option. {_nearest(field, known)}")
        elif item["type"] == "missing":
            lines.append(f"{field}: required. Set it in the file or by --{field}.")
        else:
            message = item["msg"].removeprefix("Value error, ")
            value = "" if isinstance(item["input"], dict) or not field else f" = {item['input']!r}"
            lines.append(f"{field}{value}: {message}" if field else message)
    return f"{where}: " + ("\n  " if len(lines) > 1 else "") + "\n  ".join(lines)


def without_password(field: str, urls: Sequence[str]) -> None:
    """ValueError for an address that holds a password: it would stand in logs and in the run's folder."""
    for url in urls:
        if "@" in urlsplit(url).netloc:
            raise ValueError(
                f"{field}: an address with user and password would stand in logs and run folder: leave it out"
            )


def option_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted option of a settings model, in order of definition."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from option_names(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _nearest(field: str, known: list[str]) -> str:
    near = difflib.get_close_matches(field, known, n=1, cutoff=0.5)
    if near:
        return f"Did you mean {near[0]}?"
    section = field.rpartition(".")[0]
    siblings = [name for name in known if name.rpartition(".")[0] == section] or known
    return f"Known here: {', '.join(siblings)}."


def _explain_flags(message: str, model: type[BaseModel]) -> str:
    unknown = message.partition("unrecognized arguments:")[2].split()
    flags = [flag.lstrip("-").partition("=")[0] for flag in unknown if flag.startswith("--")]
    if not flags:
        return message.removeprefix("error parsing CLI: ")
    known = list(option_names(model))
    return "\n  ".join(f"--{flag}: unknown option. {_nearest(flag, known)}" for flag in flags)


def _take_config(argv: list[str]) -> tuple[str | None, list[str]]:
    path, rest = None, []
    words = iter(argv)
    for word in words:
        if word == "--config":
            path = next(words, None)
            if path is None:
                raise ConfigError("--config: needs a path. Give the path of a YAML file.")
        elif word.startswith("--config="):
            path = word.partition("=")[2]
        else:
            rest.append(word)
    return path, rest
