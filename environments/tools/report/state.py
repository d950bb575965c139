"""Whether a run is running, finished or ended early: from its files, and the locks that its processes hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from environments.common.shards import folders
from environments.tools.report.values import Row, Rows, duration, number, numbers
from trainer.checkpoint_folder import complete_checkpoints

LOCKS = {"trainer.lock": "the trainer", "progress.lock": "the environment", "api.journal.lock": "the API server"}
"""Files that a process holds as long as it lives, and which process."""

QUIET_S = 900.0
"""A run that wrote nothing for so long, and for three of its steps, has ended where no lock tells more."""

_LAST_WORDS = 16_384  # bytes of a log's end
_LONGEST_WORD = 300
_BY_SIGNAL = " trainer.process.signals "  # the logger that tells of a request to stop


class State(NamedTuple):
    """kind: running, finished, stopped, died or evaluated. text: a sentence. detail: the log's last words."""

    kind: str
    text: str
    detail: str = ""


def alive(run: Path) -> list[str]:
    """The processes of the run that live on this machine; nothing is locked to find out."""
    there = [(folder / name, who) for name, who in LOCKS.items() for folder in dict.fromkeys((run, *folders(run)))]
    return list(dict.fromkeys(who for path, who in there if path.is_file() and _held(path)))


def last_write(run: Path) -> float | None:
    """Seconds since 1970 at which a record of the run was last added to."""
    times = [path.stat().st_mtime for path in _records(run)]
    return max(times, default=None)


def state(run: Path, metrics: Rows, settings: Row, evaluated: bool, now: float) -> State:
    """The run's state at `now`, seconds since 1970.

    Args:
        metrics: its rows in the order of the file.
        settings: config/trainer.yaml.
        evaluated: whether the run has an evaluation's result.
    """
    steps, planned = metrics[-1].get("step") if metrics else 0, settings.get("steps")
    done = int(steps) if number(steps) else 0
    told = f"step {done} of {planned:.0f}" if number(planned) else f"step {done}"
    if number(planned) and done >= planned:
        return State("finished", f"Finished: all {plural_steps(planned)} are done.")
    living = alive(run)
    if "the trainer" in living:
        text = f"Running: {told} is done." if done else "Running: no step is done yet."
        return State("running", text, _last_words(run / "logs" / "trainer.log"))
    if not metrics and not settings:
        return _without_trainer(living, evaluated)
    written = last_write(run)
    if _recent(metrics, written, now) and not (run / "trainer.lock").is_file():
        return State("running", f"Running, according to its files: {told} is done.")
    return _ended(run, done, told, living, written, now)


def plural_steps(count: float) -> str:
    """`1 step` or `20 steps`."""
    return "1 step" if count == 1 else f"{count:,.0f} steps"


def _without_trainer(living: list[str], evaluated: bool) -> State:
    if living:
        return State("running", f"Running without a trainer: {' and '.join(living)}.")
    if evaluated:
        return State("evaluated", "Evaluated: there is no training in this folder.")
    return State("stopped", "Not running; there is no training in this folder.")


def _ended(run: Path, done: int, told: str, living: list[str], written: float | None, now: float) -> State:
    ago = "" if written is None else f", {duration(max(now - written, 0))} ago"
    kept = complete_checkpoints(run / "checkpoints")
    saved = int(kept[-1].name.removeprefix("step-")) if kept else 0
    still = f" Alive still: {' and '.join(living)}." if living else ""
    if done and saved >= done:
        return State("stopped", f"Stopped after {told}{ago}; it is saved and can be resumed.{still}")
    where = f"after {told}" if done else "before the first step was done"
    last = _last_words(run / "logs" / "trainer.log")
    if _BY_SIGNAL in last:
        return State("stopped", f"Stopped by a signal {where}{ago}.{still}")
    lost = f" The last {plural_steps(done - saved)} will be done again." if done and kept else ""
    return State("died", f"Died {where}{ago}.{lost}{still}", last)


def _recent(metrics: Rows, written: float | None, now: float) -> bool:
    seconds = numbers(metrics[-5:], "seconds_step")
    return written is not None and now - written < max(QUIET_S, 3 * max(seconds, default=0.0))


def _records(run: Path) -> Iterator[Path]:
    for folder in dict.fromkeys((run, *folders(run))):
        for pattern in ("*.jsonl", "rollouts/*.jsonl", "evaluations/*.jsonl"):
            yield from folder.glob(pattern)


def _last_words(log: Path) -> str:
    """The last line of a log that says something."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _LAST_WORDS))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[:_LONGEST_WORD] for line in reversed(lines) if line.strip()), "")


def _held(path: Path) -> bool:
    """Whether a process holds the file's lock, from /proc/locks: to try the lock would disturb one that starts."""
    try:
        inode = str(path.stat().st_ino)
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    # number: FLOCK ADVISORY WRITE pid major:minor:inode start end; "->" marks one that waits.
    rows = [line.split() for line in lines if "->" not in line]
    holders = [row[4] for row in rows if len(row) > 5 and row[5].rpartition(":")[2] == inode]
    return any(_has_open(pid, path) for pid in holders)


def _has_open(pid: str, path: Path) -> bool:
    """Whether a process has the file open: an inode's number alone may be of another file system."""
    try:
        links = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
    for link in links:
        try:
            if link.samefile(path):
                return True
        except OSError:  # closed meanwhile
            continue
    return False
