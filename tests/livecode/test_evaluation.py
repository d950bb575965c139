"""pass@1, its interval, and the gain between two evaluations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from environments.livecode.evaluation.drawing import Draws
from environments.livecode.evaluation.evaluate import (
    EvaluationError,
    breakdown,
    evaluate,
    paired_difference,
    pass_interval,
    scores,
    without,
)
from environments.livecode.evaluation.samples import Sample, SampleStore, estimates, pass_at_k, request_seed
from environments.livecode.generation.completions import CompletionClient
from environments.livecode.pipeline import Pipeline
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.problems.prompts import PromptBuilder
from environments.livecode.verification.local import LocalVerifier

RIGHT, WRONG = "```python\nprint(int(input()) + 1)\n```", "```python\nprint(0)\n```"


def problem(name: str, template: str) -> Problem:
    return Problem(
        id=name,
        source="t",
        kind="stdin",
        statement=f"Add one. ({name})",
        template=template,
        tests=[TestCase(input="1\n", output="2\n")],
    )


PROBLEMS = [problem("a1", "a"), problem("a2", "a"), problem("b1", "b")]


async def run(generation: Any, tokenizer: Any, samples: SampleStore | None = None, **changes: Any) -> dict[str, Any]:
    async with CompletionClient([generation.url]) as client, LocalVerifier(workers=1) as verifier:
        pipeline = Pipeline(
            client=client,
            verifier=verifier,
            prompts=PromptBuilder(tokenizer, limit=4000),
            max_concurrent=4,
            time_limit_s=5,
            memory_limit_mb=512,
        )
        draws = replace(Draws(2, 0.7, False, 50), **changes)
        return await evaluate(PROBLEMS, draws, pipeline=pipeline, name="set", weight_version=4, samples=samples)


async def test_an_evaluation_counts_by_template_and_problem(generation: Any, tokenizer: Any) -> None:
    generation.script = lambda prompt, number: {"text": RIGHT if "(a1)" in prompt else WRONG}
    record = await run(generation, tokenizer)
    assert (record["correct"], record["total"], record["problems"], record["n"]) == (2, 6, 3, 2)
    assert record["pass_at_1"] == pytest.approx(1 / 3)
    assert record["per_template"] == {"a": [2, 4], "b": [0, 2]}
    assert record["per_problem"] == {"a1": ["a", 2, 2], "a2": ["a", 0, 2], "b1": ["b", 0, 2]}
    assert record["verdicts"] == {"accepted": 2, "wrong_answer": 4}
    assert (record["no_verdict"], record["weight_version"]) == (0, 4)


async def test_equal_seeds_ask_for_equal_draws_and_other_samples_for_others(generation: Any, tokenizer: Any) -> None:
    await run(generation, tokenizer, seed=3)
    first = sorted(body["sampling_params"]["seed"] for body in generation.requests)
    generation.requests.clear()
    await run(generation, tokenizer, seed=3)
    assert sorted(body["sampling_params"]["seed"] for body in generation.requests) == first
    assert len(set(first)) == 6


async def test_greedy_is_one_answer_without_sampling(generation: Any, tokenizer: Any) -> None:
    record = await run(generation, tokenizer, greedy=True)
    assert (record["total"], record["temperature"], record["greedy"]) == (3, 0.0, True)
    assert {body["sampling_params"]["temperature"] for body in generation.requests} == {0.0}


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


async def test_a_restart_generates_only_what_is_missing(generation: Any, tokenizer: Any, tmp_path: Path) -> None:
    whole = await run(generation, tokenizer, samples=SampleStore(tmp_path, "set", {"seed": 0}))
    path = only(tmp_path, "*-????????.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    generation.requests.clear()
    partial = path.with_suffix(".partial.jsonl")
    partial.write_bytes(b"".join(lines[:4]) + lines[4][:20])  # cut off in the middle of the fifth
    again = await run(generation, tokenizer, samples=SampleStore(tmp_path, "set", {"seed": 0}))
    assert len(generation.requests) == 2
    assert {name: again[name] for name in again if name != "seconds"} == {
        name: whole[name] for name in whole if name != "seconds"
    }
    assert not partial.exists()
    generation.requests.clear()
    await run(generation, tokenizer, samples=SampleStore(tmp_path, "set", {"seed": 1}))
    assert len(generation.requests) == 6
    await run(generation, tokenizer, samples=SampleStore(tmp_path, "set", {"seed": 1}))
    assert len(generation.requests) == 12  # a finished evaluation is made anew


async def test_a_damaged_line_is_left_out_and_its_sample_made_again(
    generation: Any, tokenizer: Any, tmp_path: Path
) -> None:
    whole = await run(generation, tokenizer, samples=SampleStore(tmp_path, "set", {}))
    path = only(tmp_path, "*-????????.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = b"\0" * 40 + b"\n"
    path.with_suffix(".partial.jsonl").write_bytes(b"".join(lines))
    generation.requests.clear()
    again = await run(generation, tokenizer, samples=SampleStore(tmp_path, "set", {}))
    assert len(generation.requests) == 1
    assert again["pass_at_1"] == whole["pass_at_1"]
    rows = json.loads(only(tmp_path, "*.livecodebench.json").read_text())
    assert [len(row["graded_list"]) for row in rows] == [2, 2, 2]


async def test_a_reader_finds_each_problem_once_and_the_test_that_failed(
    generation: Any, tokenizer: Any, tmp_path: Path
) -> None:
    generation.script = lambda prompt, number: {"text": WRONG}
    await run(generation, tokenizer, samples=SampleStore(tmp_path, "set", {}))
    told = [json.loads(line) for line in only(tmp_path, "*.problems.jsonl").read_text().splitlines()]
    assert [row["id"] for row in told] == ["a1", "a2", "b1"]
    assert "Add one. (b1)" in told[2]["prompt"]
    sample = json.loads(only(tmp_path, "*-????????.jsonl").read_text().splitlines()[0])
    assert sample["failing_test"] == {"input": "1\n", "output": "2\n"}


def test_scores_are_told_apart_by_the_training_cut_off() -> None:
    dated = [problem(name, name).model_copy(update={"date": date}) for name, date in (
        ("a1", "2024-07-31T23:00:00"), ("a2", "2024-08-01T00:00:00"), ("b1", None),
    )]  # fmt: skip
    per_problem = {"a1": ["a", 2, 2], "a2": ["a", 1, 2], "b1": ["b", 0, 2]}
    assert breakdown(dated, per_problem, "2024-07-31")["training"] == {
        "after 2024-07-31": [1, 2], "up to 2024-07-31": [2, 2],
    }  # fmt: skip
    assert "training" not in breakdown(dated, per_problem)


async def test_results_are_there_in_livecodebenchs_own_form(generation: Any, tokenizer: Any, tmp_path: Path) -> None:
    generation.script = lambda prompt, number: {"text": RIGHT if "(a1)" in prompt else "no program"}
    await run(generation, tokenizer, samples=SampleStore(tmp_path, "set", {}))
    path = only(tmp_path, "*.livecodebench.json")
    rows = json.loads(path.read_text())
    assert [row["question_id"] for row in rows] == ["a1", "a2", "b1"]
    assert (rows[0]["graded_list"], rows[0]["pass@1"]) == ([True, True], 1.0)
    assert rows[0]["code_list"] == ["print(int(input()) + 1)"] * 2
    assert (rows[1]["graded_list"], rows[1]["code_list"]) == ([False, False], ["", ""])
    assert json.loads(rows[1]["metadata"][0])["status"] == "no_code"


def test_pass_at_k_is_the_unbiased_estimate() -> None:
    assert pass_at_k(1, 4, 1) == 0.25
    assert pass_at_k(1, 4, 2) == 0.5
    assert pass_at_k(2, 4, 3) == 1.0
    assert pass_at_k(0, 4, 4) == 0.0
    with pytest.raises(ValueError, match="k = 5: need 1 <= k <= the 4 samples"):
        pass_at_k(1, 4, 5)
    rows: list[Sample] = [Sample(p, i, s) for p, i, s in (
        ("a", 0, "wrong_answer"), ("a", 1, "accepted"), ("b", 0, "accepted"), ("b", 1, "accepted"), ("b", 2, None),
    )]  # fmt: skip
    assert estimates(rows) == {"pass_at_k": {"1": 0.75, "2": 1.0}, "pass_at_1_first": 0.5}


def test_pass_at_1_is_the_mean_over_problems_also_where_samples_lack_a_verdict() -> None:
    problems = [problem("a1", "a"), problem("a2", "a"), problem("b1", "b")]
    status: dict[str, list[str | None]] = {
        "a1": ["accepted"] * 4,
        "a2": ["accepted", None, None, None],
        "b1": ["wrong_answer"] * 4,
    }
    rows: list[Sample] = [Sample(p, i, s) for p, row in status.items() for i, s in enumerate(row)]
    found = scores(problems, rows)
    assert found["pass_at_1"] == found["pass_at_k"]["1"] == pytest.approx(2 / 3)
    assert (found["correct"], found["total"]) == (5, 9)
    assert pass_interval({"a": ["t", 4, 4], "b": ["u", 0, 1]}) == (0.0, 1.0)
    assert paired_difference(
        record_of({"a": ["t", 0, 4], "b": ["t", 1, 1]}, pass_at_1=0.5),
        record_of({"a": ["t", 2, 4], "b": ["t", 1, 1]}, pass_at_1=0.75),
    )[0] == pytest.approx(0.25)  # fmt: skip


def test_a_requests_seed_fits_into_31_bits() -> None:
    assert all(0 <= request_seed(0, f"p{n}", 1) < 2**31 for n in range(1000))


def test_both_scores_are_reported_where_a_known_bad_problem_was_evaluated() -> None:
    rows = {"arc185_c": ["arc185_c", 0, 4], "a": ["a", 3, 4], "b": ["b", 1, 4]}
    assert without(rows, {"arc185_c", "arc189_a"}) == {
        "pass_at_1": 0.5, "ci95": list(pass_interval({"a": rows["a"], "b": rows["b"]})), "problems": 2,
    }  # fmt: skip
    assert without(rows, {"arc189_a"}) is None


def test_problems_that_are_all_solved_have_no_spread() -> None:
    assert pass_interval({"a": ["t", 4, 4], "b": ["u", 4, 4]}) == (1.0, 1.0)


def test_the_interval_resamples_templates_and_not_samples() -> None:
    # Two templates, one always and one never solved: a resample is 0, 1/2 or 1 with 1/4, 1/2, 1/4, however
    # many samples there were.
    few = pass_interval({"a": ["t", 4, 4], "b": ["u", 0, 4]})
    many = pass_interval({"a": ["t", 4000, 4000], "b": ["u", 0, 4000]})
    assert few == many == (0.0, 1.0)


def test_the_interval_of_many_templates_is_the_binomials() -> None:
    per_problem = {f"p{n}": [f"t{n}", n % 2, 1] for n in range(400)}
    low, high = pass_interval(per_problem)
    assert low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.004)
    assert high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.004)


def test_problems_are_resampled_within_their_template() -> None:
    one_template = {f"p{n}": ["t", n % 2, 1] for n in range(400)}
    low, high = pass_interval(one_template)
    assert (high - low) / 2 == pytest.approx(1.96 * 0.025, abs=0.004)


def record_of(per_problem: dict[str, list[Any]], **changes: Any) -> dict[str, Any]:
    correct, total = (sum(row[part] for row in per_problem.values()) for part in (1, 2))
    fields = {"set": "s", "n": 1, "temperature": 0.7, "pass_at_1": correct / total, "per_problem": per_problem}
    return fields | changes


def test_an_equal_gain_everywhere_has_no_spread_when_paired() -> None:
    before = record_of({f"p{n}": [f"t{n}", n % 3, 4] for n in range(30)})
    after = record_of({f"p{n}": [f"t{n}", n % 3 + 1, 4] for n in range(30)})
    gain, (low, high) = paired_difference(before, after)
    assert (gain, low, high) == pytest.approx((0.25, 0.25, 0.25))


def test_the_interval_of_a_gain_covers_its_spread_over_templates() -> None:
    before = record_of({f"p{n}": [f"t{n}", 0, 1] for n in range(100)})
    after = record_of({f"p{n}": [f"t{n}", int(n < 20), 1] for n in range(100)})
    gain, (low, high) = paired_difference(before, after)
    assert gain == pytest.approx(0.2)
    assert (low, high) == pytest.approx((0.2 - 1.96 * 0.04, 0.2 + 1.96 * 0.04), abs=0.02)


@pytest.mark.parametrize(
    "other",
    [
        record_of({"p": ["t", 0, 1]}, set="other"),
        record_of({"p": ["t", 0, 1]}, temperature=1.0),
        record_of({"q": ["t", 0, 1]}),
    ],
)
def test_evaluations_of_different_things_are_not_compared(other: dict[str, Any]) -> None:
    with pytest.raises(EvaluationError, match="not comparable"):
        paired_difference(record_of({"p": ["t", 0, 1]}), other)
