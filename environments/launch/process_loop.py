"""The processes of a run on one machine: started in order, watched, a row printed for each step, stopped together."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from environments.common.record_lines import convert
from environments.launch.course import Course, parts_of_run
from environments.launch.display import Screen, evaluation_title, left_words, rate, step_cells
from environments.launch.processes import RESTARTS, Child, Family, ProcessError
from environments.launch.supervise import Restarts
from environments.livecode.records.schema import GroupRecord

ATROPOS = (sys.executable, "-m", "environments.cli")
TRAINER = str(Path(__file__).resolve().parents[2] / "trainer" / "main.py")
# Activations come and go by the gigabyte: kept by the allocator, they are not paged in again each time. Threads sleep
# at a barrier instead of spinning: beside other busy processes a block's products took half the CPU time that way.
TRAINER_VARIABLES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "OMP_WAIT_POLICY": "passive"}
_NO_SIGNAL = 40  # groups of one step


class Interrupted(Exception):
    """Ctrl-C or SIGTERM."""


class JsonLines:
    """Reads what was appended to a file of one JSON object a line since the last call, or since it was made."""

    def __init__(self, path: Path, *, skip: bool = False) -> None:
        self.path = path
        self._offset = path.stat().st_size if skip and path.exists() else 0

    def new(self) -> list[dict[str, Any]]:
        """The objects of all lines that were finished since."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines() if line.strip()]


@dataclass(frozen=True)
class Groups:
    """What the environments of a run append to their records of groups."""

    files: Sequence[JsonLines]

    def new(self) -> list[dict[str, Any]]:
        """As JsonLines.new, of all of them."""
        return [row for file in self.files for row in file.new()]


@dataclass(frozen=True)
class Process:
    """What one process of a run is started with.

    variables: environment variables beside the caller's own. ready: an address that answers 200, or a file below the
    run's folder, when it is up.
    """

    argv: tuple[str, ...]
    ready: str
    variables: tuple[tuple[str, str], ...] = ()


def trainer_command(ranks: int, arguments: Sequence[str]) -> tuple[str, ...]:
    """One rank needs no launcher."""
    if ranks == 1:
        return (sys.executable, TRAINER, *arguments)
    return (sys.executable, "-m", "trainer.launch", "--nproc-per-node", str(ranks), *arguments)


class Loop:
    """API server, vLLM, environment and trainer of one run, each with a log in the run's folder.

    Args:
        steps: training steps in all. done: those that an earlier process has taken.
        evaluated_every: steps between the environment's evaluations while it feeds the trainer; the last weights are
            evaluated after it has ended. 0: none.
        saves: a first Ctrl-C (or SIGTERM) while it trains ends the step and saves; a second one ends all at once.
    """

    def __init__(
        self,
        run_dir: Path,
        screen: Screen,
        *,
        steps: int,
        done: int = 0,
        saves: bool = False,
        start_deadline_s: float = 600.0,
        evaluated_every: int = 0,
    ) -> None:
        self.run_dir, self.screen, self.steps, self.done = run_dir, screen, steps, done
        self.family = Family()
        self.signals: list[str] = []
        self.evaluated: list[dict[str, Any]] = []  # records of evaluations.jsonl, with those of earlier starts
        self._evaluates = evaluated_every > 0
        self.course = Course(parts_of_run(steps, done, evaluated_every))
        self._evaluations = JsonLines(run_dir / "evaluations.jsonl")
        self._saves, self._stopping, self._said_at = saves, False, 0
        self._start_deadline_s = start_deadline_s

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """A signal's handler: only notes it, since an exception raised here could surface anywhere and be lost."""
        self.signals.append(signal.Signals(number).name)

    def check(self) -> None:
        """Starts again what has died.

        Raises:
            Interrupted: a signal came; while a step is ended and saved: a second one.
            ProcessError: a process has ended for good.
        """
        if len(self.signals) > int(self._stopping):
            raise Interrupted(self.signals[-1])
        self.family.check()

    def stop(self) -> None:
        """Ends every process of this run."""
        self.family.stop()

    # -- one process ---------------------------------------------------------------------------------------

    def begin(self, name: str, process: Process) -> Child:
        """Starts a process whose readiness is a file, or is not waited for."""
        return self.family.start(
            name,
            process.argv,
            self.run_dir / "logs" / f"{name}.log",
            dict(process.variables),
            restarts=Restarts(name, RESTARTS, lambda line: self.screen.say(f"  {line}")),
            ready=self.run_dir / process.ready,
        )

    def begin_server(self, name: str, process: Process, restarts: int = RESTARTS) -> Child:
        """Starts a server, which `wait_ready` waits for. restarts: how often in a row it may be started again."""
        return self.family.start(
            name,
            process.argv,
            self.run_dir / "logs" / f"{name}.log",
            dict(process.variables),
            restarts=Restarts(name, restarts, lambda line: self.screen.say(f"  {line}")),
        )

    def wait_ready(self, child: Child, process: Process, what: str) -> None:
        """Returns when the server's address answers."""
        with self.screen.stage(what, since=child.started):
            self._show(f"starting {what}")
            child.wait_ready(process.ready, self._start_deadline_s, tick=self.check)

    def begin_and_wait(self, name: str, process: Process, what: str, restarts: int = RESTARTS) -> Child:
        """`begin_server` and `wait_ready`."""
        child = self.begin_server(name, process, restarts)
        self.wait_ready(child, process, what)
        return child

    def run_to_end(self, name: str, process: Process, what: str) -> Child:
        """Starts a process and returns when it has ended well."""
        with self.screen.stage(what):
            child = self.begin(name, process)
            while child.returncode is None:
                self.check()
                time.sleep(0.2)
            child.check()
        return child

    # -- training ------------------------------------------------------------------------------------------

    def train(
        self,
        trainer: Process,
        environment: Process,
        wait: Callable[[], None] = lambda: None,
        others: Sequence[Process] = (),
    ) -> int:
        """Runs trainer and environments to the last step, or to a checkpoint after a signal; the step reached.

        environment: the one that evaluates. others: further shards. wait: called when all have begun; returns when the
        servers are ready that they wait for by themselves.
        """
        metrics = JsonLines(self.run_dir / "metrics.jsonl", skip=True)
        homes = [(self.run_dir / process.ready).parents[1] for process in (environment, *others)]  # above their config/
        groups = Groups([JsonLines(home / "environment.jsonl", skip=True) for home in homes])
        with self.screen.bar():
            training = self.begin("trainer", trainer)
            feeding = self.begin("environment", environment)
            beside = [self.begin(f"environment-{number}", process) for number, process in enumerate(others, 1)]
            wait()
            self.course.over("start", self.done)
            self._say_what_comes()
            self.screen.header()
            self.evaluated += self._evaluations.new()
            self._follow(training, metrics, groups)
            if self._evaluates and self.done >= self.steps and not self._stopping:
                self._finish_evaluation(feeding)
        for child in (feeding, *beside):
            child.stop()
            self.family.children.remove(child)
        if not self._stopping:
            self.screen.legend()
        return self.done

    def _say_what_comes(self) -> None:
        left = left_words(self.course)
        if left and not self.done:
            evaluated = ", the weights before and after them evaluated" if self._evaluates else ""
            self.screen.say(f"  {self.steps} steps{evaluated}: about {left}")
        self.screen.say()

    def _show(self, what: str | None = None) -> None:
        self.screen.show(self.course, f"step {self.done}/{self.steps}", what)

    def _follow(self, trainer: Child, metrics: JsonLines, groups: Groups) -> None:
        """Prints a row for each step until the trainer has ended."""
        pending: list[GroupRecord] = []
        for trained in self._rows(trainer, metrics, groups, pending):
            self.done = trained["step"]
            # A step after an evaluation waited for that as well.
            seconds = None if self.course.last == "evaluation" else trained["seconds_step"]
            self.course.over("step", self.done, seconds)
            left = left_words(self.course)
            self.screen.row(step_cells(trained, pending), f"  {left}" if left else "")
            pending.clear()
            self._show()

    def _finish_evaluation(self, feeding: Child) -> None:
        """Until the environment has evaluated the last weights."""
        left = left_words(self.course)
        self.screen.say(f"  evaluating the last weights{', ' if left else ''}{left}")
        while feeding.returncode is None:
            self.check()
            self._show("evaluating the last weights")
            time.sleep(0.3)
        feeding.check()
        self._say_evaluations()

    def _say_evaluations(self) -> None:
        for record in self._evaluations.new():
            self.evaluated.append(record)
            self.course.over("evaluation", record.get("step", -1))
            self.screen.say(
                f"  held-out, step {record.get('step', '-')}: {evaluation_title(record):<40} {rate(record)}"
            )

    def _rows(
        self, trainer: Child, metrics: JsonLines, groups: Groups, pending: list[GroupRecord]
    ) -> Iterator[dict[str, Any]]:
        while True:
            ended = trainer.returncode is not None
            if self._saves and self.signals and not self._stopping:
                self._stop_softly(trainer)
            self.check()
            pending += (convert(row, GroupRecord) for row in groups.new())
            usable = sum(group.dropped is None for group in pending)
            self._show(f"{len(pending)} groups generated, {usable} with a signal")
            self._say_without_signal(len(pending), usable)
            rows = metrics.new()  # a step is shown before the evaluation of its weights
            yield from rows
            self._say_evaluations()
            if ended:
                return
            time.sleep(0.3)

    def _say_without_signal(self, generated: int, usable: int) -> None:
        """A line when hardly any group of a step can be trained on, again at twice as many."""
        if generated < _NO_SIGNAL:
            self._said_at = 0
        elif generated >= max(_NO_SIGNAL, 2 * self._said_at) and usable < generated / 20:
            self._said_at = generated
            self.screen.say(
                f"  {generated} groups generated for this step, {usable} with a signal: in the others every answer "
                "failed, or every one passed. Easier problems, worked examples (env.prompt_style fewshot) or a larger "
                "model help; rollouts/ shows what was answered"
            )

    def _stop_softly(self, trainer: Child) -> None:
        self._stopping = True
        self.screen.say(
            f"\n{self.signals[0]}: the trainer ends its step and saves; once more (Ctrl-C) ends everything at once"
        )
        trainer.ask_to_end()


def run_to_end_or_signal(loop: Loop, work: Any, on_interrupt: Any) -> int:
    """Runs `work`; the exit code: its own, 130 after a signal (what `on_interrupt(reason)` says), 1 after an error."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, loop.interrupt)
    try:
        return int(work())
    except Interrupted as reason:
        on_interrupt(str(reason))
        return 130
    except (ProcessError, OSError) as error:
        loop.screen.say(f"\nerror {error}")
        return 1
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        loop.stop()
