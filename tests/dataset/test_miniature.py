"""The miniature recipe: the shipped files are what the definitions say, and every problem is solvable."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from environments.dataset.miniature import make
from environments.dataset.readers import read_row
from environments.dataset.sources import RECIPES, find_files, read_rows
from environments.livecode.config import LivecodeEnvConfig
from environments.livecode.problems.load import load_problems
from environments.livecode.problems.prompts import messages
from environments.livecode.verification.factory import build_verifier
from environments.livecode.verification.judge_requests import judge_request
from tests.dataset.test_build import run

READERS = {source.name.removeprefix("miniature_"): source.reader for source in RECIPES["miniature"].sources}


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("miniature")
    return out, run(out, out, recipe="miniature")


def test_the_files_are_what_the_definitions_make(tmp_path: Path) -> None:
    make.write(tmp_path)
    for source in RECIPES["miniature"].sources:
        assert source.folder is not None
        (shipped,), (made,) = find_files(source, source.folder), find_files(source, tmp_path)
        assert shipped.name == made.name

        def read(path: Path, reader: Any = source.reader) -> list[Any]:
            # read, since packed tests differ in their bytes between versions of zlib
            return [read_row(reader, row) for _, row in read_rows(path) if isinstance(row, dict)]

        assert read(shipped) == read(made)


def test_every_row_is_kept_and_every_level_is_in_every_part(miniature: tuple[Path, dict[str, Any]]) -> None:
    out, manifest = miniature
    assert {name: (source["problems"], source["dropped"]) for name, source in manifest["sources"].items()} == {
        f"miniature_{name}": (20, {}) for name in READERS
    }
    for split, each in (("train", 12), ("test", 4)):
        levels = Counter(problem.difficulty for problem in load_problems(out / split))
        assert levels == {f"level_{level}": each for level in range(1, 6)}


async def test_the_solutions_of_livecodebench_rows_pass_too(miniature: tuple[Path, dict[str, Any]]) -> None:
    """Those of the other rows the build has judged."""
    out, _ = miniature
    solutions = {one["name"]: one["solution"] for level in make.definitions() for one in level}
    problems = [*load_problems(out / "train"), *load_problems(out / "test")]
    named = [(problem, solutions[name]) for problem in problems if (name := problem.id.split("/")[-1]) in solutions]
    assert len(named) == 40
    config = LivecodeEnvConfig(problems=str(out / "train"), run_dir=str(out))
    async with build_verifier(config) as verifier:
        for problem, code in named:
            verdict = await verifier.verify(judge_request(problem, code, time_limit_s=10, memory_limit_mb=512))
            assert verdict["status"] == "accepted", (problem.id, verdict["message"])


def test_prompts_show_no_instructions_of_the_source_and_the_starter_code(
    miniature: tuple[Path, dict[str, Any]],
) -> None:
    for problem in load_problems(miniature[0] / "train"):
        asked = messages(problem)[-1]["content"]
        assert "Solve the following" not in asked
        assert "return the code" not in asked
        if problem.kind == "function":
            assert problem.starter_code.startswith(f"def {problem.fn_name}(")
            assert problem.starter_code in asked


def test_an_example_is_one_of_the_tests() -> None:
    for level in make.definitions():
        for problem in level:
            made = make.tests(problem)
            text = make.statement(problem, made)
            if "fn" in problem:
                calls = [", ".join(map(repr, given)) for given, _ in made]
                assert any(f"{problem['fn']}({given}) returns" in text for given in calls)
            else:
                assert any(json.dumps(given)[1:-1] in json.dumps(text) for given, _ in made)
