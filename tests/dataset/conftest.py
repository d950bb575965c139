"""Source files in the exact formats of the data sets, small, with every quirk of theirs."""

from __future__ import annotations

import base64
import json
import pickle
import random
import zlib
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from environments.livecode.problems.window import DIFFICULTIES, KINDS, ids

WORDS = [
    a + b
    for a in ("ba", "ke", "li", "mo", "nu", "po", "ra", "si", "tu", "ve")
    for b in ("dan", "fel", "gor", "hin", "jup")
]
CODE = "a, b = map(int, input().split())\nprint(a + b)\n"


def statement(seed: str, length: int = 60) -> str:
    """A text of its own: no two seeds share ten words in a row."""
    draw = random.Random(seed)
    return f"Problem {seed}. " + " ".join(draw.choice(WORDS) for _ in range(length)) + "."


def sums(count: int = 6, seed: int = 0) -> list[tuple[str, str]]:
    """Tests of a + b."""
    return [(f"{seed} {number}\n", f"{seed + number}\n") for number in range(count)]


def lcb_row(name: str, date: str, kind: str = "stdin", difficulty: str = "easy", **changes: Any) -> dict[str, Any]:
    """A row of code_generation_lite; its private tests are packed as the data set's are."""
    call = kind == "functional"
    pairs = [("1", "2"), ("[3]", "[4]")] if call else [("1 2\n", "3\n"), ("4 5\n", "9\n")]
    tests = [{"input": given, "output": wanted, "testtype": kind} for given, wanted in pairs]
    private = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests[1:])))).decode()
    return {
        "question_title": name,
        "question_content": statement(name),
        "platform": "leetcode" if call else "atcoder",
        "question_id": name,
        "contest_id": "c",
        "contest_date": date,
        "starter_code": "class Solution:\n    def f(self, x):\n        " if call else "",
        "difficulty": difficulty,
        "public_test_cases": json.dumps(tests[:1]),
        "private_test_cases": private,
        "metadata": json.dumps({"func_name": "f"} if call else {}),
    } | changes


def lcb_rows() -> list[dict[str, Any]]:
    """The 454 of the window by id, kind and difficulty, and some before it."""
    kinds = ["stdin"] * KINDS["stdin"] + ["functional"] * KINDS["function"]
    levels = [level for level, count in DIFFICULTIES.items() for _ in range(count)]
    rows = [
        lcb_row(name, "2024-08-01T07:30:00" if index else "2025-05-01T19:30:00", kind, level)
        for index, (name, kind, level) in enumerate(zip(sorted(ids()), kinds, levels, strict=True))
    ]
    early = [lcb_row(f"early{number}", f"2024-0{number}-15T00:00:00") for number in (5, 6, 7)]
    return [*rows, *early, lcb_row("eve", "2024-07-31T00:00:00")]


def write_jsonl(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def deepcoder_rows(config: str) -> list[dict[str, Any]]:
    """Good rows of one of DeepCoder's configurations, and one for each reason to leave one out."""
    pairs = sums()
    inputs, outputs = [given for given, _ in pairs], [wanted for _, wanted in pairs]

    def row(seed: str, tests: Any, **more: Any) -> dict[str, Any]:
        base = {
            "problem": statement(f"{config}-{seed}"),
            "tests": json.dumps(tests),
            "starter_code": "",
            "metadata": "{}",
        }
        return base | ({} if config == "lcbv5" else {"solutions": [f"```python\n{CODE}```"]}) | more

    if config == "taco":
        call = {"inputs": [[[1, 2], 3]] * 5, "outputs": [[6]] * 5, "fn_name": "total"}
        adds = "def total(a, b):\n    return sum(a) + b\n"
        return [
            row("good", {"inputs": inputs, "outputs": outputs}),
            row("lines", {"inputs": [["0", str(n)] for n in range(5)], "outputs": [[str(n)] for n in range(5)]},
                solutions=["print(int(input()) + int(input()))"]),
            row("wrapped", call, solutions=[adds]),
            row("truly-a-list", call, solutions=["def total(a, b):\n    return [sum(a) + b]\n"]),
            row("wrong-solution", {"inputs": inputs, "outputs": outputs}, solutions=["print(0)"]),
            row("second-solution", {"inputs": inputs, "outputs": outputs}, solutions=["print(0)", CODE]),
            row("twin-fails", {"inputs": inputs, "outputs": outputs}, solutions=["print(0)"]),
            row("twin-passes", {"inputs": inputs, "outputs": outputs}, problem=statement("taco-twin-fails").upper()),
            row("few", {"inputs": inputs[:4], "outputs": outputs[:4]}),
            row("uneven", {"inputs": inputs, "outputs": outputs[:3]}),
            row("empty", {"inputs": [], "outputs": []}),
            row("same", {"inputs": inputs, "outputs": outputs}, problem=statement("taco-good").upper()),
            row("near", {"inputs": inputs, "outputs": outputs}, problem="Hello! " + statement("taco-good")),
            row("from-the-test", {"inputs": inputs, "outputs": outputs}, problem=statement("abc365_e") + " Good luck."),
        ]  # fmt: skip
    if config == "primeintellect":
        cases = [{"type": "stdin_stdout", "input": given, "output": wanted} for given, wanted in pairs]
        calls = [{"type": "function_call", "fn_name": "inc", "input": [n], "output": [n + 1]} for n in range(5)]
        return [
            row("good", cases),
            row("call", calls, solutions=["class Solution:\n    def inc(self, n):\n        return n + 1\n"]),
            row("mixed", [*cases, calls[0]]),
            row("text", "not tests"),
        ]
    cases = [{"input": given, "output": wanted, "testtype": "stdin"} for given, wanted in pairs]
    calls = [{"input": f"{n}\n[1]", "output": "[1]", "testtype": "functional"} for n in range(5)]
    return [row("good", cases), row("call", calls, metadata=json.dumps({"func_name": "f"})), row("nameless", calls)]


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the files of every source of the recipe, laid out as on the hub."""
    folder = tmp_path_factory.mktemp("hub")
    rows = lcb_rows()
    for index, part in enumerate((rows[:200], rows[200:400], rows[400:])):
        name = "test.jsonl" if index == 0 else f"test{index + 1}.jsonl"
        write_jsonl(folder / "livecodebench" / "code_generation_lite" / name, part)
    for config in ("taco", "primeintellect", "lcbv5"):
        path = folder / "agentica-org" / "DeepCoder-Preview-Dataset" / config / "train-00000-of-00001.parquet"
        write_parquet(path, deepcoder_rows(config))
    return folder


@pytest.fixture(scope="package", autouse=True)
def _no_process_left() -> Iterator[None]:
    """Builds read their sources in processes; Python's tracker of them would stay until pytest ends."""
    yield
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]
