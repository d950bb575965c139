"""`atropos run-env livecode MODE [--config FILE] [--env.option value ...]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from environments.livecode.command import run_command

if TYPE_CHECKING:
    from environments.livecode.config import RunConfig
    from environments.livecode.environment import LivecodeEnv


def main(mode: str, argv: Sequence[str]) -> int:
    """Runs a mode of the environment; the exit code of `command.run`."""
    return run_command(_environment, mode, argv)


def _environment(config: RunConfig) -> LivecodeEnv:
    # Imported once the configuration has been checked: Atropos takes seconds and 400 MB.
    from environments.livecode.environment import LivecodeEnv

    return LivecodeEnv(config)
