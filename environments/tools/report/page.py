"""The page: one file, no outside address, and a policy that lets nothing run but its own script."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from environments.common.settings import ConfigError
from environments.tools.report.collect import collect
from environments.tools.report.records import read_records
from environments.tools.report.timeline import write_trace

ASSETS = files("environments.tools.report") / "assets"
STYLES = (("uplot/uPlot.min.css",), ("style.css",))
SCRIPTS = (
    ("uplot/uPlot.iife.min.js",),
    (
        "base.js",
        "charts.js",
        "overview.js",
        "time.js",
        "evaluations.js",
        "rollouts.js",
        "rollout_views.js",
        "tokens.js",
        "main.js",
        "live.js",
    ),
)
"""Each group is one element of the page."""
LATE = ("rollouts", "groups", "problems")
"""The large parts of the data: an element of their own, which is read when a rollout is first looked at."""
TOKENS = ("tokens", "vocabulary")
"""Another one, which is read when a rollout's tokens are."""


def write_report(run: Path, out: Path | None = None, most_rollouts: int = 5000, trace_to: Path | None = None) -> Path:
    """Writes the report of a run folder and returns its path (RUN/report.html where none is given).

    trace_to: a file for the run's time-line as a trace, which Perfetto opens.

    Raises:
        ConfigError: not a run folder, or a file that cannot be written.
    """
    page = render(collect(run, most_rollouts))
    path = out or run / "report.html"
    if trace_to is not None:
        write_trace(read_records(run, Counter()), trace_to)
    try:
        path.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(
            f"report: {path}: cannot be written ({error.strerror}). Give another file with --out."
        ) from None
    return path


def render(data: dict[str, Any], connect: str = "") -> str:
    """The page of `collect`'s data. Texts of rollouts stand in it as JSON alone.

    Args:
        connect: what the page's script may fetch from, as a policy says it; none: nothing.
    """
    early = {name: value for name, value in data.items() if name not in (*LATE, *TOKENS)}
    parts = {
        "data": early | {"recorded": len(data["rollouts"])},
        "late": {name: data[name] for name in LATE},
        "token_data": {name: data[name] for name in TOKENS},
    }
    return fill_template("page.html", data["title"], SCRIPTS, parts, connect)


def fill_template(
    name: str, title: str, files: tuple[tuple[str, ...], ...], parts: dict[str, dict[str, Any]], connect: str = ""
) -> str:
    """A page by a template of the assets, with the scripts that `files` name and nothing that runs beside them.

    parts: JSON by its name in the template.
    """
    styles, scripts = _together(STYLES), _together(files)
    policy = ["default-src 'none'", f"script-src {_hashes(scripts)}", f"style-src {_hashes(styles)}"]
    if connect:
        policy.append(f"connect-src {connect}")
    template = (ASSETS / name).read_text(encoding="utf-8")
    return (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            title=title,
            policy="; ".join(policy),
            styles=[Markup(text) for text in styles],
            scripts=[Markup(text) for text in scripts],
            **{name: Markup(as_json(part)) for name, part in parts.items()},
        )
    )


def _together(groups: tuple[tuple[str, ...], ...]) -> list[str]:
    """Each group's files as one text."""
    return ["\n".join((ASSETS / name).read_text(encoding="utf-8") for name in names) for names in groups]


def _hashes(texts: list[str]) -> str:
    return " ".join(f"'sha256-{_sha(text)}'" for text in texts)


def _sha(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _finite(value: Any, depth: int = 0) -> Any:
    """The same with null for numbers that are not finite, and "..." for what is nested beyond reason."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (dict, list, tuple)) and depth > 50:
        return "..."
    if isinstance(value, dict):
        return {str(key): _finite(one, depth + 1) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one, depth + 1) for one in value]
    return value


def as_json(data: Any) -> str:
    """JSON that cannot end its script element, nor be read as markup."""
    text = json.dumps(_finite(data), ensure_ascii=True, separators=(",", ":"), allow_nan=False, default=str)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
