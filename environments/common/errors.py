"""The root of the project's errors: a message that says all, and the exit code that a process ends with.

    LivecodeError       1: something was missing or broke while the process ran; starting again may help
    └── ConfigError     2: the user has to change a setting, a path or an input; a supervisor does not start it again

What raises one of these is reported in one line, once, where a command begins: trainer/main.py, the `atropos` command,
and the modes of an environment. Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

BAD_INPUT = 2
"""Exit code for what the user must change: starting again cannot help."""

BAD_INPUT_NOTE = "ATROPOS_BAD_INPUT_NOTE"
"""Environment variable: the file in which a process below a launcher tells a supervisor that its input was bad."""


class LivecodeError(Exception):
    """An error whose message says what is wrong, where, and what to do."""

    exit_code: int = 1


class ConfigError(LivecodeError, ValueError):
    """Settings or input that cannot be used; the message names each field, its value and the fix."""

    exit_code = BAD_INPUT


def note_bad_input() -> None:
    """Tells the supervisor, where there is one, that starting again cannot help."""
    if note := os.environ.get(BAD_INPUT_NOTE):
        Path(note).touch()


def report(error: LivecodeError, *, show: bool = True) -> int:
    """Reports an error that ends the process, in one line on stderr; returns the exit code.

    show: False for the ranks that leave the line to rank 0. Bad input is noted for the supervisor as well: a launcher
    in between, such as torchrun, ends with 1 whatever its ranks end with.
    """
    if show:
        print(f"error {error}", file=sys.stderr, flush=True)
    _tell_torchrun(f"error {error}")
    if error.exit_code == BAD_INPUT:
        note_bad_input()
    return error.exit_code


def _tell_torchrun(message: str) -> None:
    """Leaves the message where torchrun looks for the reason of a rank's end, so that its summary closes with it."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        said = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
        with suppress(OSError):
            Path(path).write_text(json.dumps(said), encoding="utf-8")
