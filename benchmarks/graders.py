"""How other graders decide on the same programs: what each would pay for wrong ones, and which right ones it fails.

    python -m benchmarks.graders [--only examples suite problems] [--problems FILE --solutions FILE]
                                 [--out FILE.json] [--docs docs/graders.md]

Every program runs in our sandbox. Two columns are the judge's own verdicts: as it trains, and with LiveCodeBench's
official semantics. The others apply the rules of benchmarks/grading_rules, which are our own statement of what the
sources named there do, to the outputs of one run; what those graders' own processes give away (most run the program
beside the expected output) is not counted.

examples: the kinds of difference, a minimal program each. attacks and honest: tests/adversarial. With --problems, a
file in LiveCodeBench's form or ours: strategies counts the problems for which an answer made from the expected one
passes every test; with --solutions (question_id, correct, wrong) also its programs are graded. Only counts are kept.
--out is written after each part; parts that --only leaves out stay in it as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.grading_rules import programs, strategies
from benchmarks.grading_rules.pages import replaced
from benchmarks.grading_rules.table import NAMES, RULES
from verifier_app.judge import Judge
from verifier_app.judge.compare import output_difference

PARTS = ("examples", "problems", "suite")
NAMED = ("examples", "attacks", "honest")
"""Groups of which the programs are named; of the others only counts are kept."""


def graded(judge: Judge, found: Iterable[programs.Program]) -> dict[str, Any]:
    """By group: the programs, how many of them each grader rewards, and of the named ones which."""
    groups: dict[str, Any] = {}
    for program in found:
        group = groups.setdefault(program.group, {"programs": 0, "applies": dict.fromkeys(NAMES, 0)})
        rewarded = group.setdefault("rewarded", dict.fromkeys(NAMES, 0))
        group["programs"] += 1
        rewards = programs.rewards(judge, program)
        verdicts = {name: None if reward is None else reward == 1 for name, reward in rewards.items()}
        paid = group.setdefault("reward", dict.fromkeys(NAMES, 0.0))
        for name, verdict in verdicts.items():
            paid[name] += rewards[name] or 0.0
            group["applies"][name] += verdict is not None
            rewarded[name] += verdict is True
        if program.group in NAMED:
            group.setdefault("by_program", {})[program.name] = verdicts
        if any(verdict not in (None, program.right) for verdict in verdicts.values()):
            print(program.group, program.name, verdicts, file=sys.stderr)
    return groups


def counted(problems: list[list[str]]) -> dict[str, Any]:
    """How many problems each strategy passes by each rule."""
    rules = {"ours": lambda got, expected: output_difference(got, expected) is None}
    rules |= {rule.name: rule.printed for rule in RULES}
    tables: dict[str, Any] = {"problems": len(problems)}
    for kind, changes in (("wrong", strategies.WRONG), ("right", strategies.RIGHT)):
        tables[kind] = {}
        for name, change in changes.items():
            taken = strategies.made_wrong(change, problems) if kind == "wrong" else problems
            row = {rule: strategies.problems_passed(change, printed, taken) for rule, printed in rules.items()}
            tables[kind][name] = {"problems": len(taken), **row}
    return tables


def sources(part: str, problems: Path | None, solutions: Path | None) -> Iterator[programs.Program]:
    """The programs of a part; none of `problems` where no file was given."""
    if part == "examples":
        yield from programs.of_examples()
    elif part == "suite":
        yield from programs.of_the_suite()
    elif problems and solutions:
        yield from programs.of_problems(problems, solutions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--problems", type=Path)
    parser.add_argument("--solutions", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--docs", type=Path, help="the page whose tables are written again")
    options = parser.parse_args()
    if options.solutions and not options.problems:
        parser.error("--solutions needs --problems, the file with their problems")
    result: dict[str, Any] = {"groups": {}}
    if options.out and options.out.is_file():
        result = json.loads(options.out.read_text(encoding="utf-8"))
    result["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    with Judge() as judge:
        for part in options.only:
            if part == "problems" and options.problems:
                result["strategies"] = counted(programs.printed_answers(options.problems))
            result["groups"] |= graded(judge, sources(part, options.problems, options.solutions))
            if options.out:
                options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.docs:
        options.docs.write_text(replaced(options.docs.read_text(encoding="utf-8"), result), encoding="utf-8")
    if not (options.out or options.docs):
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
