"""What every option means and refuses, whether it comes from a file, a flag or a program.

Empty ("", null, None) is the same for each option that may be empty; `~` is the home folder wherever a path is meant;
a boolean is no number, and infinity and NaN are none either; an address has a scheme and a host.
"""

from __future__ import annotations

import os
import types
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator

EMPTY = frozenset({"", "null", "none"})
"""How nothing is written for an option that may be empty, in lower case."""


def expanded(value: Any) -> Any:
    """A path's text with `~` or `~USER` at its beginning made the home folder; anything else as it is.

    Raises:
        ValueError: no such user, or no home folder is known.
    """
    text = str(value) if isinstance(value, Path) else value
    if not isinstance(text, str) or not text.startswith("~"):
        return value
    found = os.path.expanduser(text)
    if found.startswith("~"):
        raise ValueError(f"no home folder of {text.partition('/')[0]} is known; write the path in full")
    return found


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        bad = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError as error:
        raise ValueError(f"{url!r} is no address ({error}): write it as http://HOST:PORT") from None
    if bad or any(letter.isspace() for letter in url):
        raise ValueError(f"{url!r} is no address: write it as http://HOST:PORT")
    return url


Url = Annotated[str, AfterValidator(_address)]
"""An HTTP address: scheme, host, and a port where it is not the scheme's own."""

PathText = Annotated[str, BeforeValidator(expanded)]
"""Text that names a file or folder, or something else such as a name on the hub."""


class StrictModel(BaseModel):
    """Options that are read as this module says."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = kinds_of(cls.model_fields[str(info.field_name)].annotation)
        if type(None) in kinds and isinstance(value, str) and value.strip().lower() in EMPTY:
            return None
        if list in kinds and value in ("", [""]):
            return []
        if bool not in kinds and kinds & {int, float} and _holds_a_boolean(value):
            raise ValueError("true and false are no numbers; give a number")
        if Path in kinds:
            if value == "":
                raise ValueError("is empty; give a path")
            return expanded(value)
        return value


def kinds_of(annotation: Any) -> set[Any]:
    """The plain types in an annotation: of every alternative, every list and what is in it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kinds_of(inner[0])
    if origin in (Union, types.UnionType):
        return set().union(*map(kinds_of, inner))
    if origin in (list, tuple, dict):
        return {origin}.union(*(kinds_of(one) for one in inner if one is not Ellipsis))
    return {annotation}


def _holds_a_boolean(value: Any) -> bool:
    return any(map(_holds_a_boolean, value)) if isinstance(value, list | tuple) else isinstance(value, bool)
