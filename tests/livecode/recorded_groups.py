"""A group with every kind of rollout, as vectors/run_lines.json recorded it before records were structs."""

from __future__ import annotations

from array import array

from environments.livecode.generation.completions import Completion
from environments.livecode.pipeline import NO_CODE, JudgedGroup, JudgedRollout, pack
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.problems.prompts import Prompt
from verifier_app.judge.verdict import Verdict

PROBLEM = Problem(
    id="añ/1", source="t", kind="stdin", statement="s", difficulty="hard", date="2024-05-03T00:00:00",
    tests=[TestCase(input="1\n", output="2\u2028\n"), TestCase(input="\x00\x7f", output="é")],
)  # fmt: skip
ACCEPTED: Verdict = {
    "status": "accepted", "passed": 2, "ran": 2, "total": 2, "failed_test": None,
    "tests": [{"index": 0, "status": "accepted", "wall_s": 0.1, "cpu_s": 0.1, "peak_mb": 9.0}],
    "message": "", "attempts": {"sockets": 1}, "isolation": {"level": "full", "layers": []},
}  # fmt: skip
WRONG: Verdict = {
    **ACCEPTED, "status": "wrong_answer", "passed": 1, "failed_test": 1, "message": 'got "3"\n', "attempts": None,
}  # fmt: skip


def _rollout(text: str, code: str | None, verdict: Verdict | None, finish: str = "stop") -> JudgedRollout:
    sample = Completion(array("i", [5, 70_000]), array("d", [-0.25, -1e-06]), finish, [(3, 0, 1), (4, 1, 2)], 1.23456)
    return JudgedRollout(sample, pack(text), code, verdict, 0.98765)


ROLLOUTS = [
    _rollout('so:\t"\\ \x08\x0c\x1f 🙂 \ud83d', "print(2)  # ü", ACCEPTED),
    _rollout("<think>\u2028", "x\ud800", WRONG),
    _rollout("no program", None, NO_CODE),
    _rollout("cut", None, None, "length"),
]


def judged_group(scored: bool = True) -> JudgedGroup:
    """The group; not scored: dropped without a rollout."""
    if scored:
        return JudgedGroup(
            PROBLEM, Prompt([1, 2, 3], "<|user|>é", False), 4, "g-1", ROLLOUTS, [1.0, -1.0, -1.0, -1.0], seconds=2.5
        )
    return JudgedGroup(
        PROBLEM, Prompt([1], "p", False), 2, "g-2", dropped="infrastructure", reason='no "server"', seconds=1e-05
    )
