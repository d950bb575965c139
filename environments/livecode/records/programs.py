"""Every program of a run, packed: programs/step-NNNNN.jsonl, one line per group (`env.record_programs`)."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from environments.common.run_folder import append_line
from environments.livecode.pipeline import JudgedGroup
from environments.livecode.records.briefs import brief

FOLDER = "programs"


def append_programs(run_dir: Path, group: JudgedGroup) -> None:
    """The programs of a finished group, with verdicts and scores. Raises OSError where the disk refuses.

    A line, not a compressed stream: what a death tears costs one group, and none after it.
    """
    rows = [
        {
            "index": index,
            "status": rollout.status,
            "verdict": brief(rollout.verdict),
            "score": group.scores[index] if group.scores else None,
            "overlong": rollout.overlong,
            "code": rollout.code,
        }
        for index, rollout in enumerate(group.rollouts)
    ]
    if not rows:
        return
    packed = base64.b64encode(zlib.compress(json.dumps(rows).encode())).decode()
    line = json.dumps({"group_id": group.group_id, "problem_id": group.problem.id, "programs": packed})
    path = run_dir / FOLDER / f"step-{group.weight_version:05d}.jsonl"
    path.parent.mkdir(exist_ok=True)
    append_line(path, line)


def unpacked(line: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The programs of one line, each with its group and problem; none of a damaged one."""
    try:
        rows = json.loads(zlib.decompress(base64.b64decode(line["programs"], validate=True)))
        shared = {name: line[name] for name in ("group_id", "problem_id")}
    except (binascii.Error, zlib.error, ValueError, LookupError, TypeError):
        return
    for row in rows:
        yield shared | row
