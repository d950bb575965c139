"""Where the problems come from: the files of each source, and the recipes that put sources together.

Another package adds a source, or a recipe, by an entry point; see docs/how-to/source.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ijson
import pyarrow.parquet as pq
from pyarrow.lib import ArrowException

from environments.common.plugins import find
from environments.common.settings import ConfigError
from environments.dataset.drop_reasons import Dropped
from environments.dataset.readers import Reader, parse_line

GROUP = "livecode.sources"
BATCH_BYTES = 32 << 20  # of a parquet file in memory at a time, by the mean of its rows; one row may hold 200 MB
BATCH_ROWS = 256


@dataclass(frozen=True)
class Source:
    """Files of one data set on the hub, read by one reader into one split.

    `reader` is a name of readers.READERS, or another package's function: a file's row in, a `Row` out.
    `after` and `before` bound the contest's date (ISO, before is exclusive). `expected` is the published number of
    rows that come out of the reader; None where none is published. `folder` holds the files of a source that comes with
    the project.
    """

    name: str
    repo: str
    patterns: tuple[str, ...]
    reader: str | Reader
    licence: str
    split: str = "train"
    after: str | None = None
    before: str | None = None
    expected: int | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class Recipe:
    """Sources in their order, which decides who is kept of two that are the same.

    `window`: its test split is LiveCodeBench's 454 problems, and is checked to be them.
    """

    name: str
    sources: tuple[Source, ...]
    description: str
    clean: bool = True
    window: bool = True


DEEPCODER = "agentica-org/DeepCoder-Preview-Dataset"
LCB = "livecodebench/code_generation_lite"
LCB_FILES = ("test.jsonl", "test2.jsonl", "test3.jsonl", "test4.jsonl", "test5.jsonl", "test6.jsonl")
CARD = "see its card"
LCB_LICENCE = "cc, without a version: read it, do not ship its rows"

TEST = Source(
    "livecodebench_v6", LCB, LCB_FILES, "livecodebench", LCB_LICENCE, "test", "2024-08-01", "2025-05-02", expected=454
)


def _deepcoder(config: str, expected: int) -> Source:
    pattern = (f"{config}/train-*.parquet",)
    return Source(f"deepcoder_{config}", DEEPCODER, pattern, f"deepcoder_{config}", "MIT", expected=expected)


def _miniature(name: str, reader: str, expected: int, split: str = "train") -> Source:
    return Source(
        f"miniature_{name}", "atropos-livecode/miniature", (f"{name}.json*",), reader, "Apache-2.0, our own", split,
        expected=expected, folder=Path(__file__).parent / "miniature" / "files",
    )  # fmt: skip


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "nouscoder",
            (_deepcoder("lcbv5", 599), _deepcoder("taco", 7436), _deepcoder("primeintellect", 16252), TEST),
            "the recipe's 24k training problems through DeepCoder's published configurations, and LiveCodeBench v6",
        ),
        Recipe(
            "deepcoder",
            (_deepcoder("lcbv5", 599), _deepcoder("taco", 7436), _deepcoder("primeintellect", 16252), TEST),
            "the same, as published: 24,287 problems by DeepCoder's own filter, nothing further left out",
            clean=False,
        ),
        Recipe(
            "original",
            (
                Source("livecodebench", LCB, LCB_FILES, "livecodebench", LCB_LICENCE, before="2024-07-31"),
                Source(
                    "taco_verified", "likaixin/TACO-verified", ("**/*.parquet", "**/*.json*"), "taco_verified", CARD
                ),
                Source("synthetic1", "PrimeIntellect/SYNTHETIC-1", ("**/*.parquet",), "synthetic1", CARD),
                TEST,
            ),
            "the same sources from their first publications: counts are reported, not promised",
        ),
        Recipe(
            "rlvr",
            (
                Source("rlvr", "NousResearch/RLVR_Coding_Problems", ("**/*.jsonl",), "rlvr", "Apache-2.0"),
                TEST,
            ),
            "NousResearch's published training problems, and LiveCodeBench v6",
        ),
        Recipe(
            "miniature",
            (
                _miniature("taco", "taco_verified", 20),
                _miniature("synthetic", "synthetic1", 20),
                _miniature("early", "livecodebench", 20),
                _miniature("test", "livecodebench", 20, "test"),
            ),
            "80 problems of our own in five steps of difficulty, in the forms of three sources: seconds, no network",
            window=False,
        ),
    )
}


def recipe_of(name: str) -> Recipe:
    """The recipe of that name, ours or an installed package's; a source alone is built as training problems.

    Raises:
        ConfigError: an unknown name, or a package that gives neither a Source nor a Recipe.
    """
    part: object = find(GROUP, RECIPES, name, "--recipe")
    if isinstance(part, Source):
        return Recipe(name, (part,), f"{part.repo}, of an installed package", window=False)
    if not isinstance(part, Recipe):
        raise ConfigError(f"--recipe {name!r}: its package gives a {type(part).__name__}, need a Source or a Recipe")
    return part


def find_files(source: Source, folder: Path) -> list[Path]:
    """The source's files below FOLDER/owner/name, FOLDER/name or FOLDER, in a fixed order.

    Raises:
        ConfigError: none there; the message names where they were looked for.
    """
    owner, name = source.repo.split("/")
    for root in (folder / owner / name, folder / name, folder):
        files = [path for pattern in source.patterns for path in sorted(root.glob(pattern)) if path.is_file()]
        if files:
            return list(dict.fromkeys(files))
    raise ConfigError(
        f"data build: source {source.name}: no file {' or '.join(source.patterns)} in {folder / owner / name}, "
        f"{folder / name} or {folder}. Put the files of {source.repo} there, or leave --from out to download them."
    )


def download(source: Source) -> list[Path]:
    """The source's files from the hub: resumed where they were begun, kept in the hub's cache.

    Raises:
        ConfigError: no access, or no such files.
    """
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = snapshot_download(source.repo, repo_type="dataset", allow_patterns=list(source.patterns))
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        raise ConfigError(
            f"data build: source {source.name}: {source.repo} cannot be downloaded ({type(error).__name__}: {error}). "
            "Run the same command again to resume, or give local copies with --from DIR."
        ) from None
    return find_files(source, Path(folder))


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | Dropped]]:
    """(number from 1, row) of a JSONL or parquet file, streamed; an unreadable line is a Dropped in its place.

    Raises:
        ConfigError: a file that is truncated or of another format; the message names it.
    """
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    with path.open("rb") as stream:
        _after_mark(stream)
        if path.suffix == ".json" and _is_array(stream):
            yield from _array_rows(path, stream)
            return
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                yield number, parse_line(line)
            except Dropped as error:
                if not line.endswith(b"\n"):
                    raise ConfigError(
                        f"data build: {path}:{number}: the file ends in the middle of a row ({error}). Fetch it again."
                    ) from None
                yield number, error


def _after_mark(stream: BinaryIO) -> None:
    """Leaves the stream behind a byte order mark, where there is one."""
    start = 3 if stream.read(3) == b"\xef\xbb\xbf" else 0
    stream.seek(start)


def _is_array(stream: BinaryIO) -> bool:
    start = stream.tell()
    first = next((byte for byte in iter(lambda: stream.read(1), b"") if not byte.isspace()), b"")
    stream.seek(start)
    return first == b"["


def _array_rows(path: Path, stream: BinaryIO) -> Iterator[tuple[int, dict[str, Any] | Dropped]]:
    """The rows of a file that is one JSON array, one of them in memory at a time."""
    number = 0
    try:
        for row in ijson.items(stream, "item", use_float=True):
            number += 1
            yield (
                number,
                row if isinstance(row, dict) else Dropped("invalid_json", f"a {type(row).__name__}, not an object"),
            )
    except (ijson.JSONError, ValueError) as error:
        raise ConfigError(
            f"data build: {path}: no whole JSON array after row {number} ({error}). Fetch the file again."
        ) from None


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        # By row group and through a small buffer: otherwise pyarrow keeps what it has read of the whole file.
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                about = file.metadata.row_group(group)
                rows = BATCH_BYTES * max(1, about.num_rows) // max(1, about.total_byte_size)
                size = max(1, min(BATCH_ROWS, rows))
                for batch in file.iter_batches(size, row_groups=[group], use_threads=False):
                    waiting = [batch.slice(index, 1) for index in range(batch.num_rows)][::-1]
                    del batch  # so that a large row is not held twice while it is read
                    while waiting:
                        number += 1
                        yield number, waiting.pop().to_pylist()[0]
    except (ArrowException, OSError) as error:
        raise ConfigError(
            f"data build: {path}: cannot be read after row {number} ({error}). Fetch the file again."
        ) from None
