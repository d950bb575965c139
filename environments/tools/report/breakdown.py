"""Evaluations by their parts, and rollouts and groups by what they are: the report's tables."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from environments.livecode.records.schema import GroupRecord
from environments.tools.report.values import Row, Rows


def evaluation(record: Row) -> Rows:
    """One evaluation's lines, one for each profile, with their parts by difficulty, kind, platform and month."""
    kept = ("set", "temperature", "n", "greedy", "problems", "correct", "total", "pass_at_1", "ci95", "overlong",
            "no_verdict", "mean_length", "weight_version", "verdicts", "without_known_bad", "cutoff",
            "around_cutoff", "settings")  # fmt: skip
    profiles = record.get("profiles")
    graded = profiles if isinstance(profiles, dict) and profiles else {"": {}}
    merged = [record | scores | {"profile": name} for name, scores in graded.items() if isinstance(scores, dict)]
    return [{name: one.get(name) for name in (*kept, "profile")} | {"by": one.get("by") or {}} for one in merged]


def tables(groups: Sequence[GroupRecord]) -> Rows:
    """Pass rates of all rollouts by difficulty, kind, source and month, verdicts, and why groups were left out."""
    found = []
    for title, key in (("difficulty", "difficulty"), ("kind", "kind"), ("source", "source"), ("month", "date")):
        cells: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for group in groups:
            name = getattr(group, key)
            if not isinstance(name, str):
                continue
            cell = cells[name[:7] if key == "date" else name]
            cell[0] += sum(verdict == "accepted" for verdict in group.verdicts)
            cell[1] += len(group.verdicts)
        if cells:
            rows = [[name, total, passed / total] for name, (passed, total) in sorted(cells.items()) if total]
            found.append({"title": f"Rollouts by {title}", "columns": [title, "rollouts", "passed"], "rows": rows})
    verdicts = Counter(verdict for group in groups for verdict in group.verdicts)
    dropped = Counter(group.dropped or "trained on" for group in groups)
    for title, counts in (("Verdicts", verdicts), ("Groups", dropped)):
        if counts:
            rows = [[name, count, count / counts.total()] for name, count in counts.most_common()]
            found.append({"title": title, "columns": [title.lower(), "count", "share"], "rows": rows})
    return found
