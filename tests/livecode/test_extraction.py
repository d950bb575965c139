"""Which part of an answer is the program: the benchmark's rule, case by case."""

from __future__ import annotations

import pytest

from environments.livecode.problems.extraction import extract_code, reasoning_closed

CASES = {
    "one block": ("Here:\n```python\nprint(1)\n```", "print(1)"),
    "no fence": ("print(1)", None),
    "one fence that never closes": ("```python\nprint(1)", None),
    "an empty block": ("```python\n\n```", None),
    "several blocks: the last": ("```\nprint(1)\n```\nbetter:\n```\nprint(2)\n```", "print(2)"),
    "text after the block": ("```python\nprint(1)\n```\nThis prints 1.", "print(1)"),
    "another language": ("```cpp\nint main() {}\n```", "int main() {}"),
    "no language": ("```\nprint(1)\n```", "print(1)"),
    "indented fences": ("  ```python\n  print(1)\n  ```", "  print(1)"),
    "text on the fence's line": ("so ```python now\nprint(1)\nend ``` here", "print(1)"),
    "four backticks": ("````python\nprint(1)\n````", "print(1)"),
    "windows line ends stay": ("```python\r\nprint(1)\r\n```", "print(1)\r"),
    "a closed block, then one cut off: what stands between the last two": (
        "```\nprint(1)\n```\nor\n```\nprint(2)",
        "or",
    ),
    "both fences on one line count as one": ("```print(1)```", None),
    "fences in the reasoning do not count": ("<think>\n```\nprint(1)\n```\n</think>\nNo program.", None),
    "the answer after the reasoning": ("<think>\n```\nbad\n```\n</think>\n```\ngood\n```", "good"),
    "reasoning that was cut off": ("<think>\n```\nprint(1)\n```\nhm", None),
    "the closing tag again in the answer": ("<think>\nhm\n</think>\nAfter </think>:\n```\nok\n```", "ok"),
    "the closing tag again in the program": (
        "<think>\nhm\n</think>\n```\nprint('</think>')\n```",
        "print('</think>')",
    ),
    "the closing tag again after the program": ("<think>hm</think>\n```\nok\n```\nDone.</think>", "ok"),
    "a closing tag without reasoning": ("```\nprint('</think>')\n```", "print('</think>')"),
    "a program that mentions the tag": ("```\nprint('<think>')\n```", "print('<think>')"),
}


@pytest.mark.parametrize("case", CASES, ids=list(CASES))
def test_extraction(case: str) -> None:
    text, code = CASES[case]
    assert extract_code(text) == code


def test_reasoning_that_the_prompt_opened_is_left_out() -> None:
    assert extract_code("```\nbad\n```\n</think>\n```\ngood\n```", reasoning_open=True) == "good"


def test_reasoning_that_the_prompt_opened_and_nothing_closed_has_no_program() -> None:
    assert extract_code("```\nbad\n```\n", reasoning_open=True) is None


@pytest.mark.parametrize(
    ("text", "closed"),
    [
        ("```\nprint('</think>')\n```", False),
        ("hm\n```\nbad\n</think>\n```\ngood\n```", True),
        ("hm</think>```\ngood\n```", True),
        ("```\ngood\n```", False),
    ],
)
def test_the_word_in_a_program_ends_no_reasoning(text: str, closed: bool) -> None:
    assert reasoning_closed(text) == closed
