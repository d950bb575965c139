"""The whole loop as processes with the public commands, and faults at drawn moments.

API server with its journal, environment, judge pool (or the verifier's HTTP service), trainer with two ranks; the
policy server is tests/support's or vLLM. What ends is started again by the same command, as `atropos supervise` does.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from environments.common.errors import BAD_INPUT
from environments.launch.processes import Child, free_port, tail
from tests.support.forked import Forked
from tests.support.proxy import Proxy

ROOT = Path(__file__).resolve().parents[2]
GROUP = 4
PER_STEP = 2  # groups
LIMITS: dict[str, Any] = {"time_limit_s": 5.0, "memory_limit_mb": 512}
RESTARTS = 20
AWAY_S = 0.2  # from a death to the restart, unless a fault says otherwise


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


class ForkedChild(Child):
    """A child that need not import torch first: what is started again is there in a moment."""

    def _start(self) -> None:
        self.started = time.monotonic()
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": self._log_file, "stderr": subprocess.STDOUT}
        self.process = Forked(self._argv, env=self._env, **streams)


@dataclass
class Part:
    """One process of the loop: how it is started, and how often it was."""

    name: str
    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)
    child: Child | None = None
    starts: int = 0
    codes: list[int] = field(default_factory=list)
    held_until: float = 0.0  # not started again before


class Loop:
    """A run in `folder`/run.

    Args:
        steps: training steps.
        policy: the command of the policy server, given its port; None: tests/support's.
        cuts: pairs of processes with a proxy in between, such as "environment-api".
        verifier: "local", or "http": the service of its own process, reached through `verifier_proxy`.
        extra: flags of a process beside the usual ones. variables: of its environment.
        homes: run folders of single processes in place of the common one.
    """

    def __init__(
        self,
        folder: Path,
        model: Path,
        problems: Path,
        *,
        steps: int = 8,
        policy: Callable[[int], tuple[list[str], dict[str, str]]] | None = None,
        cuts: Sequence[str] = (),
        verifier: str = "local",
        verifier_proxy: Callable[[str], Proxy] = Proxy,
        extra: Mapping[str, Sequence[str]] | None = None,
        variables: Mapping[str, Mapping[str, str]] | None = None,
        homes: Mapping[str, Path] | None = None,
    ) -> None:
        self.folder, self.model, self.problems, self.steps = folder, model, problems, steps
        self.run = folder / "run"
        self.run.mkdir(parents=True)
        homes = homes or {}
        self.homes = {name: homes.get(name, self.run) for name in ("api", "environment", "trainer")}
        self.journal = self.homes["api"] / "api.journal"
        self.cuts: dict[str, Proxy] = {}
        self.parts: dict[str, Part] = {}
        ports = {name: free_port() for name in ("api", "policy", "verifier", "ranks")}
        self.urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        for pair in cuts:
            self.cuts[pair] = Proxy(self.urls[pair.partition("-")[2]])
        python = [sys.executable, "-m"]
        self._part("api", [*python, "environments.cli", "run-api", "--port", str(ports["api"]), "--journal",
                           str(self.journal)])  # fmt: skip
        if policy is None:
            self._part("policy", [*python, "tests.support.policy_server", str(model), str(ports["policy"])])
        else:
            argv, env = policy(ports["policy"])
            self._part("policy", argv, env)
        environment = [*python, "environments.cli", "run-env", "livecode", "serve", *self._environment_flags()]
        if verifier == "http":
            self._part("verifier", [*python, "verifier_app", "serve"],
                       {"VERIFIER_PORT": str(ports["verifier"]), "VERIFIER_WORKERS": "2"})  # fmt: skip
            self.cuts["environment-verifier"] = verifier_proxy(self.urls["verifier"])
            environment += ["--env.verifier", "http", "--env.verifier_urls", self.cuts["environment-verifier"].url]
        self._part("environment", environment)
        launcher = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(ports["ranks"])]
        self._part("trainer", [*python, *launcher, str(ROOT / "trainer" / "main.py"), *self._trainer_flags()])
        for name, flags in (extra or {}).items():
            self.parts[name].argv += flags
        for name, values in (variables or {}).items():
            self.parts[name].env |= values

    def _part(self, name: str, argv: list[str], env: dict[str, str] | None = None) -> None:
        quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.parts[name] = Part(name, argv, {**quiet, **(env or {})})

    def _url(self, pair: str) -> str:
        return self.cuts[pair].url if pair in self.cuts else self.urls[pair.partition("-")[2]]

    def _environment_flags(self) -> list[str]:
        options = {
            "--model": self.model,
            "--servers": self._url("environment-policy"),
            "--env.rollout_server_url": self._url("environment-api"),
            "--env.run_dir": self.homes["environment"],
            "--env.problems": self.problems,
            "--env.total_steps": self.steps,
            "--env.group_size": GROUP,
            "--env.context": 160,
            "--env.max_new_tokens": 12,
            "--env.max_concurrent_rollouts": 4 * GROUP,
            "--env.rollout_deadline_s": 120,
            "--env.verifier_deadline_s": 120,
            "--env.time_limit_s": LIMITS["time_limit_s"],
            "--env.memory_limit_mb": LIMITS["memory_limit_mb"],
            "--env.record_rollouts_per_group": GROUP,
        }
        return [str(word) for pair in options.items() for word in pair]

    def _trainer_flags(self) -> list[str]:
        options = {
            "--model": self.model,
            "--run_dir": self.homes["trainer"],
            "--steps": self.steps,
            "--api.url": self._url("trainer-api"),
            "--api.batch_deadline_s": 120,
            "--weights.servers": self._url("trainer-policy"),
            "--weights.dtype": "float32",
            "--weights.deadline_s": 10,
            "--batch.rollouts": GROUP * PER_STEP,
            "--batch.group_size": GROUP,
            "--batch.context": 160,
            "--batch.max_tokens": 512,
            "--optimizer.lr": 0.001,
            "--checkpoint.every": 2,
            "--checkpoint.resume": "auto",
            "--checkpoint.export": "false",
        }
        return [str(word) for pair in options.items() for word in pair]

    # -- processes -----------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        for name in self.parts:
            self.start(name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in reversed(self.parts.values()):
            if part.child is not None:
                with_children(part.child.process.pid, signal.SIGCONT)
                part.child.stop(5.0)
        for proxy in self.cuts.values():
            proxy.close()

    def start(self, name: str) -> None:
        """Starts a process by its command; the environment only where the servers that it checks first answer."""
        part = self.parts[name]
        part.starts += 1
        kind = ForkedChild if part.argv[0] == sys.executable and name not in ("api", "verifier") else Child
        part.child = kind(name, part.argv, self.folder / "logs" / f"{name}.log", part.env)
        ready = {"api": "/health", "policy": "/health", "verifier": "/health"}.get(name)
        if part.starts == 1 and ready:
            part.child.wait_ready(self.urls[name] + ready, 600.0)

    def tick(self) -> None:
        """Starts what has ended again; AssertionError for what no restart fixes."""
        for part in self.parts.values():
            child = part.child
            if child is None or child.returncode is None:
                continue
            code = child.returncode
            if not part.held_until:
                part.codes.append(code)
                assert code != BAD_INPUT, self.logs(f"{part.name} refuses its input")
                assert part.starts <= RESTARTS, self.logs(f"{part.name} was started {part.starts} times")
                part.held_until = time.monotonic() + AWAY_S
            if code == 0 and part.name in ("trainer", "environment"):
                continue
            if time.monotonic() >= part.held_until:
                child.stop(0.0)
                part.held_until = 0.0
                self.start(part.name)

    def pid(self, name: str) -> int:
        """Of a process; of "rank-0" and "rank-1" those of the trainer, "judges" is a job for `judges`."""
        if name.startswith("rank-"):
            ranks = [one for one in children(self._pid("trainer")) if one.name() == name]
            return ranks[0].pid if ranks else self._pid("trainer")
        return self._pid(name)

    def _pid(self, name: str) -> int:
        child = self.parts[name].child
        assert child is not None
        return child.process.pid

    def kill(self, name: str, *, away_s: float = AWAY_S) -> None:
        """kill -9; the restart comes after `away_s`."""
        part = self.parts["trainer" if name.startswith("rank-") else name]
        self.signal(name, signal.SIGKILL)
        if not name.startswith("rank-") and part.child is not None:
            part.child.process.wait()
            part.codes.append(-signal.SIGKILL)
            part.held_until = time.monotonic() + away_s

    def signal(self, name: str, number: signal.Signals) -> None:
        """To one process; one that has just ended by itself does not get it."""
        try:
            os.kill(self.pid(name), number)
        except ProcessLookupError:
            self.tick()

    def judges(self) -> list[int]:
        """The judge pool's processes, of the environment or of the verifier's service."""
        owner = "verifier" if "verifier" in self.parts else "environment"
        return [one.pid for one in children(self._pid(owner)) if "verifier_app.judge.worker" in words(one)]

    # -- progress ------------------------------------------------------------------------------------------------

    @property
    def trained(self) -> int:
        """The newest step that was trained, counted from 1."""
        rows = lines(self.homes["trainer"] / "metrics.jsonl")
        return int(rows[-1]["step"]) if rows else 0

    @property
    def made(self) -> int:
        """Groups that the environment has finished."""
        return len(lines(self.homes["environment"] / "environment.jsonl"))

    @property
    def done(self) -> bool:
        child = self.parts["trainer"].child
        return child is not None and child.returncode == 0

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 180.0) -> None:
        """Waits, and starts again what ends meanwhile."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.logs(f"not within {seconds:g} s: {what}")
            self.tick()
            time.sleep(0.05)

    def wait(self, seconds: float) -> None:
        """Time that passes, with restarts."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.tick()
            time.sleep(0.05)

    def go(self, faults: Sequence[Callable[[Loop], None]], seed: int, seconds: float = 600.0) -> None:
        """The run to its end, with each fault at a drawn moment, the faults spread over the steps."""
        draw = random.Random(seed)
        for number, fault in enumerate(faults):
            step = number * (self.steps - 4) // max(len(faults), 1)
            before = self.made
            self.until(lambda: self.trained >= step and self.made > before, f"step {step}", seconds)  # noqa: B023
            self.wait(draw.uniform(0.0, 1.0))
            assert not self.done, self.logs(f"the run ended before fault {number}: {fault}")
            fault(self)
        self.until(lambda: self.done, "the last step", seconds)
        self._end_environment()

    def _end_environment(self) -> None:
        child = self.parts["environment"].child
        assert child is not None
        end = time.monotonic() + 10.0  # it sees the last version by itself
        while child.returncode is None and time.monotonic() < end:
            time.sleep(0.05)
        child.stop(20.0)

    def logs(self, what: str) -> str:
        """For a failing test: what is wrong, with the last lines of every process."""
        shown = [f"{name} ({self.parts[name].codes}):\n{tail(self.folder / 'logs' / f'{name}.log', 25)}"
                 for name in self.parts]  # fmt: skip
        return "\n".join([what, *shown])

    @property
    def restarts(self) -> Counter[str]:
        """How often each process was started again."""
        return Counter({name: part.starts - 1 for name, part in self.parts.items() if part.starts > 1})


def children(pid: int) -> list[psutil.Process]:
    """Direct ones, none for a process that is gone."""
    try:
        found: list[psutil.Process] = psutil.Process(pid).children()
        return found
    except psutil.NoSuchProcess:
        return []


def words(process: psutil.Process) -> list[str]:
    """Of its command line."""
    try:
        line: list[str] = process.cmdline()
        return line
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def with_children(pid: int, number: signal.Signals) -> None:
    """A signal to a process and all below it."""
    try:
        process = psutil.Process(pid)
        for one in [*process.children(recursive=True), process]:
            one.send_signal(number)
    except psutil.NoSuchProcess:
        pass
