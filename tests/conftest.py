"""What several folders of tests share: the real model, one running vLLM, and how several workers divide the tests."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling

from environments.launch.processes import Child, free_port

ROOT = Path(__file__).resolve().parents[1]

# Before torch is imported, here and in the processes that tests start: on tensors of this size a second thread waits
# for the first, and takes a core from the other worker while it does.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Files whose tests run one after the other in one worker. Any other file is a group by itself, because its fixtures
# are made once for it; so is each host of the adversarial programs.
GROUPS = {
    "vllm": ("tests/vllm/", "tests/test_end_to_end.py", "tests/launch/test_own_problems.py"),
    # They read process lists, act on every process of a uid, stop processes, or compare clocks of the whole machine.
    "machine": (
        "tests/gvisor/",
        "tests/judge/test_fair_time.py",
        "tests/judge/test_isolation.py",
        "tests/judge/test_killed.py",
        "tests/judge/test_lent_time.py",
        "tests/judge/test_pool.py",
        "tests/judge/test_watch_totals.py",
    ),
    # They read what one world of two ranks computed.
    "ranks": tuple(f"tests/trainer/test_{name}.py" for name in ("adapter", "checkpoints", "parallel", "stored_adamw")),
}
# What takes longest begins first: the workers then end together.
FIRST = (
    "vllm",
    "tests/faults/test_storm.py",
    "machine",
    "tests/adversarial/",
    "tests/verification/test_modal.py",
    "tests/trainer/test_budget.py",
    "ranks",
    "tests/api/test_deaths.py",
    "tests/faults/",
    "tests/trainer/test_replay.py",
    "tests/trainer/test_run.py",
    "tests/trainer/test_weights_nccl.py",
    "tests/livecode/test_busy_servers.py",
    "tests/livecode/test_resume.py",
    "tests/report/test_access.py",
)


@dataclass(frozen=True)
class VllmServer:
    """A running vLLM: fp32, eager, prefix cache on, `disk` weight transfer. A test that publishes weights leaves them
    there: begin with a publication where the served weights matter."""

    url: str
    model: Path
    child: Child


def _group(nodeid: str) -> str:
    """The group of a test: those of one group run in one worker, in their order."""
    path, _, test = nodeid.partition("::")
    if path == "tests/adversarial/test_programs.py" and "[" in test:  # [host-program]
        return f"{path} {test.partition('[')[2].partition('-')[0].rstrip(']')}"
    return next((name for name, paths in GROUPS.items() if path.startswith(paths)), path)


class _ByGroup(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Deals groups out to the workers. (The marks of `--dist loadgroup` do nothing under pytest 9.2.)"""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """The scheduler of `make test`."""
    return _ByGroup(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """The folder of the session's server of forks, see tests/support/forked.py; its workers find it as well."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.mkdtemp(prefix="atropos-forks-", suffix=f"-{os.getpid()}")
        os.environ["TEST_FORKS"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Makes what a test logged sendable: a worker cannot send the lone surrogates that tests of hostile text log."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


def _shuffle(items: list[pytest.Item], draw: random.Random) -> None:
    """The groups in a drawn order, and the tests of each: none may need what another one left."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        groups.setdefault(_group(item.nodeid), []).append(item)
    drawn = list(groups.values())
    draw.shuffle(drawn)
    for members in drawn:
        draw.shuffle(members)
    items[:] = [item for members in drawn for item in members]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """An order drawn by the seed SHUFFLE, if there is one; the longest groups first, so that workers end together."""
    if os.environ.get("SHUFFLE"):
        _shuffle(items, random.Random(os.environ["SHUFFLE"]))
    if not hasattr(config, "workerinput"):
        return

    def place(item: pytest.Item) -> int:
        group = _group(item.nodeid)
        return next((number for number, name in enumerate(FIRST) if group.startswith(name)), len(FIRST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of SmolLM2-135M-Instruct in fp32; written once when it is not there yet."""
    from trainer.pretrained import write_model

    folder = ROOT / "models" / "SmolLM2-135M-Instruct"
    with FileLock(tmp_path_factory.getbasetemp().parent / "model.lock"):  # the workers' common folder
        write_model(folder)
    return folder


@pytest.fixture(scope="session")
def vllm_server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """The session's vLLM, started when the first test asks for it and stopped at the end."""
    from environments.launch.serve_model import ServeConfig, serve_command

    config = ServeConfig(model=smollm2, port=free_port(), enforce_eager=True, kv_cache_gib=1.0)
    command, env = serve_command(config)
    child = Child("vLLM", command, tmp_path_factory.mktemp("vllm") / "vllm.log", env)
    try:
        child.wait_ready(f"{config.url}/health", 280.0)
        yield VllmServer(config.url, smollm2, child)
    finally:
        child.stop()
