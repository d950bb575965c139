"""The build: every row is in a split or counted, the same input gives the same bytes, held-out problems stay out."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from environments.cli import app
from environments.common.settings import ConfigError
from environments.dataset import build as module
from environments.dataset.build import CLEANING, Options, build
from environments.dataset.sources import RECIPES
from environments.livecode.config import LivecodeEnvConfig
from environments.livecode.problems.load import load_problems
from environments.livecode.problems.problem import Problem, ProblemError
from environments.livecode.problems.stored_tests import StoredTests
from environments.livecode.verification.base import VerifierError
from environments.livecode.verification.factory import build_verifier
from environments.livecode.verification.judge_requests import judge_request
from tests.dataset.conftest import CODE, lcb_row, lcb_rows, statement, sums, write_jsonl


@contextlib.contextmanager
def quiet(what: str, total: int) -> Iterator[Callable[[], None]]:
    yield lambda: None


def run(sources: Path, out: Path, recipe: str = "nouscoder", **options: Any) -> dict[str, Any]:
    chosen = Options(out, sources, any_count=True, workers=2, **options)
    return build(RECIPES[recipe], chosen, lambda line: None, quiet)


@pytest.fixture(scope="module")
def built(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("built")
    return out, run(sources, out)


def by_statement(problems: list[Problem]) -> dict[str, Problem]:
    return {problem.statement.split(".")[0]: problem for problem in problems}


def test_every_row_is_in_a_split_or_left_out_for_a_reason(built: tuple[Path, dict[str, Any]]) -> None:
    _, manifest = built
    found = {name: (one["rows"], one["problems"], one["dropped"]) for name, one in manifest["sources"].items()}
    assert found == {
        "deepcoder_lcbv5": (3, 2, {"missing_column": 1}),
        "deepcoder_taco": (14, 6, {
            "contaminated_ngram": 1, "duplicate_exact": 1, "duplicate_near": 1, "few_tests": 1, "no_tests": 1,
            "solution_fails": 2, "unparsable_tests": 1,
        }),
        "deepcoder_primeintellect": (4, 2, {"mixed_tests": 1, "unparsable_tests": 1}),
        "livecodebench_v6": (458, 454, {}),
    }  # fmt: skip
    assert manifest["sources"]["livecodebench_v6"]["outside_window"] == 4
    for one in manifest["sources"].values():
        assert one["rows"] == one["problems"] + one["outside_window"] + sum(one["dropped"].values())
    assert {name: split["problems"] for name, split in manifest["splits"].items()} == {"train": 10, "test": 454}
    assert manifest["splits"]["test"]["kinds"] == {"function": 167, "stdin": 287}


def test_a_known_solution_decides_what_a_wrapped_output_means(built: tuple[Path, dict[str, Any]]) -> None:
    problems = by_statement(load_problems(built[0] / "train"))
    assert problems["Problem taco-wrapped"].tests[0].output == "6"
    assert problems["Problem taco-truly-a-list"].tests[0].output == "[6]"
    assert problems["Problem primeintellect-call"].tests[0].output == "1"
    assert "Problem taco-second-solution" in problems
    assert "Problem taco-wrong-solution" not in problems
    assert "PROBLEM TACO-TWIN-FAILS" in problems  # of two equal ones, the one whose solution passes


def test_the_same_input_gives_the_same_bytes_and_a_second_run_does_nothing_twice(
    built: tuple[Path, dict[str, Any]], sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = built
    again = tmp_path / "again"
    run(sources, again)
    for name in ("train/problems.parquet", "test/problems.parquet", "manifest.json", "decontamination.jsonl"):
        assert (again / name).read_bytes() == (out / name).read_bytes(), name
    stamps = {path: path.stat().st_mtime_ns for path in (again / "tests").rglob("*")}
    parts = {path: path.stat().st_mtime_ns for path in (again / "parts").glob("*.jsonl")}
    run(sources, again)
    assert {path: path.stat().st_mtime_ns for path in (again / "tests").rglob("*")} == stamps
    assert {path: path.stat().st_mtime_ns for path in parts} == parts


def test_a_changed_source_is_read_again(sources: Path, tmp_path: Path) -> None:
    copy = tmp_path / "hub"
    shutil.copytree(sources, copy)
    run(copy, tmp_path / "out", skip=frozenset({"solution_fails"}))
    path = copy / "livecodebench" / "code_generation_lite" / "test3.jsonl"
    with path.open("a") as stream:
        stream.write(json.dumps(lcb_row("one_more", "2024-09-01T00:00:00")) + "\n")
    manifest = run(copy, tmp_path / "out", skip=frozenset({"solution_fails"}))
    assert manifest["splits"]["test"]["problems"] == 455


def test_steps_can_be_left_out_and_the_published_filter_leaves_nothing_out(sources: Path, tmp_path: Path) -> None:
    manifest = run(sources, tmp_path / "out", recipe="deepcoder")
    assert manifest["splits"]["train"]["problems"] == 2 + 12 + 2
    assert not any(manifest["cleaning"][step] for step in module.CLEANING)
    kept = run(sources, tmp_path / "out", skip=frozenset({"contaminated", "solution_fails"}))
    assert kept["splits"]["train"]["problems"] == 2 + 8 + 2


def test_counts_that_are_not_the_published_ones_stop_the_build(sources: Path, tmp_path: Path) -> None:
    options = Options(tmp_path, sources)
    with pytest.raises(ConfigError, match=r"deepcoder_taco: 12 problems instead of 7436.*--any-count"):
        build(RECIPES["nouscoder"], options, lambda line: None, quiet)
    assert not (tmp_path / "train").exists()
    assert sum(source.expected or 0 for source in RECIPES["nouscoder"].sources if source.split == "train") == 24_287


def test_the_validation_window_is_held_out_too(sources: Path, tmp_path: Path) -> None:
    manifest = run(sources, tmp_path, validation_from="2024-06-01", skip=frozenset({"solution_fails"}))
    assert manifest["splits"]["validation"]["problems"] == 2
    assert [problem.id for problem in load_problems(tmp_path / "validation")] == ["early6", "early7"]


def test_the_known_bad_problems_are_left_out_by_a_flag(sources: Path, tmp_path: Path) -> None:
    manifest = run(sources, tmp_path, leave_out_known_bad=True, skip=frozenset({"solution_fails"}))
    assert manifest["splits"]["test"]["problems"] == 452
    assert manifest["sources"]["livecodebench_v6"]["dropped"] == {"known_bad": 2}


def test_the_pairs_that_were_in_both_are_shown(built: tuple[Path, dict[str, Any]]) -> None:
    (pair,) = [json.loads(line) for line in (built[0] / "decontamination.jsonl").read_text().splitlines()]
    assert (pair["held_out"], pair["how"], pair["score"]) == ("abc365_e", "ngram", 1.0)
    assert pair["train_statement"].startswith("Problem abc365_e.")


# -- What the environment does with it ----------------------------------------------------------------------


def test_test_sets_stay_on_disk_until_they_are_looked_at(built: tuple[Path, dict[str, Any]]) -> None:
    (problem, *_) = load_problems(built[0] / "test")
    tests = problem.tests
    assert isinstance(tests, StoredTests)
    assert len(tests) == 2
    data = tests.path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == tests.sha256 == tests.path.name
    assert [test.input for test in tests] == [test["input"] for test in json.loads(data)]
    assert tests[-1] == list(tests)[1]


async def test_built_problems_are_judged_from_their_own_folder(
    built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, _ = built
    config = LivecodeEnvConfig(problems=str(out / "train"), run_dir=str(tmp_path))
    problems = by_statement(load_problems(out / "train"))
    request = judge_request(problems["Problem taco-good"], CODE, time_limit_s=5, memory_limit_mb=512)
    async with build_verifier(config) as verifier:
        assert (await verifier.verify(request))["passed"] == 6
    assert not (tmp_path / "tests").exists()


async def test_a_missing_test_set_is_an_error_with_its_file_and_no_verdict(sources: Path, tmp_path: Path) -> None:
    await asyncio.to_thread(run, sources, tmp_path, skip=frozenset({"solution_fails"}))
    (problem, *_) = load_problems(tmp_path / "train")
    assert isinstance(problem.tests, StoredTests)
    problem.tests.path.unlink()
    request = judge_request(problem, CODE, time_limit_s=5, memory_limit_mb=512)
    async with build_verifier(LivecodeEnvConfig(problems=str(tmp_path / "train"))) as verifier:
        with pytest.raises(VerifierError, match=f"{problem.tests.sha256}.*atropos data build"):
            await verifier.verify(request)


# -- Bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tail", "message"),
    [('{"question_id": "cut', r"test3.jsonl:59: the file ends in the middle of a row")],
)
def test_a_file_that_is_cut_off_is_named_with_its_line(sources: Path, tmp_path: Path, tail: str, message: str) -> None:
    copy = tmp_path / "hub"
    shutil.copytree(sources, copy)
    with (copy / "livecodebench" / "code_generation_lite" / "test3.jsonl").open("a") as stream:
        stream.write(tail)
    with pytest.raises(ConfigError, match=message):
        run(copy, tmp_path / "out")


def test_a_cut_parquet_file_is_named(sources: Path, tmp_path: Path) -> None:
    copy = tmp_path / "hub"
    shutil.copytree(sources, copy)
    (path,) = (copy / "agentica-org" / "DeepCoder-Preview-Dataset" / "taco").iterdir()
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ConfigError, match=r"taco/train-00000-of-00001.parquet: cannot be read"):
        run(copy, tmp_path / "out")


def test_a_line_that_is_no_json_is_counted_with_file_and_line(sources: Path, tmp_path: Path) -> None:
    copy = tmp_path / "hub"
    shutil.copytree(sources, copy)
    rows = lcb_rows()
    write_jsonl(copy / "livecodebench" / "code_generation_lite" / "test2.jsonl", ["{broken", *rows[200:400]])
    manifest = run(copy, tmp_path / "out", skip=frozenset({"solution_fails"}))
    assert manifest["sources"]["livecodebench_v6"]["dropped"] == {"invalid_json": 1}
    (line,) = (tmp_path / "out" / "parts" / "livecodebench_v6.dropped.jsonl").read_text().splitlines()
    assert (json.loads(line)["file"], json.loads(line)["line"]) == ("test2.jsonl", 1)


def test_a_full_disk_is_one_error_and_the_same_command_goes_on(sources: Path, tmp_path: Path) -> None:
    words = f"data build --from {sources} --out {tmp_path} --any-count --skip solution_fails --workers 2"
    command = [str(Path(sys.executable).with_name("atropos")), *words.split()]

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    # `make coverage` would have it write a file of its own, which is too large as well
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    full = subprocess.run(command, capture_output=True, text=True, preexec_fn=small_files, check=False, env=unmeasured)
    assert full.returncode == 2, full.stderr
    assert "File too large. Mend it and run the same command again" in full.stderr.replace("\n", " ")
    assert "Traceback" not in full.stderr
    assert not (tmp_path / "train" / "problems.parquet").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert len(load_problems(tmp_path / "test")) == 454


def test_a_judge_that_cannot_judge_is_one_error_with_the_problem(sources: Path, tmp_path: Path) -> None:
    run(sources, tmp_path, skip=frozenset({"solution_fails"}))
    lost = by_statement(load_problems(tmp_path / "train"))["Problem taco-good"]
    assert isinstance(lost.tests, StoredTests)
    lost.tests.path.unlink()
    with pytest.raises(ConfigError, match=r"known solutions: problem deepcoder_taco/000001: test_set_missing.*remove"):
        run(sources, tmp_path)
    shutil.rmtree(tmp_path / "parts")
    assert run(sources, tmp_path)["splits"]["train"]["problems"] == 10


def test_missing_files_name_the_folders_that_were_looked_in(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no file lcbv5/train-\*.parquet in .*agentica-org/DeepCoder-Preview-Dataset"
    ):
        run(tmp_path, tmp_path / "out")


def test_another_files_columns_are_named(tmp_path: Path) -> None:
    from tests.dataset.conftest import write_parquet

    write_parquet(tmp_path / "problems.parquet", [{"a": 1}])
    with pytest.raises(ProblemError, match=r"its columns are a; need id, source"):
        load_problems(tmp_path)
    with pytest.raises(ProblemError, match=r"a folder without problems.parquet"):
        load_problems(tmp_path.parent)


# -- Commands -----------------------------------------------------------------------------------------------


def test_the_commands_build_check_and_show(sources: Path, tmp_path: Path) -> None:
    runner, out = CliRunner(), tmp_path / "out"
    made = runner.invoke(
        app, ["data", "build", "--out", str(out), "--from", str(sources), "--any-count", "--workers", "2"]
    )
    assert made.exit_code == 0, made.output
    assert "train: 10 problems" in made.output
    assert "1 contaminated_ngram" in made.output
    assert "licence: MIT" in made.output
    clean = runner.invoke(app, ["data", "check", str(out / "train"), str(out / "test")])
    assert clean.exit_code == 0, clean.output
    assert "none in both" in clean.output
    guilty = tmp_path / "guilty.jsonl"
    tests = [{"input": given, "output": wanted} for given, wanted in sums(3)]
    row = {"id": "copy", "source": "x", "kind": "stdin", "statement": statement("abc365_e").lower(), "tests": tests}
    write_jsonl(guilty, [row])
    dirty = runner.invoke(app, ["data", "check", str(guilty), str(out / "test")])
    assert dirty.exit_code == 1
    assert "copy is abc365_e" in dirty.output
    table = runner.invoke(app, ["data", "show", str(out / "train")])
    assert "deepcoder_taco" in table.output
    one = runner.invoke(app, ["data", "show", str(out / "test"), "--problem", "abc365_e"])
    assert "abc365_e" in one.output
    assert "test 1" in one.output
    absent = runner.invoke(app, ["data", "show", str(out / "test"), "--problem", "none"])
    assert absent.exit_code == 2
    assert "not in" in absent.output
    assert runner.invoke(app, ["data", "build", "--out", "x", "--recipe", "list"]).exit_code == 2
    assert "no such step" in runner.invoke(app, ["data", "build", "--out", "x", "--skip", "all"]).output


def test_the_help_names_every_step_and_every_recipe() -> None:
    words = " ".join(CliRunner().invoke(app, ["data", "build", "--help"], env={"COLUMNS": "400"}).output.split())
    for name in (*CLEANING, *RECIPES):
        assert name in words
