"""Files of sources: JSON arrays are streamed, what is cut off is named, equal rows are judged once."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from environments.common.settings import ConfigError
from environments.dataset.drop_reasons import Dropped
from environments.dataset.solutions import check_solutions
from environments.dataset.sources import BATCH_BYTES, read_rows
from environments.livecode.config import LivecodeEnvConfig
from environments.livecode.problems.load import load_problems
from environments.livecode.problems.problem import Problem
from environments.livecode.verification.factory import build_verifier
from environments.livecode.verification.judge_requests import judge_request
from tests.dataset.conftest import CODE, lcb_rows, statement, sums, write_jsonl, write_parquet
from tests.dataset.test_build import run
from verifier_app.judge.store import TestStore

ROWS = [{"a": 1, "text": "é\n"}, {"a": 0.5, "list": [1, [None, True]]}]


@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("around", ["%s", "%s\n", "\ufeff%s", " \n%s\n\n"])
def test_a_json_array_is_read_row_by_row(tmp_path: Path, indent: int | None, around: str) -> None:
    (tmp_path / "rows.json").write_text(around % json.dumps(ROWS, indent=indent))
    assert list(read_rows(tmp_path / "rows.json")) == [(1, ROWS[0]), (2, ROWS[1])]


def test_json_lines_stay_lines_whatever_the_file_is_called(tmp_path: Path) -> None:
    for name in ("rows.json", "rows.jsonl"):
        write_jsonl(tmp_path / name, ROWS)
        assert list(read_rows(tmp_path / name)) == [(1, ROWS[0]), (2, ROWS[1])]


def test_an_element_that_is_no_row_is_left_out_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([ROWS[0], [1], ROWS[1]]))
    first, second, third = read_rows(tmp_path / "rows.json")
    assert (first[1], third) == (ROWS[0], (3, ROWS[1]))
    assert isinstance(second[1], Dropped)
    assert second[1].reason == "invalid_json"


def test_an_array_that_is_cut_off_is_named_with_the_rows_before(tmp_path: Path) -> None:
    text = json.dumps(ROWS)
    for cut in (text[:-1], text[:-3], text + "x", "["):
        (tmp_path / "rows.json").write_text(cut)
        with pytest.raises(ConfigError, match=r"rows.json: no whole JSON array after row \d"):
            list(read_rows(tmp_path / "rows.json"))


def test_rows_of_a_parquet_file_come_one_by_one_from_small_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = BATCH_BYTES // 3
    rows = [{"n": n, "text": f"{n:x}" * size} for n in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", compression=None, use_dictionary=False)
    held: list[int] = []
    whole = pq.ParquetFile.iter_batches

    def watched(self: Any, size: int, **options: Any) -> Any:
        held.append(size)
        return whole(self, size, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    assert [row for _, row in read_rows(tmp_path / "rows.parquet")] == rows
    assert held
    assert all(batch * size <= BATCH_BYTES for batch in held)


async def test_rows_that_repeat_a_problem_are_judged_once(tmp_path: Path) -> None:
    tests = [{"input": given, "output": wanted} for given, wanted in sums()]
    reference = TestStore(tmp_path / "tests").put(tests)
    row = {
        "fn_name": None, "solutions": [CODE], "readings": [], "checker": None,
        "tests_sha256": reference["sha256"], "tests_count": reference["count"],
    }  # fmt: skip
    ticks: list[None] = []
    found = await check_solutions(
        [row | {"id": f"{number}"} for number in range(40)], tmp_path / "tests", tmp_path / "kept.jsonl", 1,
        lambda: ticks.append(None),
    )  # fmt: skip
    assert found == {f"{number}": reference["sha256"] for number in range(40)}
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 1
    assert len(ticks) == 40


def _write_test_split(folder: Path) -> None:
    write_jsonl(folder / "livecodebench" / "code_generation_lite" / "test.jsonl", lcb_rows())


async def _accepts(problem: Problem, code: str, run_dir: Path) -> bool:
    config = LivecodeEnvConfig(problems=str(run_dir / "train"), run_dir=str(run_dir))
    async with build_verifier(config) as verifier:
        verdict = await verifier.verify(judge_request(problem, code, time_limit_s=5, memory_limit_mb=512))
    return bool(verdict["status"] == "accepted")


SWAP = "def swap(items):\n    return items[::-1]\n"


async def test_a_right_program_is_accepted_for_a_function_of_every_source_of_rlvr(tmp_path: Path) -> None:
    def row(name: str, inputs: list[Any], outputs: list[Any]) -> dict[str, Any]:
        tests = json.dumps({"input": inputs, "output": outputs})
        return {"problem": statement(name), "problem_type": "func", "fn_name": "swap", "tests": tests,
                "starter_code": "", "index": 0, "dataset": name}  # fmt: skip

    items: list[Any] = [[1, 2], [3], [], ["a", None], [[4], True]]
    swapped = [each[::-1] for each in items]
    rows = [
        row("taco", [[each] for each in items], [[each] for each in swapped]),
        row("prime", [[each] for each in items], [[each] for each in swapped]),
        row("lcb", [json.dumps(each) for each in items], [json.dumps(each) for each in swapped]),
    ]
    _write_test_split(tmp_path / "hub")
    write_jsonl(tmp_path / "hub" / "NousResearch" / "RLVR_Coding_Problems" / "rl_train.jsonl", rows)
    await asyncio.to_thread(run, tmp_path / "hub", tmp_path / "out", recipe="rlvr")
    problems = load_problems(tmp_path / "out" / "train")
    assert len(problems) == 3
    assert [await _accepts(problem, SWAP, tmp_path / "out") for problem in problems] == [True] * 3


def test_original_reads_taco_from_an_array_and_leaves_the_known_bad_out(tmp_path: Path) -> None:
    inputs, outputs = ([pair[index] for pair in sums()] for index in (0, 1))
    tests = json.dumps({"inputs": inputs, "outputs": outputs})
    taco = [
        {"question": statement(name), "input_output": tests, "solutions": json.dumps([CODE]), "starter_code": ""}
        for name in ("one", "two")
    ]
    hub = tmp_path / "hub"
    rows = lcb_rows()
    before = next(row for row in rows if row["question_id"] == "early5")
    many = json.dumps([{"input": given, "output": wanted, "testtype": "stdin"} for given, wanted in sums()])
    bad = before | {"question_id": "abc337_e", "question_content": statement("guess"), "public_test_cases": many}
    write_jsonl(hub / "livecodebench" / "code_generation_lite" / "test.jsonl", [*rows, bad])
    (hub / "likaixin" / "TACO-verified").mkdir(parents=True)
    (hub / "likaixin" / "TACO-verified" / "taco_verified.json").write_text(json.dumps(taco))
    cases = [{"type": "stdin_stdout", "input": given, "output": wanted} for given, wanted in sums()]
    synthetic = {
        "task_type": "verifiable_code",
        "prompt": statement("three"),
        "gold_standard_solution": f"```python3\n{CODE}```",
        "verification_info": json.dumps({"language": "python", "test_cases": cases}),
    }
    write_parquet(hub / "PrimeIntellect" / "SYNTHETIC-1" / "data" / "train-0.parquet", [synthetic])
    manifest = run(hub, tmp_path / "out", recipe="original")
    assert {name: source["problems"] for name, source in manifest["sources"].items()} == {
        "livecodebench": 0, "taco_verified": 2, "synthetic1": 1, "livecodebench_v6": 454,
    }  # fmt: skip
    assert manifest["sources"]["livecodebench"]["dropped"]["known_bad"] == 1
