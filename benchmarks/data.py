"""How fast `atropos data build` reads, and how much memory it takes: generated files in the sources' exact formats.

    python benchmarks/data.py [--gib 1.0] [--out FILE.json]

One file of LiveCodeBench rows whose private tests are packed as the data set's (base64 of zlib of a pickled string),
one parquet file of DeepCoder's taco rows; each row is read, checked, its test set hashed and stored. Peak memory is the
resident set of a process that reads one file. Judging known solutions is not part of it: that is the judge's speed.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import pickle
import platform
import random
import resource
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from environments.dataset.convert import make_part
from environments.dataset.sources import RECIPES, Source

ROW_TEST_BYTES = (2_000, 200_000, 4_000_000)  # small, middling and large sets, in turn


NUMBERS: list[str] = []  # made once: drawing every number again would take longer than what is measured


def tests(number: int, draw: random.Random) -> tuple[list[str], list[str]]:
    """Ten tests of random numbers: text that packs as real tests do, about 2 to 1."""
    size = ROW_TEST_BYTES[number % 3] // 10
    if not NUMBERS:
        NUMBERS.append(" ".join(str(draw.randrange(10**6)) for _ in range(1_000_000)))
    starts = [draw.randrange(len(NUMBERS[0]) - size) for _ in range(10)]
    inputs = [f"{number} {NUMBERS[0][start : start + size]}\n" for start in starts]
    return inputs, [str(draw.randrange(10**6)) for _ in range(10)]


def lcb_rows(size: int) -> Iterator[dict[str, Any]]:
    """Rows until their lines fill `size` bytes."""
    draw, written, number = random.Random(0), 0, 0
    while written < size:
        inputs, outputs = tests(number, draw)
        cases = [{"input": i, "output": o, "testtype": "stdin"} for i, o in zip(inputs, outputs, strict=True)]
        private = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases[1:])))).decode()
        row = {
            "question_title": "t", "question_content": f"Problem {number}. " + "word " * 200, "platform": "atcoder",
            "question_id": f"p{number}", "contest_id": "c", "contest_date": "2024-09-01T00:00:00", "starter_code": "",
            "difficulty": "easy", "public_test_cases": json.dumps(cases[:1]), "private_test_cases": private,
            "metadata": "{}",
        }  # fmt: skip
        written += len(private) + 2_000
        number += 1
        yield row


def write_lcb(path: Path, size: int) -> None:
    """A release file."""
    with path.open("w") as stream:
        for row in lcb_rows(size):
            stream.write(json.dumps(row) + "\n")


def write_taco(path: Path, size: int) -> None:
    """A parquet file whose columns hold `size` bytes."""
    draw, written, number = random.Random(1), 0, 0
    schema = pa.schema([(name, pa.string()) for name in ("problem", "tests", "starter_code", "metadata")])
    with pq.ParquetWriter(path, schema) as writer:
        while written < size:
            rows = []
            for _ in range(30):
                inputs, outputs = tests(number, draw)
                text = json.dumps({"inputs": inputs, "outputs": outputs})
                rows.append({"problem": f"Problem {number}.", "tests": text, "starter_code": "", "metadata": "{}"})
                written, number = written + len(text), number + 1
            writer.write_table(pa.Table.from_pylist(rows, schema))


WORK = (("livecodebench_v6", write_lcb, "jsonl"), ("deepcoder_taco", write_taco, "parquet"))


def read(source: Source, path: Path, out: Path) -> dict[str, float]:
    """Figures of reading one file, in this process."""
    started = time.monotonic()
    record = make_part(source, [path], out, 5)
    seconds = time.monotonic() - started
    stored = sum(file.stat().st_size for file in (out / "tests").rglob("*") if file.is_file())
    assert record["kept"] == record["rows"], record["dropped"]
    return {
        "file_mb": round(path.stat().st_size / 1e6),
        "rows": record["rows"],
        "seconds": round(seconds, 1),
        "rows_per_s": round(record["rows"] / seconds, 1),
        "stored_mb_per_s": round(stored / 1e6 / seconds, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    size = int(options.gib * 2**30)
    known = {source.name: source for source in RECIPES["nouscoder"].sources}
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for source, write, ending in (
            ("livecodebench_v6", write_lcb, "jsonl"),
            ("deepcoder_taco", write_taco, "parquet"),
        ):
            path = folder / f"{source}.{ending}"
            write(path, size)
            with get_context("spawn").Pool(1) as pool:  # a fresh process: its peak memory is the reader's
                result[source] = pool.apply(read, (replace(known[source]), path, folder / source))
            print(source, result[source], file=sys.stderr)
            path.unlink()
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
