"""Text on a terminal whose encoding may not hold it."""

from __future__ import annotations

import io
import sys


def take_any_text() -> None:
    """Has stdout and stderr write what their encoding lacks as `\\u1234`, as stderr does by itself, instead of failing.

    Called where a command begins: what it prints comes from problems, programs and answers.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
