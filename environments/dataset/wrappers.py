"""What sources put around a statement and a solution: instructions to a model, and code fences."""

from __future__ import annotations

import ast
import re
import warnings

_PREAMBLE = re.compile(r"\A\s*Solve the following coding problem using the programming language \S+?\s*:\s*", re.I)
_TRAILER = re.compile(r"\s*Now solve the problem and return the code\.?\s*\Z", re.I)
_STDIN = re.compile(r"\s*The input will be stdin and you should print your solution to stdout\.?\s*\Z", re.I)
_CALL = re.compile(
    r"\s*Write your solution by modifying this code:\s*```(?:python)?\s*(?P<code>\S.*?)\s*```"
    r"\s*Your solution should (?:be )?implemented in the function \S+"
    r"(?:\s+The inputs will be passed to it and it should return the correct solution\.?)?\s*\Z",
    re.I | re.S,
)
_FENCE = re.compile(r"[ \t]{0,3}(?P<mark>`{3,}|~{3,})[ \t]*(?P<language>[^\s`]*)[^`]*")
_PYTHON = re.compile(r"(?:py|python)[\d.]*|", re.I)


def unwrap(statement: str) -> tuple[str, str]:
    """The statement without the instructions that SYNTHETIC-1's sources put around it, and the starter code in them.

    The instructions name a language, say how input and output go or give a function's first line, and ask for the
    code; prompts say all this in words of their own, and near-duplicates are found only without it.
    """
    text, ahead = _PREAMBLE.subn("", statement)
    text, after = _TRAILER.subn("", text)
    if not ahead and not after:
        return statement, ""
    starter = ""
    if call := _CALL.search(text):
        text, starter = text[: call.start()], call["code"] + "\n"
    text = _STDIN.sub("", text).strip()
    return (text, starter) if text else (statement, "")


def program(answer: str) -> str:
    """The program of a known solution: the last fenced block that is Python or says no language, else all of it."""
    blocks = _blocks(answer.replace("\r\n", "\n").split("\n"))
    if not blocks or _is_python(answer):
        return answer
    python = [code for language, code in blocks if _PYTHON.fullmatch(language)]
    return (python or [code for _, code in blocks])[-1]


def _blocks(lines: list[str]) -> list[tuple[str, str]]:
    """(language, code) of each fenced block; one that is never closed ends with the text."""
    found: list[tuple[str, str]] = []
    mark, language, code = "", "", list[str]()
    for line in lines:
        fence = _FENCE.fullmatch(line)
        if not mark:
            if fence:
                mark, language, code = fence["mark"], fence["language"], []
        elif fence and fence["mark"].startswith(mark) and not fence["language"]:
            found.append((language, "".join(f"{each}\n" for each in code)))
            mark = ""
        else:
            code.append(line)
    if mark:
        found.append((language, "\n".join(code)))
    return found


def _is_python(text: str) -> bool:
    """Whether the text as it is parses: a fence inside a program's string is no fence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
