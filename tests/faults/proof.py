"""What must be true of a run after all that happened to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from environments.api_server.journal import read_bodies
from environments.common.group_bytes import as_json
from environments.common.rewards import reward
from environments.livecode.pipeline import NO_CODE
from environments.livecode.problems.extraction import extract_code
from environments.livecode.problems.load import load_problems
from environments.livecode.verification.judge_requests import judge_request
from environments.tools.audit import Audit, audit
from tests.faults.loop import GROUP, LIMITS, PER_STEP, Loop, lines
from verifier_app.judge.judging import Judge
from verifier_app.judge.verdict import Verdict


def prove(loop: Loop) -> Audit:
    """The journals agree, no group is missing from the sum, and each score is what a fresh judge says.

    The scores are those on the wire, in the API server's journal, and those of the recorded rollouts; the judge
    runs here, after all faults.
    """
    found = audit(loop.homes["trainer"], [loop.homes["environment"]], loop.journal)
    assert found.violations == [], loop.logs("\n".join(found.lines()))
    assert not [name for name in found.counts if name.startswith("damaged")], found.lines()
    counts = found.counts
    assert counts["steps trained"] == loop.steps, found.lines()
    left_out = sum(n for name, n in counts.items() if name.startswith("left out by the trainer"))
    dropped = sum(n for name, n in counts.items() if name.startswith("dropped by the environment"))
    assert counts["groups trained on"] + left_out == loop.steps * PER_STEP, found.lines()
    on_the_way = counts["groups in an outbox"] + counts["groups waiting at the API server"]
    assert counts["groups made"] == counts["groups trained on"] + left_out + dropped + on_the_way, found.lines()
    _judge_again(loop)
    return found


def _judge_again(loop: Loop) -> None:
    problems = {problem.id: problem for problem in load_problems(loop.problems)}
    tokenizer = AutoTokenizer.from_pretrained(loop.model)
    known: dict[tuple[str, str], Verdict] = {}
    with Judge() as judge:

        def verdict(problem: str, code: str | None) -> Verdict:
            if code is None:
                return NO_CODE
            if (problem, code) not in known:
                known[problem, code] = judge.verify(judge_request(problems[problem], code, **LIMITS))
            return known[problem, code]

        judged = 0
        for group in wire_groups(loop.journal):
            problem = group["group_overrides"]["problem_id"]
            for ids, mask, score, says in zip(
                group["tokens"], group["masks"], group["scores"], group["overrides"], strict=True
            ):
                sampled = [token for token, where in zip(ids, mask, strict=True) if where != -100]
                text = tokenizer.decode(sampled, skip_special_tokens=True)
                assert isinstance(text, str)
                right = verdict(problem, extract_code(text))
                assert (score, says["verdict"]) == (reward(right), right["status"]), (problem, sampled, score, right)
                judged += 1
        for path in sorted((loop.homes["environment"] / "rollouts").glob("*.jsonl")):
            for row in lines(path):
                right = verdict(row["problem_id"], row["code"])
                assert row["status"] == right["status"], (row, right)
                assert row["score"] in (None, reward(right)), (row, right)
        assert judged >= loop.steps * PER_STEP * GROUP


def wire_groups(journal: Path) -> list[dict[str, Any]]:
    """Every group that an API server took, as it came."""
    return [json.loads(as_json(raw)) for raw in read_bodies(journal)]
