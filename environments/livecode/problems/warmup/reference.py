"""Runs the templates' own programs to make expected outputs. Never a model's code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from environments.livecode.problems.problem import TestCase
from environments.livecode.problems.warmup.template import FunctionCall, ProblemTemplate, Value


class Reference:
    """One reference program, compiled once.

    Args:
        program: the whole source; it reads by `input()` and writes by `print()` only.
        call: how to call it, or None for a program over stdin.
    """

    def __init__(self, program: str, call: FunctionCall | None) -> None:
        self._code = compile(program, "reference", "exec")
        self._call = call

    def test(self, values: tuple[Value, ...]) -> TestCase:
        """The test with these values as input and the program's answer as expected output."""
        if self._call is None:
            lines = [_line(value) for value in values]
            return TestCase(input="\n".join(lines) + "\n", output=self._print(iter(lines)))
        space: dict[str, Any] = {}
        exec(self._code, space)
        holder = space["Solution"]() if self._call.in_class else None
        function = getattr(holder, self._call.fn_name) if holder else space[self._call.fn_name]
        arguments = "\n".join(json.dumps(value) for value in values)
        return TestCase(input=arguments, output=json.dumps(function(*values)))

    def _print(self, lines: Iterator[str]) -> str:
        printed: list[str] = []

        def show(*values: object) -> None:
            printed.append(" ".join(map(str, values)) + "\n")

        exec(self._code, {"input": lambda: next(lines), "print": show})
        return "".join(printed)


def statement(template: ProblemTemplate, sentence: str, values: tuple[Value, ...], sample: TestCase) -> str:
    """The problem's text: the sentence and one sample, laid out as AtCoder (stdin) or LeetCode (call) do."""
    if template.call is None:
        return stdin_statement(sentence, sample.input, sample.output)
    return call_statement(sentence, template.call.signature, values, sample.output)


def stdin_statement(sentence: str, sample_input: str, sample_output: str) -> str:
    """A sentence with its sample under AtCoder's headings."""
    given, wanted = sample_input.strip(), sample_output.strip()
    return f"{sentence}\n\nSample Input 1\n\n{given}\n\nSample Output 1\n\n{wanted}"


def call_statement(sentence: str, signature: str, values: tuple[Value, ...], result: str) -> str:
    """A sentence with its sample as LeetCode's `Input: n = 4`."""
    names = [part.partition(":")[0].strip() for part in signature.split(",")]
    given = ", ".join(f"{name} = {json.dumps(value)}" for name, value in zip(names, values, strict=True))
    return f"{sentence}\n\nExample 1:\n\nInput: {given}\nOutput: {result}"


def _line(value: Value) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
