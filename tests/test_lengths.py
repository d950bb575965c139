"""Files and functions of a length that one reads at a sitting."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.support.sources import parsed

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("environments", "trainer", "verifier_app", "integrations", "benchmarks")
MOST_OF_FILE, MOST_OF_FUNCTION = 350, 50


def sources() -> Iterator[tuple[str, str]]:
    """Path and text of each of the product's files."""
    for folder in PRODUCT:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def functions(text: str) -> Iterator[tuple[str, int]]:
    """Name and lines of each function, decorators not counted."""
    for node in ast.walk(parsed(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def test_no_file_of_the_product_is_too_long() -> None:
    lengths = {path: text.count("\n") for path, text in sources()}
    assert len(lengths) > 200
    assert {path: lines for path, lines in lengths.items() if lines > MOST_OF_FILE} == {}


def test_no_function_of_the_product_is_too_long() -> None:
    found = {f"{path}: {name}": lines for path, text in sources() for name, lines in functions(text)}
    assert len(found) > 1000
    assert {name: lines for name, lines in found.items() if lines > MOST_OF_FUNCTION} == {}
