"""The lines of a run folder: the bytes of before, back and forth, and one error with a path for a bad one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from environments.common.record_lines import RecordError, decode, encode, read_lines, tolerant
from environments.livecode.evaluation.samples import Sample, SampleStore, as_sample, without_texts
from environments.livecode.records.group_records import GroupRecords
from environments.livecode.records.programs import unpacked
from environments.livecode.records.schema import GroupRecord, ProgramsRecord, RolloutRecord
from tests.livecode.recorded_groups import ACCEPTED, PROBLEM, ROLLOUTS, WRONG, judged_group

ROOT = Path(__file__).resolve().parents[2]
LINES: dict[str, list[str]] = json.loads((ROOT / "tests" / "vectors" / "run_lines.json").read_text(encoding="utf-8"))


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def test_groups_are_written_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("environments.livecode.records.group_records.time.time", lambda: 1795490668.8614)
    records = GroupRecords(tmp_path, rollouts_per_group=4, programs=True, tokens=True)
    records.group(judged_group(), sent=True)
    records.group(judged_group(scored=False), sent=False)
    records.group(judged_group(), sent=False, written="a.jsonl")
    GroupRecords(tmp_path).sample(judged_group())
    assert lines(tmp_path / "environment.jsonl") == LINES["environment"]
    assert lines(tmp_path / "rollouts" / "step-00003.jsonl") == LINES["rollouts"]
    assert lines(tmp_path / "programs" / "step-00003.jsonl") == LINES["programs"]


def test_samples_are_written_as_before(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, "n", {})
    for index, rollout in enumerate(ROLLOUTS[:3]):
        assert rollout.verdict is not None
        store.add(as_sample(PROBLEM, index, rollout, {"run": rollout.verdict, "official": WRONG}))
    store.add(as_sample(PROBLEM, 3, ROLLOUTS[0]))
    assert {sample.text for sample in store.kept.values()} == {msgspec.UNSET}
    store.finish([PROBLEM])
    bare = encode(without_texts(as_sample(PROBLEM, 4, ROLLOUTS[1], {"run": WRONG})))
    assert [*lines(store.path), bare] == LINES["evaluations"]
    assert [store.path.with_suffix(".livecodebench.json").read_text(encoding="utf-8")] == LINES["livecodebench"]


@pytest.mark.parametrize(
    ("name", "kind"), [("environment", GroupRecord), ("rollouts", RolloutRecord), ("evaluations", Sample)]
)
def test_a_line_that_is_read_and_written_is_the_same(name: str, kind: type[msgspec.Struct]) -> None:
    for line in LINES[name]:
        assert encode(decode(line, kind)) == line
        newer = line[:-1] + ',"of_a_newer_version":[1]}'
        assert encode(decode(newer, kind)) == line


def test_lines_of_the_first_version_are_read_and_written_the_same() -> None:
    for path in sorted((ROOT / "benchmarks" / "results" / "learning").glob("*/environment.jsonl")):
        found = lines(path)
        assert [encode(decode(line, GroupRecord)) for line in found] == found


def test_a_groups_programs_are_unpacked_with_their_verdicts() -> None:
    one, *_ = (unpacked(decode(line, ProgramsRecord)) for line in LINES["programs"])
    assert [(row.index, row.status, row.code, row.score) for row in one] == [
        *((0, "accepted", "print(2)  # ü", 1.0), (1, "wrong_answer", "x\ud800", -1.0)),
        *((2, "no_code", None, -1.0), (3, "overlong", None, -1.0)),
    ]
    assert one[0].verdict is not None
    assert (one[0].verdict.passed, one[0].verdict.attempts) == (ACCEPTED["passed"], {"sockets": 1})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_version": "3"}, r"Expected `int \| null`, got `str` - at `\$.weight_version`"),
        ({"overlong": [True, 0]}, r"Expected `bool`, got `int` - at `\$.overlong\[1\]`"),
        ({"time": 10**400}, r"out of range - at `\$.time`"),
    ],
)
def test_a_line_that_is_no_record_is_an_error_with_its_fields_path(change: dict[str, Any], words: str) -> None:
    line = json.dumps(json.loads(LINES["environment"][0]) | change)
    with pytest.raises(RecordError, match=words):
        decode(line, GroupRecord)
    with pytest.raises(RecordError, match="Expecting"):
        decode(line[:-4], GroupRecord)


def test_lines_that_are_no_records_are_left_out_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "n.jsonl"
    path.write_text('{"index": 1, "problem": "p", "status": null}\n[]\n{"problem": "p"}\n{"index": 2, "prob')
    assert list(read_lines(path, Sample)) == [Sample("p", 1, None)]


def test_a_reader_that_shows_what_there_is_takes_a_field_of_another_type_as_missing() -> None:
    row = json.loads(LINES["rollouts"][0])
    row |= {"length": float("nan"), "verdict": row["verdict"] | {"passed": "x"}, "versions": [[1]]}
    found = tolerant(row, RolloutRecord)
    assert found is not None
    assert (found.length, found.versions, found.code) == (None, [], "print(2)  # ü")
    assert found.verdict is not None
    assert (found.verdict.passed, found.verdict.ran) == (msgspec.UNSET, 2)
    assert tolerant({"problem": "p", "index": "1", "status": None}, Sample) is None
