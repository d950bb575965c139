"""`atropos data push`: the large test sets of a problem file, once, to where the judges read them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from environments.common.settings import ConfigError
from environments.livecode.problems.load import load_problems
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.problems.stored_tests import StoredTests
from environments.livecode.verification.uploads import INLINE_BYTES, LargeTestSet, encode_set, is_large
from verifier_app.judge.store import TestStore

BATCH_BYTES = 64 << 20  # sets uploaded in one go: what is held in memory


def push(problems: Path, folder: Path | None, volume: str, environment: str | None) -> tuple[int, int, int]:
    """Uploads the sets above 1 MiB that are not there yet.

    Args:
        folder: a folder that judges share (`env.tests_dir`, VERIFIER_TESTS_DIR); None: Modal's volume.
        volume, environment: Modal's names, as in VERIFIER_VOLUME.

    Returns:
        (large sets, sets sent, bytes sent).

    Raises:
        ConfigError: problems that cannot be read, a folder that cannot be written, no account on Modal.
    """
    try:
        sets = large_sets(load_problems(problems))
        if folder is not None:
            return push_to_folder(sets, folder)
        return asyncio.run(push_to_modal(sets, volume, environment))
    except (ValueError, OSError) as error:
        raise ConfigError(f"data push: {error}") from None


def large_sets(problems: Iterable[Problem]) -> Iterator[LargeTestSet]:
    """The distinct sets that travel by themselves."""
    seen = set()
    for problem in problems:
        found = _large(problem.tests)
        if found is not None and found.sha256 not in seen:
            seen.add(found.sha256)
            yield found


def _large(tests: Sequence[TestCase]) -> LargeTestSet | None:
    if isinstance(tests, StoredTests):
        return LargeTestSet(tests.sha256, tests.total, tests.read) if tests.size >= INLINE_BYTES else None
    plain = [{"input": test.input, "output": test.output} for test in tests]
    return encode_set(plain) if is_large(plain) else None


def push_to_folder(sets: Iterable[LargeTestSet], folder: Path) -> tuple[int, int, int]:
    """Writes the sets below a folder, as `TestStore` does."""
    store, total, sent, size = TestStore(folder), 0, 0, 0
    for one in sets:
        total += 1
        if not store.path(one.sha256).exists():
            data = one.read()
            store.put_bytes(one.sha256, data)
            sent, size = sent + 1, size + len(data)
    return total, sent, size


async def push_to_modal(sets: Iterable[LargeTestSet], volume: str, environment: str | None) -> tuple[int, int, int]:
    """Uploads the sets into a Modal volume, which is made where it is missing."""
    import modal

    from environments.livecode.verification.modal import upload_sets

    target = modal.Volume.from_name(volume, environment_name=environment, create_if_missing=True)
    total, sent, size, batch, waiting = 0, 0, 0, list[tuple[str, bytes]](), 0
    with Progress(console=Console(stderr=True)) as progress:
        row = progress.add_task("test sets", total=None)
        try:
            there = {Path(entry.path).name async for entry in target.iterdir.aio("/", recursive=True)}

            async def send() -> None:
                nonlocal sent, size, waiting
                await upload_sets(target, batch)
                sent, size, waiting = sent + len(batch), size + waiting, 0
                progress.update(row, description=f"test sets: {sent} sent, {size >> 20} MiB")
                batch.clear()

            for one in sets:
                total += 1
                if one.sha256 in there:
                    continue
                data = one.read()
                batch.append((one.sha256, data))
                waiting += len(data)
                if waiting >= BATCH_BYTES:
                    await send()
            if batch:
                await send()
        except modal.exception.AuthError as error:
            raise ConfigError(f"data push: no valid account on Modal ({error}). Run: modal token new") from None
        except modal.exception.Error as error:
            raise ConfigError(
                f"data push: Modal does not take it ({type(error).__name__}: {error}). Run it again."
            ) from None
    return total, sent, size


def report(counts: tuple[int, int, int], where: Any) -> str:
    """What a push did, in a line."""
    total, sent, size = counts
    return f"{total} test sets above 1 MiB, {total - sent} were there, {sent} sent ({size / 2**20:.1f} MiB) to {where}"
