"""Where a kernel counts a wait for a core of its host as CPU time, as gVisor does, the starved do not pay for it."""

from __future__ import annotations

import time

import pytest

from verifier_app.judge import watchdog as watch_module
from verifier_app.judge.process_tree import ProcessTreeSample
from verifier_app.judge.watchdog import Heartbeat, Watchdog, cpu_cap_s


@pytest.fixture(autouse=True)
def _gvisor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "WAITS_AS_CPU", True)
    monkeypatch.setattr(watch_module, "CORES", 2)
    monkeypatch.setattr(watch_module, "_heartbeat", Heartbeat())


def watched(monkeypatch: pytest.MonkeyPatch, cpu_s: float, share: float) -> tuple[Watchdog, str | None]:
    """A watch of a test with a limit of 1 s whose tree has this CPU time after 1.5 s, starved by this share."""
    monkeypatch.setattr(watch_module, "look", lambda *_: ProcessTreeSample(pids=[2], cpu_s=cpu_s, runnable=True))
    monkeypatch.setattr(Heartbeat, "starved_share", lambda _: share)
    watch = Watchdog(-1, 1, False, 1.0, 1 << 40)
    watch.start = watch.last = time.monotonic() - 1.5
    watch.there = True
    return watch, watch.check()


def test_a_starved_task_is_charged_its_share_of_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, reason = watched(monkeypatch, cpu_s=1.5, share=0.6)
    assert reason is None
    assert watch.lent_s == pytest.approx(0.9)


def test_a_task_on_a_free_core_is_charged_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, reason = watched(monkeypatch, cpu_s=1.5, share=0.0)
    assert (reason, watch.lent_s) == ("time_limit_exceeded", 0.0)


def test_a_tree_that_takes_more_than_one_core_starves_the_judge_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, reason = watched(monkeypatch, cpu_s=2.9, share=0.6)
    assert (reason, watch.lent_s) == ("time_limit_exceeded", 0.0)


def test_elsewhere_cpu_time_is_the_programs_however_slow_the_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu_cap_s(2.0) == 22
    monkeypatch.setattr(watch_module, "WAITS_AS_CPU", False)
    assert cpu_cap_s(2.0) == 4
    watch, reason = watched(monkeypatch, cpu_s=1.5, share=0.6)
    assert (reason, watch.lent_s) == ("time_limit_exceeded", 0.0)
