"""The lines and branches that the judge's sandboxed side reaches, for `make coverage` (pytest's `-p`).

coverage cannot follow it: the template starts with an empty environment and without site, its zygotes may write no
file, and they end by SIGKILL. So the templates of the test's own process begin with a tracer (sandbox_tracer.py) whose
marks become a data file when the tests have run. The templates of judge processes (JudgePool) are not followed.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Generator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from coverage import Coverage, CoverageData

from tests.support import sandbox_tracer
from tests.support.sandbox_tracer import ENTRY, EXIT, SIDE


class SandboxLines:
    """The marks of this process's templates."""

    def __init__(self, root: Path, folder: Path) -> None:
        sources = sorted((root / "verifier_app" / "judge").rglob("*.py"))
        self._files = {str(path): number for number, path in enumerate(sources)}
        self._path = folder / "marks"
        self._path.touch()
        os.truncate(self._path, len(self._files) * 3 * SIDE * SIDE)  # no page is there before it is marked

    def boot(self, then: str) -> str:
        """The template's first program, with the tracer before it."""
        tracer = Path(sandbox_tracer.__file__).read_text(encoding="utf-8")
        return f"{tracer}\ntrace({str(self._path)!r}, {self._files!r})\n{then}"

    def arcs(self) -> dict[str, list[tuple[int, int]]]:
        """File -> steps from line to line as coverage has them: an entry begins, and an exit ends, at -first line."""
        found: dict[str, list[tuple[int, int]]] = {}
        names = list(self._files)
        with self._path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as marks:
            place = marks.find(b"\1")
            while place >= 0:
                rest, end = divmod(place, SIDE)
                rest, start = divmod(rest, SIDE)
                number, kind = divmod(rest, 3)
                step = (-start if kind == ENTRY else start, -end if kind == EXIT else end)
                found.setdefault(names[number], []).append(step)
                place = marks.find(b"\1", place + 1)
        return found


@pytest.hookimpl(wrapper=True, trylast=True)  # inside of pytest-cov's, which combines the data files
def pytest_runtestloop(session: pytest.Session) -> Generator[None, bool, bool]:
    """Follow the templates that this process starts."""
    measured = Coverage.current()
    if measured is None:
        return (yield)
    from verifier_app.judge import host

    with TemporaryDirectory() as folder:
        lines = SandboxLines(session.config.rootpath, Path(folder))
        host.BOOT = lines.boot(host.BOOT)
        result = yield
        data = CoverageData(measured.config.data_file, suffix=f"sandbox.{os.getpid()}")
        data.add_arcs(lines.arcs())
        data.write()
    return result
