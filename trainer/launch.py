"""`atropos run-trainer --nproc-per-node N [trainer options]`: torchrun's ranks, ended as a person reads it.

The ranks are torchrun's own; beside that the last line is the error that ended the run, the exit code is the rank's,
Ctrl-C and SIGTERM leave the ranks the time that `checkpoint.stop_deadline_s` gives them, and settings are checked
before a rank is started.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from environments.common.errors import LivecodeError, report
from environments.common.settings import load
from trainer.config import TrainerConfig

LAUNCHED = "ATROPOS_LIVECODE_LAUNCHED"
"""Environment variable of ranks whose errors the launcher reports."""

OPTIONS = (
    *("nnodes", "nproc-per-node", "node-rank", "rdzv-backend", "rdzv-endpoint", "rdzv-id", "rdzv-conf", "local-addr"),
    *("master-addr", "master-port", "log-dir", "redirects", "tee", "monitor-interval", "shutdown-timeout"),
)
"""torchrun's options that are handed on, with a value each; `standalone` is torchrun's way where none is given."""

_LONGER_S = 30
"""For the ranks to leave after their own deadline."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit code: 0 done, 2 bad input, 1 an error, 128 + the signal that stopped it."""
    launcher, rest = split(sys.argv[1:] if argv is None else argv)
    try:
        config = load(TrainerConfig, rest, "atropos run-trainer --nproc-per-node N")
    except LivecodeError as error:
        return report(error)
    if not any(word.startswith("--shutdown-timeout") for word in launcher):
        launcher.append(f"--shutdown-timeout={int(config.checkpoint.stop_deadline_s) + _LONGER_S}")
    os.environ[LAUNCHED] = "1"
    # Imported here: --help and broken settings should not pay for torch.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args([*launcher, str(Path(__file__).with_name("main.py")), *rest]))
    except ChildFailedError as error:
        return _explained(error)
    except SignalException as error:
        _leave(128 + error.sigval)
    except KeyboardInterrupt:
        _leave(130)
    return 0


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The launcher's words, spelled as torchrun does, and the trainer's."""
    launcher: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        option = name.removeprefix("--").replace("_", "-")
        if not name.startswith("--") or option not in OPTIONS:
            rest.append(word)
        elif equals:
            launcher.append(f"--{option}={value}")
        else:
            launcher.append(f"--{option}={next(words, '')}")
    return launcher, rest


def _explained(error: Exception) -> int:
    """Says why the first rank ended, as the last line; its exit code."""
    rank, failure = error.get_first_failure()  # type: ignore[attr-defined]
    said = failure.message
    if isinstance(said, dict) and str(said.get("message", "")).startswith("error "):
        print(said["message"], file=sys.stderr, flush=True)
        return int(failure.exitcode)
    how = f"by {failure.signal_name()}" if failure.exitcode < 0 else f"with exit code {failure.exitcode}"
    print(f"error rank {rank} ended {how}; its last words are above", file=sys.stderr, flush=True)
    return 128 - failure.exitcode if failure.exitcode < 0 else int(failure.exitcode)


def _leave(code: int) -> None:
    """Ends at once; a rank that is left goes with this process (`end_with_launcher`)."""
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
