"""How well `atropos data audit` finds problems with several answers and with wrong tests: 70 problems of known truth.

    python -m benchmarks.data_audit [--out benchmarks/results/data_audit.json]

30 problems have one answer (five of them with a known solution that is wrong at an edge, five with a statement that
says "any of them" about something else), 30 have several (ten say so and their solutions differ, ten do not say so and
their solutions differ, five say so and their solutions agree, five neither), 10 have one test whose expected output is
wrong. Each has two known solutions and five tests. Flagged as several answers: kinds `several_answers` or `statement`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.workload import command
from environments.dataset.audit import audit
from environments.livecode.problems.problem import Problem, TestCase

TESTS = 5
Inputs = Callable[[random.Random], str]


class Family(NamedTuple):
    """Problems that differ by their tests: statement, how it allows any answer, two solutions, a maker of inputs."""

    name: str
    statement: str
    any: str
    first: str
    second: str
    inputs: Inputs


def numbers(draw: random.Random, count: int, low: int = 1, high: int = 50) -> str:
    """A line with the count and a line with distinct numbers."""
    return f"{count}\n{' '.join(map(str, draw.sample(range(low, high), count)))}\n"


READ = "n = int(input())\na = list(map(int, input().split()))\n"
SINGLE = (
    Family("sum", "Print the sum of the numbers.", "If any of them is odd the sum may be odd.",
           READ + "print(sum(a))", READ + "t = 0\nfor x in a: t += x\nprint(t)", lambda d: numbers(d, d.randint(3, 9))),
    Family("largest", "Print the largest number.", "It is at least as large as any of them.",
           READ + "print(max(a))", READ + "print(sorted(a)[-1])", lambda d: numbers(d, d.randint(3, 9))),
    Family("sorted", "Print the numbers in rising order.", "No two are equal, so any of them has one place.",
           READ + "print(*sorted(a))", READ + "a.sort(reverse=True)\nprint(*a[::-1])", lambda d: numbers(d, 6)),
    Family("even", "Print how many numbers are even.", "Print 0 if any of them is not positive; none is.",
           READ + "print(sum(x % 2 == 0 for x in a))", READ + "print(len([x for x in a if not x & 1]))",
           lambda d: numbers(d, 7)),
    Family("span", "Print the difference of the largest and the smallest number.", "Do not count any of them twice.",
           READ + "print(max(a) - min(a))", READ + "a.sort()\nprint(a[-1] - a[0])", lambda d: numbers(d, 5)),
)  # fmt: skip
SEVERAL = (
    Family("divisors", "Print two integers above 1 whose product is n.", "Print any of them.",
           "n = int(input())\nd = next(d for d in range(2, n) if n % d == 0)\nprint(d, n // d)",
           "n = int(input())\nd = next(d for d in range(2, n) if n % d == 0)\nprint(n // d, d)",
           lambda d: f"{d.choice([6, 10, 14, 15, 21, 22, 26, 33, 35])}\n"),
    Family("between", "Print an integer x with l <= x <= r.", "If there are several answers, print one.",
           "l, r = map(int, input().split())\nprint(l)", "l, r = map(int, input().split())\nprint(r)",
           lambda d: "{} {}\n".format(*sorted(d.sample(range(100), 2)))),
    Family("pair", "Print the indices of two different numbers of equal parity.", "You may output any valid pair.",
           READ + "print(*next((i, j) for i in range(n) for j in range(i) if (a[i] - a[j]) % 2 == 0))",
           READ + "print(*next((i, j) for i in range(n - 1, 0, -1) for j in range(i) if (a[i] - a[j]) % 2 == 0))",
           lambda d: numbers(d, 6)),
    Family("moved", "Print the numbers so that none is at its place.", "There may be multiple solutions.",
           READ + "print(*a[1:], a[0])", READ + "print(a[-1], *a[:-1])", lambda d: numbers(d, 5)),
    Family("split", "Print the numbers of two groups, one line each, whose sizes differ by at most one.",
           "The answer is not unique.", READ + "print(*a[::2])\nprint(*a[1::2])",
           READ + "print(*a[: (n + 1) // 2])\nprint(*a[(n + 1) // 2 :])", lambda d: numbers(d, 6)),
)  # fmt: skip


def run(code: str, text: str) -> str:
    """What a solution prints; these are ours, so no sandbox."""
    import contextlib
    import io

    out, lines = io.StringIO(), iter(text.splitlines())
    with contextlib.redirect_stdout(out):
        exec(code, {"input": lambda: next(lines)})
    return out.getvalue()


def made(name: str, family: Family, says: bool, seed: int) -> Problem:
    """One problem of a family; its reference is the first solution."""
    draw = random.Random(f"{name}/{seed}")
    inputs = [family.inputs(draw) for _ in range(TESTS)]
    tests = [TestCase(input=text, output=run(family.first, text)) for text in inputs]
    statement = family.statement + (f" {family.any}" if says else "")
    return Problem(id=name, source="made", kind="stdin", statement=statement, tests=tests)


def truth() -> Iterator[tuple[str, Problem, list[str]]]:
    """(single, several or wrong; the problem; its known solutions)."""
    for place in range(30):
        family = SINGLE[place % 5]
        # A mistake of many solutions: right but for one of the tests.
        problem = made(f"single-{place}", family, 5 <= place < 10, place)
        edge = f"import sys\ntext = sys.stdin.read()\nif text == {problem.tests[0].input!r}: print('-1')\nelse:\n"
        body = "    lines = iter(text.splitlines())\n    input = lambda: next(lines)\n"
        second = edge + body + "".join(f"    {line}\n" for line in family.second.splitlines())
        yield "single", problem, [family.first, second if place < 5 else family.second]
    for place in range(30):
        family = SEVERAL[place % 5]
        says, differ = (place < 10 or 20 <= place < 25), place < 20
        second = family.second if differ else family.first + "\n# the same way"
        yield "several", made(f"several-{place}", family, says, place), [family.first, second]
    for place in range(10):
        family = SINGLE[place % 5]
        problem = made(f"wrong-{place}", family, False, place)
        tests = [*problem.tests]
        tests[3] = TestCase(input=tests[3].input, output="-7\n")
        yield "wrong", problem.model_copy(update={"tests": tests}), [family.first, family.second]


def measure() -> dict[str, dict[str, float]]:
    """Precision and recall by what is looked for, and what was missed or wrongly found."""
    known = list(truth())
    findings = asyncio.run(audit([(problem, codes) for _, problem, codes in known], 2, lambda: None))
    kinds = {finding.problem_id: finding.kinds for finding in findings}
    result = {}
    for wanted, marks in (("several", {"several_answers", "statement"}), ("wrong", {"wrong_tests"})):
        flagged = {problem.id for _, problem, _ in known if kinds.get(problem.id, set()) & marks}
        real = {problem.id for kind, problem, _ in known if kind == wanted}
        hits = flagged & real
        result[wanted] = {
            "problems": len(real), "flagged": len(flagged), "hits": len(hits),
            "precision": round(len(hits) / len(flagged), 3), "recall": round(len(hits) / len(real), 3),
        }  # fmt: skip
    return result


def main(arguments: list[str]) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    found = {"command": command("benchmarks.data_audit", arguments), "measured": measure()}
    print(json.dumps(found, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
