"""The comparison as a page: one offline file with the report's charts, a line for each run."""

from __future__ import annotations

from pathlib import Path

from environments.common.settings import ConfigError
from environments.tools.diff.terminal import verdict
from environments.tools.report.page import fill_template
from environments.tools.report.values import Row

SCRIPTS = (("uplot/uPlot.iife.min.js",), ("base.js", "charts.js", "diff.js"))


def write_page(found: Row, path: Path) -> None:
    """Writes the page of what `compare` found.

    Raises:
        ConfigError: a file that cannot be written.
    """
    try:
        path.write_text(render(found), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"diff: --out {path}: cannot be written ({error.strerror}). Give another file.") from None


def render(found: Row) -> str:
    """The page's text."""
    one, other = found["names"]
    scores = [row | {"verdict": verdict(row)} for row in found["scores"]]
    data = found | {"scores": scores, "title": f"{one} and {other}"}
    return fill_template("diff.html", f"{one} and {other}", SCRIPTS, {"data": data})
