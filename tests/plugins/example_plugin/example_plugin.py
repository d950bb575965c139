"""A package beside the project that adds a verifier, two objectives, a data source and a tracker."""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Any, Self

from environments.dataset.rows import Row, need
from environments.dataset.sources import Source
from environments.livecode.config import LivecodeEnvConfig
from environments.livecode.verification.base import Verdict, VerifierError
from trainer.config import TrainerConfig
from trainer.objective.table import Objective
from verifier_app.judge import JudgeError, verify


class InlineVerifier:
    """Judges one program at a time in a thread of the environment's own process."""

    def __init__(self, config: LivecodeEnvConfig) -> None:
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is left to close."""

    async def verify(self, request: dict[str, Any]) -> Verdict:
        async with self._turn:
            try:
                return await asyncio.to_thread(verify, request)
            except JudgeError as error:
                raise VerifierError(str(error)) from error


DAPO_WIDE = Objective("dapo_wide", "token", "token_sum", "tokens", 0.2, 0.5, allows_dual_clip=True)
GSPO_DR = Objective("gspo_dr", "sequence", "token_sum", "sequences_times_max_length", 3e-4, 4e-4, scale_by_std=False)


def read(row: dict[str, Any]) -> Row:
    """{"task": text, "cases": [[input, output], ...]}, all over stdin."""
    return Row(
        statement=need(row, "task"),
        tests=[{"input": given, "output": expected} for given, expected in need(row, "cases")],
    )


SOURCE = Source("example", "example/problems", ("*.jsonl",), read, "Apache-2.0")


class CsvTracker:
    """Appends step and loss to RUN/RESUME_ID.csv."""

    def start(self, config: TrainerConfig, resume_id: str) -> None:
        self._file: IO[str] = (config.run_dir / f"{resume_id}.csv").open("a", newline="", encoding="utf-8")

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        csv.writer(self._file).writerow([step, json.dumps(row["loss"])])

    def rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            csv.writer(self._file).writerow([step, json.dumps(row)])

    def finish(self, failed: bool) -> None:
        csv.writer(self._file).writerow(["failed" if failed else "finished"])
        self._file.close()
