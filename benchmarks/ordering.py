"""Hardest tests first against the file's order and random orders, on a replay of judged programs.

    python benchmarks/ordering.py --problems FILE.jsonl --programs FILE.jsonl [--mutants 24] [--out FILE.json]
    python benchmarks/ordering.py --run runs/RUN

--programs: one object a line, {"question_id", "correct": [source, ...], "wrong": [{"code": source}, ...]}; mutants of
the correct ones (a changed constant, comparison or operator) join the wrong ones. --run: the programs that a run
recorded (rollouts/*.jsonl). The real judge runs every program once on all tests; the replay then adds up what each
order would have run until the first failure. The learned order starts with nothing and sees only what it ran.
CPU milliseconds are those of programs that no order brings to their time limit, which would drown the rest.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from environments.livecode.problems.problem import Problem
from environments.livecode.problems.sampler import load_set
from environments.livecode.verification.judge_requests import judge_request
from environments.livecode.verification.ordering import TestOrder
from verifier_app.judge import Judge
from verifier_app.judge.verdict import RanTest, Verdict

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def mutants(source: str) -> Iterator[str]:
    """The program with one place changed, place by place."""
    tree = ast.parse(source)
    for place in range(sum(1 for _ in ast.walk(tree))):
        changed = copy.deepcopy(tree)
        node = list(ast.walk(changed))[place]
        if isinstance(node, ast.Constant) and type(node.value) is int:
            node.value += 1
        elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
            node.op = SWAPS[type(node.op)]()  # type: ignore[assignment]
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            node.ops[0] = SWAPS[type(node.ops[0])]()  # type: ignore[call-overload]
        else:
            continue
        yield ast.unparse(changed)


def from_file(path: Path, per_program: int, draw: random.Random) -> Iterator[tuple[str, str]]:
    """(problem id, source) of every program in the file, and of mutants of its correct ones."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for wrong in row["wrong"]:
            yield row["question_id"], wrong["code"]
        for source in row["correct"]:
            yield row["question_id"], source
            made = sorted(set(mutants(source)))
            for mutant in draw.sample(made, min(per_program, len(made))):
                yield row["question_id"], mutant


def from_run(run: Path) -> tuple[list[Problem], list[tuple[str, str]]]:
    """The problems of a run, and (problem id, source) of the rollouts it recorded."""
    env = yaml.safe_load((run / "config" / "environment.yaml").read_text(encoding="utf-8"))["env"]
    rows = [json.loads(line) for path in sorted(run.glob("rollouts/*.jsonl")) for line in path.open(encoding="utf-8")]
    return load_set(env["problems"], env["seed"]), [(row["problem_id"], row["code"]) for row in rows if row["code"]]


def at_random(draw: random.Random, problem: Problem) -> list[int]:
    """The problem's tests in a random order."""
    return draw.sample(range(len(problem.tests)), len(problem.tests))


def as_learned(learned: TestOrder, problem: Problem) -> list[int] | None:
    """The order that the environment would ask for."""
    return learned.order(problem.id, [len(test.input) for test in problem.tests])


def learn(learned: TestOrder, problem: Problem, verdict: Verdict) -> None:
    """What the environment learns from a verdict."""
    learned.record(problem.id, verdict)


def replay(judged: list[tuple[Problem, list[RanTest]]], order: Callable[[Problem], list[int] | None],
           learn: Callable[[Problem, Verdict], None] = lambda *_: None) -> tuple[float, float]:  # fmt: skip
    """Tests run and CPU seconds until the first failure, per failing program."""
    tests, seconds = [], []
    for problem, results in judged:
        ran = []
        for index in order(problem) or range(len(results)):
            ran.append(results[index])
            if results[index]["status"] != "accepted":
                break
        passed = sum(one["status"] == "accepted" for one in ran)
        learn(problem, {"status": ran[-1]["status"], "passed": passed, "total": len(results), "tests": ran})
        if ran[-1]["status"] != "accepted":
            tests.append(len(ran))
            if all(one["status"] != "time_limit_exceeded" for one in results):
                seconds.append(sum(one["cpu_s"] for one in ran))
    return fmean(tests), fmean(seconds)


def main() -> None:
    """Judge, replay, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", help="problem file, or warmup:train")
    parser.add_argument("--programs", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--mutants", type=int, default=24, help="of each correct program")
    parser.add_argument("--seeds", type=int, default=5, help="shuffles of the stream, and random orders")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.run:
        problems, programs = from_run(options.run)
    elif options.problems and options.programs:
        problems = load_set(options.problems, 0)
        programs = list(from_file(options.programs, options.mutants, random.Random(0)))
    else:
        parser.error("give --run, or --problems with --programs")
    by_id = {problem.id: problem for problem in problems}
    with Judge() as judge, ThreadPoolExecutor(2) as threads:

        def on_all_tests(pair: tuple[str, str]) -> tuple[Problem, list[RanTest]]:
            problem = by_id[pair[0]]
            request = judge_request(problem, pair[1], time_limit_s=4.0, memory_limit_mb=2048)
            verdict = judge.verify(request | {"stop_at_first_failure": False})
            return problem, sorted(verdict["tests"], key=lambda test: int(test["index"]))

        judged = [one for one in threads.map(on_all_tests, programs) if one[1]]
    failing = sum(any(test["status"] != "accepted" for test in tests) for _, tests in judged)
    found: dict[str, list[tuple[float, float]]] = {"file": [], "random": [], "hardest first": []}
    for seed in range(options.seeds):
        draw = random.Random(seed)
        draw.shuffle(judged)
        learned = TestOrder()
        found["file"].append(replay(judged, lambda _: None))
        found["random"].append(replay(judged, partial(at_random, draw)))
        found["hardest first"].append(replay(judged, partial(as_learned, learned), partial(learn, learned)))
    result: dict[str, Any] = {
        "programs": len(judged),
        "failing": failing,
        "problems": len({problem.id for problem, _ in judged}),
        "mean_tests_of_a_problem": round(fmean(len(problem.tests) for problem, _ in judged), 1),
    }
    for name, runs in found.items():
        tests, seconds = (fmean(values) for values in zip(*runs, strict=True))
        result[name] = {"tests": round(tests, 3), "cpu_ms": round(1000 * seconds, 2)}
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
