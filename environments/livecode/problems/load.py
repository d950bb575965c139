"""Problems from a file, or from a split that `atropos data build` made.

A file holds one JSON object a line: either the normal form (`Problem`'s fields) or a row of
livecodebench/code_generation_lite (`question_content`, `public_test_cases`, ...); both may be mixed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from environments.livecode.problems.livecodebench import from_livecodebench
from environments.livecode.problems.problem import LATER, Problem, ProblemError, validated


def load_problems(path: str | Path) -> list[Problem]:
    """The problems of a JSONL file in its order; normal form and LiveCodeBench rows are distinguished by line.

    A split that `atropos data build` made (its folder or problems.parquet) is read with its test sets left on disk.

    Raises:
        ProblemError: a file that is missing or empty, a line that is not a JSON object, a problem without
            tests, an unknown kind or field, an id that occurs twice.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".parquet":
        from environments.livecode.problems.stored_tests import is_built, load_built

        if not is_built(path):
            raise ProblemError(
                f"{path}: a folder without problems.parquet. Give a split that `atropos data build` made."
            )
        return load_built(path)
    try:
        stream = path.open(encoding="utf-8-sig")
    except OSError as error:
        raise ProblemError(f"{path}: cannot be read ({error.strerror}). Give the path of a JSONL file.") from None
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    with stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            problem = _parse(line, f"{path}:{number}")
            if problem.id in seen:
                raise ProblemError(
                    f"{path}:{number}: problem {problem.id}: the id is on line {seen[problem.id]} already. "
                    "Give every problem an id of its own."
                )
            seen[problem.id] = number
            problems.append(problem)
    if not problems:
        raise ProblemError(f"{path}: holds no problem. Give a JSONL file with one problem a line.")
    return problems


def save_problems(problems: Iterable[Problem], path: str | Path) -> None:
    """Writes the normal form, one JSON object a line; equal problems give equal bytes."""
    plain = (
        problem.model_dump(exclude={name for name in LATER if getattr(problem, name) is None}) for problem in problems
    )
    lines = [json.dumps(fields, ensure_ascii=False) + "\n" for fields in plain]
    Path(path).write_text("".join(lines), encoding="utf-8", newline="\n")


def _parse(line: str, where: str) -> Problem:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ProblemError(f"{where}: not JSON ({error}). Need one object a line.") from None
    if not isinstance(row, dict):
        raise ProblemError(f"{where}: holds a {type(row).__name__}, need one object a line.")
    try:
        if "question_content" in row or "question_id" in row:
            return from_livecodebench(row)
        return validated(row, str(row.get("id", "without id")))
    except ProblemError as error:
        raise ProblemError(f"{where}: {error}") from None
