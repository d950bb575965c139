"""Problems whose own solution fails are left out; which reading of the results is meant, the solution decides."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from environments.livecode.pipeline import all_of
from environments.livecode.verification.base import VerifierError
from environments.livecode.verification.local import LocalVerifier
from verifier_app.judge.default_limits import MEMORY_LIMIT_MB, TIME_LIMIT_S


async def check_solutions(
    rows: Sequence[dict[str, Any]], tests: Path, kept: Path, workers: int, progress: Callable[[], None]
) -> dict[str, str | None]:
    """Judges the known solutions: {id: the sha256 of the tests that one passes, None where none passes any}.

    Problems without a known solution are not in the answer. Each outcome is in the file `kept` before the next one
    counts, so that an interrupted run resumes, and a second run judges nothing.

    Raises:
        VerifierError: the judge fails, or a test set is gone; the message names the problem.
    """
    known = _read(kept)
    waiting: dict[str, list[dict[str, Any]]] = {}  # rows that repeat a problem (a source may have one a response)
    for row in rows:
        if row["solutions"]:
            waiting.setdefault(_key(row), []).append(row)
    bound = asyncio.Semaphore(2 * workers)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.open("a", encoding="utf-8") as stream:
        async with LocalVerifier(workers=workers, tests_dir=tests) as verifier:

            async def one(key: str, same: Sequence[dict[str, Any]]) -> None:
                if key not in known:
                    async with bound:
                        known[key] = await _first_that_passes(verifier, same[0])
                    stream.write(json.dumps([key, known[key]]) + "\n")
                    stream.flush()
                for _ in same:
                    progress()

            await all_of([one(key, same) for key, same in waiting.items()])
    return {row["id"]: known[key] for key, same in waiting.items() for row in same}


async def _first_that_passes(verifier: LocalVerifier, row: dict[str, Any]) -> str | None:
    for sha in forms(row):
        for code in row["solutions"]:
            request = {
                "code": code,
                "fn_name": row["fn_name"],
                "tests_ref": {"sha256": sha, "count": row["tests_count"]},
                "time_limit_s": TIME_LIMIT_S,
                "memory_limit_mb": MEMORY_LIMIT_MB,
                "checker": row["checker"],
            }
            try:
                verdict = await verifier.verify(request)
            except VerifierError as error:
                if "bad_request" in str(error):  # a program that no judge takes: too long, say
                    continue
                raise VerifierError(f"problem {row['id']}: {error}") from error
            if verdict["status"] == "accepted":
                return sha
    return None


def forms(row: dict[str, Any]) -> Iterator[str]:
    """The test sets that may be meant, the likelier first."""
    yield row["tests_sha256"]
    yield from (sha for sha, _ in row["readings"])


def _key(row: dict[str, Any]) -> str:
    parts = [*forms(row), row["fn_name"] or "", *row["solutions"]]
    if row["checker"] is not None:  # without one the key is that of earlier versions
        parts.append(json.dumps(row["checker"], sort_keys=True))
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _read(kept: Path) -> dict[str, str | None]:
    if not kept.is_file():
        return {}
    known = {}
    for line in kept.read_text(encoding="utf-8").splitlines():
        try:
            key, value = json.loads(line)
        except ValueError:
            continue  # the last line of an interrupted run: judged again
        known[key] = value
    return known
