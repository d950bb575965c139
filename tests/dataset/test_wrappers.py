"""Instructions around statements and fences around solutions are taken off; what only looks like them stays."""

from __future__ import annotations

import pytest

from environments.dataset.deduplicate import Signature, duplicates
from environments.dataset.wrappers import program, unwrap
from tests.dataset.conftest import statement

AHEAD = "Solve the following coding problem using the programming language python:\n\n"
AFTER = "\n\nNow solve the problem and return the code."
STDIN = "\n\nThe input will be stdin and you should print your solution to stdout\n\n"
CALL = (
    '\n\nWrite your solution by modifying this code:\n\n```python\ndef inc(n):\n```\n\nYour solution should '
    'implemented in the function "inc". The inputs will be passed to it and it should return the correct solution.\n'
)  # fmt: skip


@pytest.mark.parametrize(
    ("wrapped", "expected"),
    [
        (AHEAD + "Add one." + AFTER, ("Add one.", "")),
        (AHEAD + "Add one." + STDIN + AFTER, ("Add one.", "")),
        (AHEAD + "Add one." + CALL + AFTER, ("Add one.", "def inc(n):\n")),
        (" ".join((AHEAD + "Add one." + CALL + AFTER).split()), ("Add one.", "def inc(n):\n")),
        ("Add one." + STDIN + AFTER, ("Add one.", "")),
        (AHEAD.replace("python", "Python3") + "Add one.", ("Add one.", "")),
    ],
)
def test_the_statement_alone_stays(wrapped: str, expected: tuple[str, str]) -> None:
    assert unwrap(wrapped) == expected


@pytest.mark.parametrize("text", ["Add one.", "Add one." + STDIN.strip(), AHEAD + AFTER, " Indented.\n", ""])
def test_a_statement_without_instructions_stays_as_it_is(text: str) -> None:
    assert unwrap(text) == (text, "")


@pytest.mark.parametrize("words", [30, 60, 100, 400])
def test_the_same_statement_with_and_without_instructions_is_a_duplicate(words: int) -> None:
    text = statement("twin", words)
    rows = [Signature(f"{n}", unwrap(one)[0], f"{n}") for n, one in enumerate((text, AHEAD + text + STDIN + AFTER))]
    assert set(duplicates(rows)) == {"1"}


CODE = "n = int(input())\nprint(n)\n"


@pytest.mark.parametrize(
    "answer",
    [
        f"```python\n{CODE}```",
        f"```python3\n{CODE}```\n",
        f"```Python\r\n{CODE}```".replace("\n", "\r\n"),
        f"```py\n{CODE}```",
        f"~~~python\n{CODE}~~~",
        f"```\n{CODE}```",
        f"````python title\n{CODE}````",
        f"Read and print.\n\n```python\n{CODE}```\n\nLinear time.",
        f"```python\nprint(0)\n```\nBetter:\n```python\n{CODE}```",
        f"```python\n{CODE}```\nIt prints\n```text\n5\n```",
        f"```python\n{CODE}",
        f"  ```python\n{CODE}  ```",
    ],
)
def test_a_fenced_program_is_taken_out(answer: str) -> None:
    assert program(answer) == CODE


@pytest.mark.parametrize("code", [CODE, "print('''\n```\n''')\n", "not python at all", f"{CODE}# ```\n"])
def test_a_program_without_fences_stays_as_it_is(code: str) -> None:
    assert program(code) == code
