"""Python source as coloured pieces: text and a class for each, never HTML."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from functools import cache

from pygments.lexers.python import PythonLexer
from pygments.token import Comment, Keyword, Name, Number, Operator, String, Token

LONGEST_S = 0.25
"""Of a thread's time for one program."""
_BLANKS = re.compile(r"(\s{200,})")
"""The lexer looks from each blank to the last of its run, and begins again at the next: quadratic in the run."""
_LEXER = PythonLexer(stripnl=False, ensurenl=False)
_CLASSES = (
    (Comment, "c"), (Keyword, "k"), (String, "s"), (Number, "n"), (Operator.Word, "k"), (Name.Builtin, "b"),
    (Name.Function, "f"), (Name.Class, "f"),
)  # fmt: skip


def tokens(source: str) -> list[list[str]]:
    """[[class or "", text], ...], neighbours of one class joined; the texts together are the source.

    What would take longer than LONGEST_S is left without colours.
    """
    pieces: list[list[str]] = []
    for name, text in _coloured(source):
        if pieces and pieces[-1][0] == name:
            pieces[-1][1] += text
        else:
            pieces.append([name, text])
    return pieces


def _coloured(source: str) -> Iterator[tuple[str, str]]:
    """(class, text) of each token; long runs of blanks stand between the parts that the lexer sees."""
    end = time.thread_time() + LONGEST_S
    for number, part in enumerate(_BLANKS.split(source)):
        if number % 2:
            yield "", part
            continue
        for place, kind, text in _LEXER.get_tokens_unprocessed(part):
            if time.thread_time() > end:
                yield "", part[place:]
                break
            yield _class(kind), text


@cache
def _class(kind: Token) -> str:
    return next((name for parent, name in _CLASSES if kind in parent), "")
