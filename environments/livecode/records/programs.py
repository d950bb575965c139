"""Every program of a run, packed: programs/step-NNNNN.jsonl, one line per group (`env.record_programs`)."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from pathlib import Path

import msgspec

from environments.common.record_lines import tolerant
from environments.common.run_folder import append_line
from environments.livecode.pipeline import JudgedGroup
from environments.livecode.records.schema import ProgramRecord, ProgramsRecord, verdict_record

FOLDER = "programs"


def append_programs(run_dir: Path, group: JudgedGroup) -> None:
    """The programs of a finished group, with verdicts and scores. Raises OSError where the disk refuses.

    A line, not a compressed stream: what a death tears costs one group, and none after it.
    """
    rows = [
        ProgramRecord(
            index=index,
            status=rollout.status,
            verdict=None if rollout.verdict is None else verdict_record(rollout.verdict),
            score=group.scores[index] if group.scores else None,
            overlong=rollout.overlong,
            code=rollout.code,
        )
        for index, rollout in enumerate(group.rollouts)
    ]
    if not rows:
        return
    packed = base64.b64encode(zlib.compress(json.dumps(msgspec.to_builtins(rows)).encode())).decode()
    line = ProgramsRecord(group_id=group.group_id, problem_id=group.problem.id, programs=packed)
    path = run_dir / FOLDER / f"step-{group.weight_version:05d}.jsonl"
    path.parent.mkdir(exist_ok=True)
    append_line(path, json.dumps(msgspec.to_builtins(line)))


def unpacked(line: ProgramsRecord) -> list[ProgramRecord]:
    """The programs of one line; none of a damaged one, and none that is no program's record."""
    try:
        rows = json.loads(zlib.decompress(base64.b64decode(line.programs, validate=True)))
    except (binascii.Error, zlib.error, ValueError):
        return []
    found = (tolerant(row, ProgramRecord) for row in rows if isinstance(row, dict)) if isinstance(rows, list) else ()
    return [one for one in found if one is not None]
