"""`atropos data build`: sources to parts, parts to splits, and a manifest that says what became of every row."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from environments.common.settings import ConfigError
from environments.dataset.convert import make_part, rows_of
from environments.dataset.deduplicate import Match, Overlap, Signature, duplicates
from environments.dataset.solutions import check_solutions
from environments.dataset.sources import LCB, LCB_FILES, LCB_LICENCE, Recipe, Source, download, find_files
from environments.livecode.problems.stored_tests import write_json, write_rows
from environments.livecode.problems.window import KNOWN_BAD, KNOWN_BAD_BEFORE, complaints
from environments.livecode.verification.base import VerifierError

CLEANING = ("few_tests", "known_bad", "duplicate", "contaminated", "solution_fails")
Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


@dataclass(frozen=True)
class Options:
    """What a build does. `skip`: steps of CLEANING that are left out."""

    out: Path
    local: Path | None = None
    min_tests: int = 5
    skip: frozenset[str] = frozenset()
    validation_from: str | None = None
    leave_out_known_bad: bool = False
    any_count: bool = False
    workers: int = 2


def build(recipe: Recipe, options: Options, say: Callable[[str], None], progress: Progress) -> dict[str, Any]:
    """Builds OUT/train, OUT/test (and OUT/validation), OUT/tests and OUT/manifest.json; returns the manifest.

    Parts that are done, and solutions that were judged, are not done again. The splits and the manifest are replaced
    at the end, each when it is whole: what was built before stays until then.

    Raises:
        ConfigError: files that are missing or cannot be read, counts that differ from the published ones.
    """
    sources = _with_validation(recipe, options)
    skip = options.skip if recipe.clean else frozenset(CLEANING)
    files = _files(sources, options, say)
    records = _parts(sources, files, options, 0 if "few_tests" in skip else options.min_tests, say)
    _check_counts(sources, records, options)
    rows = {source.name: rows_of(options.out, source) for source in sources}
    splits = {
        split: [row for source in sources if source.split == split for row in rows[source.name]]
        for split in ("train", "test", "validation")
    }
    held_out = [row for source in sources if source.split != "train" for row in rows[source.name]]
    if recipe.window:
        _check_window(splits["test"], options, say)
    dropped: dict[str, Counter[str]] = {source.name: Counter(records[source.name]["dropped"]) for source in sources}
    _without_bad_ones(splits, options, skip, dropped)
    splits["train"], matches = _clean(splits["train"], held_out, options, skip, progress, dropped)
    if not options.validation_from:
        del splits["validation"]
    try:
        for name, kept in splits.items():
            write_rows(options.out / name / "problems.parquet", kept)
        manifest = _manifest(recipe, options, skip, sources, files, records, dropped, splits, matches)
        write_json(options.out / "manifest.json", manifest)
    except OSError as error:
        raise ConfigError(
            f"data build: {error.filename or options.out}: {error.strerror}. Mend it and run the same command again: "
            "what was built before stays."
        ) from None
    return manifest


def _with_validation(recipe: Recipe, options: Options) -> list[Source]:
    """The recipe's sources and, where it is asked for, the problems that are held out of the training."""
    sources = list(recipe.sources)
    if options.validation_from:
        sources.append(
            Source("livecodebench_validation", LCB, LCB_FILES, "livecodebench", LCB_LICENCE, "validation",
                   options.validation_from, "2024-07-31")
        )  # fmt: skip
    return sources


def _files(sources: Sequence[Source], options: Options, say: Callable[[str], None]) -> dict[str, list[Path]]:
    """Each source's files, downloaded where no folder has them."""
    files = {}
    for source in sources:
        say(f"{source.name}: {source.repo}, licence: {source.licence}")
        folder = source.folder or options.local
        files[source.name] = find_files(source, folder) if folder else download(source)
    return files


def _check_window(test: Sequence[dict[str, Any]], options: Options, say: Callable[[str], None]) -> None:
    if wrong := complaints(test):
        if not options.any_count:
            raise ConfigError(_other("the test split", wrong))
        say("the test split is not the known one: " + "; ".join(wrong))


def _without_bad_ones(
    splits: dict[str, list[dict[str, Any]]],
    options: Options,
    skip: frozenset[str],
    dropped: dict[str, Counter[str]],
) -> None:
    """Takes the problems that are known to be bad out of each split where they are not to be in it."""
    if options.leave_out_known_bad:
        splits["test"] = _without_known_bad(splits["test"], KNOWN_BAD, dropped)
    if "known_bad" not in skip:
        for split in ("train", "validation"):
            splits[split] = _without_known_bad(splits[split], KNOWN_BAD_BEFORE, dropped)


def _clean(
    train: list[dict[str, Any]],
    held_out: Sequence[dict[str, Any]],
    options: Options,
    skip: frozenset[str],
    progress: Progress,
    dropped: dict[str, Counter[str]],
) -> tuple[list[dict[str, Any]], list[Match]]:
    """The training problems without held-out ones, those whose own solution fails, and near-duplicates; what was found
    to be held out."""
    matches: list[Match] = []
    if "contaminated" not in skip:
        with progress("held-out problems in training", len(train)) as tick:
            overlap = Overlap([_signature(row) for row in held_out])
            found = {one.id: hit for one in _ticking(train, tick) if (hit := overlap.match(one))}
        matches = list(found.values())
        _report(options.out / "decontamination.jsonl", matches, [*train, *held_out])
        train = _without(train, found, "contaminated", dropped)
    train = _by_solutions(train, options, progress, dropped, leave_out="solution_fails" not in skip)
    # Last, so that of two equal problems the one whose solution passes is kept.
    if "duplicate" not in skip:
        with progress("near-duplicates", len(train)) as tick:
            same = duplicates(_ticking(train, tick))
        train = _without(train, same, "duplicate", dropped)
    return train, matches


def _parts(
    sources: Sequence[Source],
    files: dict[str, list[Path]],
    options: Options,
    min_tests: int,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Every source in a process of its own."""
    with ProcessPoolExecutor(min(options.workers, len(sources)), mp_context=get_context("spawn")) as pool:
        work = {
            source.name: pool.submit(make_part, source, files[source.name], options.out, min_tests)
            for source in sources
        }
        records = {}
        for name, future in work.items():
            records[name] = future.result()
            say(f"{name}: {records[name]['kept']} of {records[name]['rows']} rows" + _reasons(records[name]["dropped"]))
    return records


def _reasons(dropped: dict[str, int]) -> str:
    return "; left out: " + ", ".join(f"{reason} {count}" for reason, count in dropped.items()) if dropped else ""


def _check_counts(sources: Sequence[Source], records: dict[str, dict[str, Any]], options: Options) -> None:
    wrong = [
        f"{source.name}: {records[source.name]['read']} problems instead of {source.expected}"
        for source in sources
        if source.expected is not None and records[source.name]["read"] != source.expected
    ]
    if wrong and not options.any_count:
        raise ConfigError(_other("the sources", wrong))


def _other(what: str, wrong: Sequence[str]) -> str:
    return (
        f"data build: {what} are not the published ones: {'; '.join(wrong)}. Fetch the files again, or build from what "
        "is there with --any-count."
    )


def _signature(row: dict[str, Any]) -> Signature:
    return Signature(row["id"], row["statement"], row["tests_sha256"], frozenset(row["inputs"]))


def _ticking(rows: Sequence[dict[str, Any]], tick: Callable[[], None]) -> Any:
    for row in rows:
        yield _signature(row)
        tick()


def _without_known_bad(
    rows: list[dict[str, Any]], known: Mapping[str, str], dropped: dict[str, Counter[str]]
) -> list[dict[str, Any]]:
    for row in rows:
        dropped[row["source"]]["known_bad"] += row["id"] in known
    return [row for row in rows if row["id"] not in known]


def _without(
    rows: list[dict[str, Any]], gone: dict[str, Match], reason: str, dropped: dict[str, Counter[str]]
) -> list[dict[str, Any]]:
    for row in rows:
        if row["id"] in gone:
            dropped[row["source"]][f"{reason}_{gone[row['id']].how}"] += 1
    return [row for row in rows if row["id"] not in gone]


def _by_solutions(
    rows: list[dict[str, Any]],
    options: Options,
    progress: Progress,
    dropped: dict[str, Counter[str]],
    leave_out: bool,
) -> list[dict[str, Any]]:
    """The rows with the test set that their own solution passes; those that pass none only where they are to stay."""
    tests, cache = options.out / "tests", options.out / "parts" / "solutions.jsonl"
    judged = rows if leave_out else [row for row in rows if row["readings"]]
    with progress("known solutions", sum(bool(row["solutions"]) for row in judged)) as tick:
        try:
            found = asyncio.run(check_solutions(judged, tests, cache, options.workers, tick))
        except VerifierError as error:
            raise ConfigError(
                f"data build: known solutions: {error}. Run the same command again; where a test set is missing or "
                f"damaged, remove {options.out / 'parts'} first."
            ) from None
    kept = []
    for row in rows:
        sha = found.get(row["id"], row["tests_sha256"])
        if sha is None and leave_out:
            dropped[row["source"]]["solution_fails"] += 1
            continue
        sizes = dict(row["readings"]) | {row["tests_sha256"]: row["tests_bytes"]}
        sha = sha or row["tests_sha256"]
        kept.append(row | {"tests_sha256": sha, "tests_bytes": sizes[sha]})
    return kept


def _report(path: Path, matches: Sequence[Match], rows: Sequence[dict[str, Any]]) -> None:
    """A line for each pair, with the beginnings of both statements."""
    statements = {row["id"]: row["statement"][:400] for row in rows}
    lines = [
        json.dumps(
            {
                "train": match.id,
                "held_out": match.other,
                "how": match.how,
                "score": match.score,
                "train_statement": statements[match.id],
                "held_out_statement": statements[match.other],
            }
        )
        for match in matches
    ]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _manifest(
    recipe: Recipe, options: Options, skip: frozenset[str], sources: Sequence[Source], files: dict[str, list[Path]],
    records: dict[str, dict[str, Any]], dropped: dict[str, Counter[str]], splits: dict[str, list[dict[str, Any]]],
    matches: Sequence[Match],
) -> dict[str, Any]:  # fmt: skip
    return {
        "format": 1,
        "recipe": recipe.name,
        "cleaning": {step: step not in skip for step in CLEANING} | {"min_tests": options.min_tests},
        "leave_out_known_bad": options.leave_out_known_bad,
        "validation_from": options.validation_from,
        "versions": {name: version(name) for name in ("atropos-livecode", "pyarrow", "rensa")},
        "sources": {
            source.name: {
                "repo": source.repo,
                "licence": source.licence,
                "split": source.split,
                "files": {path.name: _sha256(path) for path in files[source.name]},
                "rows": records[source.name]["rows"],
                "outside_window": records[source.name]["outside_window"],
                "problems": sum(row["source"] == source.name for rows in splits.values() for row in rows),
                "dropped": dict(sorted((+dropped[source.name]).items())),
            }
            for source in sources
        },
        "splits": {
            name: {
                "problems": len(rows),
                "kinds": dict(sorted(Counter(row["kind"] for row in rows).items())),
                "tests": sum(row["tests_count"] for row in rows),
                "sha256": _sha256(options.out / name / "problems.parquet"),
            }
            for name, rows in splits.items()
        },
        "contaminated": dict(sorted(Counter(match.how for match in matches).items())),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
