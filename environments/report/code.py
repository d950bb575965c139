"""Python source as coloured pieces: text and a class for each, never HTML."""

from __future__ import annotations

from pygments.lexers.python import PythonLexer
from pygments.token import Comment, Keyword, Name, Number, Operator, String, Token

_LEXER = PythonLexer(stripnl=False, ensurenl=False)
_CLASSES = (
    (Comment, "c"), (Keyword, "k"), (String, "s"), (Number, "n"), (Operator.Word, "k"), (Name.Builtin, "b"),
    (Name.Function, "f"), (Name.Class, "f"),
)  # fmt: skip


def tokens(source: str) -> list[list[str]]:
    """[[class or "", text], ...], neighbours of one class joined; the texts together are the source."""
    pieces: list[list[str]] = []
    for kind, text in _LEXER.get_tokens(source):
        name = _class(kind)
        if pieces and pieces[-1][0] == name:
            pieces[-1][1] += text
        else:
            pieces.append([name, text])
    return pieces


def _class(kind: Token) -> str:
    return next((name for parent, name in _CLASSES if kind in parent), "")
