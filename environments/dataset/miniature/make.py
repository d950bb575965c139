"""`python -m environments.dataset.miniature.make`: the YAML files to rows in the sources' own forms, below files/.

Each level has sixteen problems, half of them functions. A quarter goes into a file in TACO-verified's form, a quarter
into SYNTHETIC-1's, a quarter into LiveCodeBench's with dates before 2024-07-31, and a quarter into the test split.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import pickle
import random
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
FILES = HERE / "files"
LEVELS = 5
TACO, SYNTHETIC, EARLY, TEST = (0, 1, 4, 5), (2, 3, 6, 7), (8, 9, 12, 13), (10, 11, 14, 15)
Test = tuple[Any, Any]
"""A test: stdin and stdout, or the list of arguments and the result."""


def definitions() -> list[list[dict[str, Any]]]:
    """The problems of each level, in the files' order."""
    return [yaml.safe_load((HERE / f"level{n}.yaml").read_text(encoding="utf-8")) for n in range(1, LEVELS + 1)]


def statement(problem: dict[str, Any], made: list[Test]) -> str:
    """The text that a model reads, with one test as its example: the longest short one of the first six."""
    example = max((test for test in made[:6] if len(str(test)) <= 100), key=lambda test: len(str(test)))
    if "fn" in problem:
        given = ", ".join(map(repr, example[0]))
        return f"{problem['text']}\nExample: {problem['fn']}({given}) returns {example[1]!r}."
    return (
        f"{problem['text']}\nInput\n\n{problem['input'].rstrip()}\n\nOutput\n\n{problem['output'].rstrip()}\n\n"
        f"Example\n\nInput:\n{example[0]}\nOutput:\n{example[1]}"
    )


def tests(problem: dict[str, Any]) -> list[Test]:
    """The tests: the inputs of the definition, the outputs of its solution. Seeded by the name."""
    names = {name: getattr(Inputs, name) for name in vars(Inputs) if not name.startswith("_")}
    names["r"] = random.Random(problem["name"])
    exec(f"inputs = {problem['inputs']}", names)
    return list(zip(names["inputs"], map(_answer(problem), names["inputs"]), strict=True))


def _answer(problem: dict[str, Any]) -> Callable[[Any], Any]:
    code = compile(problem["solution"], problem["name"], "exec")
    if "fn" in problem:
        names: dict[str, Any] = {}
        exec(code, names)
        return lambda arguments: names[problem["fn"]](*json.loads(json.dumps(arguments)))

    def run(text: str) -> str:
        stdout, stdin = io.StringIO(), sys.stdin
        sys.stdin = io.TextIOWrapper(io.BytesIO(text.encode()))
        try:
            with contextlib.redirect_stdout(stdout):
                exec(code, {"__name__": "__main__"})
        finally:
            sys.stdin = stdin
        return stdout.getvalue()

    return run


def rows() -> dict[str, list[dict[str, Any]]]:
    """The rows of each file."""
    found: dict[str, list[dict[str, Any]]] = {"taco": [], "synthetic": [], "early": [], "test": []}
    for level, problems in enumerate(definitions(), start=1):
        for index, problem in enumerate(problems):
            made = tests(problem)
            if index in TACO:
                found["taco"].append(_taco(problem, level, made))
            elif index in SYNTHETIC:
                found["synthetic"].append(_synthetic(problem, level, made))
            else:
                where, month = ("early", f"2024-0{level}") if index in EARLY else ("test", f"2025-0{level}")
                date = f"{month}-{'01' if where == 'test' else '15'}T00:00:00"
                found[where].append(_livecodebench(problem, level, made, date))
    return found


def _taco(problem: dict[str, Any], level: int, made: list[Test]) -> dict[str, Any]:
    kept: dict[str, Any] = {"inputs": [given for given, _ in made], "outputs": [wanted for _, wanted in made]}
    if "fn" in problem:
        kept |= {"fn_name": problem["fn"], "outputs": [[wanted] for _, wanted in made]}
    return {
        "question": statement(problem, made),
        "input_output": json.dumps(kept),
        "solutions": json.dumps([problem["solution"]]),
        "starter_code": problem.get("starter", ""),
        "difficulty": f"LEVEL_{level}",
    }


def _synthetic(problem: dict[str, Any], level: int, made: list[Test]) -> dict[str, Any]:
    text = f"Solve the following coding problem using the programming language python:\n\n{statement(problem, made)}"
    if "fn" in problem:
        kind: dict[str, Any] = {"type": "function_call", "fn_name": problem["fn"]}
        cases = [kind | {"input": given, "output": [wanted]} for given, wanted in made]
        text += (
            f"\n\nWrite your solution by modifying this code:\n\n```python\n{problem['starter']}```\n\nYour solution "
            f'should implemented in the function "{problem["fn"]}". The inputs will be passed to it and it should '
            "return the correct solution."
        )
    else:
        kind = {"type": "stdin_stdout", "fn_name": None}
        cases = [kind | {"input": given, "output": wanted} for given, wanted in made]
        text += "\n\nThe input will be stdin and you should print your solution to stdout"
    return {
        "task_type": "verifiable_code",
        "prompt": text + "\n\n\nNow solve the problem and return the code.",
        "verification_info": json.dumps({"language": "python", "test_cases": cases}),
        "gold_standard_solution": f"```python\n{problem['solution']}```",
        "difficulty": f"level_{level}",
    }


def _livecodebench(problem: dict[str, Any], level: int, made: list[Test], date: str) -> dict[str, Any]:
    kind = "functional" if "fn" in problem else "stdin"
    text = statement(problem, made)
    if "fn" in problem:
        made = [("\n".join(map(json.dumps, given)), json.dumps(wanted)) for given, wanted in made]
    packed = [{"input": given, "output": wanted, "testtype": kind} for given, wanted in made]
    private = zlib.compress(pickle.dumps(json.dumps(packed[2:]), protocol=4), 9)
    return {
        "question_title": problem["name"].replace("_", " "),
        "question_content": text,
        "platform": "miniature",
        "question_id": f"miniature/{level}/{problem['name']}",
        "contest_id": f"miniature-{level}",
        "contest_date": date,
        "starter_code": problem.get("starter", ""),
        "difficulty": f"level_{level}",
        "public_test_cases": json.dumps(packed[:2]),
        "private_test_cases": base64.b64encode(private).decode(),
        "metadata": json.dumps({"func_name": problem["fn"]} if "fn" in problem else {}),
    }


class Inputs:
    """What the definitions' `inputs` may call, beside Python's own functions."""

    @staticmethod
    def ints(r: random.Random, count: int, low: int, high: int) -> list[int]:
        return [r.randint(low, high) for _ in range(count)]

    @staticmethod
    def line(*values: Any) -> str:
        return " ".join(map(str, values)) + "\n"

    @staticmethod
    def listed(values: list[int]) -> str:
        return f"{len(values)}\n" + " ".join(map(str, values)) + "\n"

    @staticmethod
    def lines(words: list[str]) -> str:
        return "\n".join([str(len(words)), *words]) + "\n"

    @staticmethod
    def word(r: random.Random, length: int) -> str:
        return "".join(r.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(length))

    @staticmethod
    def grid(r: random.Random, height: int, width: int, high: int) -> list[list[int]]:
        return [[r.randint(0, high) for _ in range(width)] for _ in range(height)]

    @staticmethod
    def queries(r: random.Random, n: int, q: int, high: int) -> str:
        asked = [sorted((r.randint(1, n), r.randint(1, n))) for _ in range(q)]
        values = " ".join(str(r.randint(-high, high)) for _ in range(n))
        return f"{n} {q}\n{values}\n" + "".join(f"{a} {b}\n" for a, b in asked)

    @staticmethod
    def brackets(r: random.Random, pairs: int) -> str:
        text = ""
        for _ in range(pairs):
            left, right = r.choice(("()", "[]", "{}"))
            text = r.choice((f"{left}{text}{right}", f"{text}{left}{right}", f"{left}{right}{text}"))
        return text

    @staticmethod
    def postfix_tokens(r: random.Random, operands: int) -> list[str]:
        tokens, depth = [], 0
        for left in range(operands, 0, -1):
            tokens.append(str(r.randint(-9, 9)))
            depth += 1
            while depth > 1 and (left == 1 or r.random() < 0.5):
                tokens.append(r.choice("+-*"))
                depth -= 1
        return tokens

    @staticmethod
    def maze(r: random.Random, height: int, width: int, walls: float) -> str:
        rows = [["#" if r.random() < walls else "." for _ in range(width)] for _ in range(height)]
        rows[0][0] = rows[-1][-1] = "."
        return f"{height} {width}\n" + "".join("".join(row) + "\n" for row in rows)

    @staticmethod
    def tree(r: random.Random, n: int) -> str:
        return f"{n}\n" + "".join(f"{r.randint(max(1, v - 4), v - 1)} {v}\n" for v in range(2, n + 1))

    @staticmethod
    def edges(r: random.Random, n: int, m: int) -> str:
        return f"{n} {m}\n" + "".join("{} {}\n".format(*r.sample(range(1, n + 1), 2)) for _ in range(m))


def write(folder: Path) -> None:
    """Writes the four files; equal definitions give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    made = rows()
    (folder / "taco.json").write_text(json.dumps(made.pop("taco"), indent=1) + "\n", encoding="utf-8")
    for name, each in made.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each), encoding="utf-8")


if __name__ == "__main__":
    write(FILES)
