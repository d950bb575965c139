"""Templates and zygotes that do not start, or die at the wrong moment: one fault with its reason, nothing left over."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from verifier_app.judge import JudgeError, host
from verifier_app.judge.channel import Channel
from verifier_app.judge.host import TemplateHandle, ZygoteHandle
from verifier_app.judge.languages import registry
from verifier_app.judge.languages.language import Warm
from verifier_app.judge.template import Template

CONFIG = {"memory_mb": 64}


def usual(**changes: Any) -> Warm:
    """What Python's usual template has ready, changed."""
    return replace(registry.find(None).usual(), **changes)


@contextmanager
def nothing_left() -> Iterator[None]:
    """No process and no descriptor stays behind."""
    me = psutil.Process()
    before = me.num_fds(), set(me.children())
    yield
    assert (me.num_fds(), set(me.children())) == before


@pytest.mark.parametrize(
    ("patched", "value", "message"),
    [
        ("verifier_app.judge.host.sys.executable", "/nowhere/python", "the template does not start: [Errno 2]"),
        ("verifier_app.judge.host.BOOT", "raise SystemExit(3)", "the template does not start (its stderr says why)"),
    ],
)
def test_a_template_that_does_not_start_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, patched: str, value: str, message: str
) -> None:
    monkeypatch.setattr(patched, value)
    with nothing_left(), pytest.raises(JudgeError) as caught:
        TemplateHandle(usual())
    assert caught.value.kind == "sandbox_failed"
    assert caught.value.message.startswith(message)


def test_a_template_that_cannot_prepare_names_the_error() -> None:
    with nothing_left(), pytest.raises(JudgeError) as caught:
        TemplateHandle(usual(guest="no_such_guest"))
    assert caught.value.message == ("the template does not start: ModuleNotFoundError: No module named 'no_such_guest'")


def test_an_interrupt_while_a_template_starts_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(host, "receive", interrupted)
    with nothing_left(), pytest.raises(KeyboardInterrupt):
        TemplateHandle(usual())


@pytest.fixture(scope="module")
def template() -> Iterator[TemplateHandle]:
    made = TemplateHandle(usual())
    yield made
    made.close()


@pytest.mark.parametrize(
    ("thrown", "caught", "message"),
    [
        (TimeoutError(), JudgeError, "the template is gone (TimeoutError)"),
        (KeyboardInterrupt("now"), KeyboardInterrupt, "now"),
    ],
)
def test_an_answer_that_does_not_come_breaks_the_template_off(
    monkeypatch: pytest.MonkeyPatch, thrown: BaseException, caught: type[BaseException], message: str
) -> None:
    with nothing_left():
        template = TemplateHandle(usual())
        with monkeypatch.context() as patch:

            def late(*_: Any) -> Any:
                raise thrown

            patch.setattr(host, "receive", late)
            with pytest.raises(caught, match=message.replace("(", r"\(").replace(")", r"\)")):
                template.spawn(CONFIG)
            assert template.broken
            if caught is KeyboardInterrupt:
                with pytest.raises(KeyboardInterrupt):
                    template.end(1)
        template.close()


def test_a_dead_template_is_a_fault_when_it_is_asked() -> None:
    with nothing_left():
        template = TemplateHandle(usual())
        os.kill(template.process.pid, signal.SIGKILL)
        template.process.wait()
        with pytest.raises(JudgeError, match="the template is gone"):
            template.spawn(CONFIG)
        template.close()


def test_a_template_that_does_not_end_by_itself_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    with nothing_left():
        template = TemplateHandle(usual())
        os.kill(template.process.pid, signal.SIGSTOP)
        wait = template.process.wait

        def impatient(timeout: float | None = None) -> int:
            if timeout is not None:
                raise subprocess.TimeoutExpired("template", timeout)
            return wait()

        monkeypatch.setattr(template.process, "wait", impatient)
        template.close()
        assert template.process.returncode == -signal.SIGKILL


def test_a_judge_that_hangs_up_takes_every_zygote_with_it() -> None:
    template = TemplateHandle(usual())
    zygotes = [template.spawn(CONFIG) for _ in range(2)]
    processes = [psutil.Process(zygote.pid) for zygote in zygotes]
    template.channel.close()
    assert template.process.wait(20) == 0
    assert psutil.wait_procs(processes, timeout=20)[1] == []
    for zygote in zygotes:
        zygote.close()


def test_a_zygote_that_does_not_greet_is_ended(template: TemplateHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter([host.receive])

    def once(*arguments: Any) -> Any:
        for receive in calls:
            return receive(*arguments)
        monkeypatch.undo()
        raise TimeoutError

    monkeypatch.setattr(host, "receive", once)
    with nothing_left(), pytest.raises(JudgeError, match=r"the zygote does not start \(TimeoutError\)"):
        template.spawn(CONFIG)
    assert not template.broken
    zygote = template.spawn(CONFIG)  # and the next one starts
    assert zygote.report["level"] in ("strong", "weak")
    zygote.close()


def test_a_sandbox_that_does_not_close_names_the_error(template: TemplateHandle) -> None:
    with nothing_left(), pytest.raises(JudgeError, match="the sandbox does not close: KeyError: 'memory_mb'"):
        template.spawn({})


class NoProcesses:
    """A host that forks no more."""

    groups, root, pid = None, True, True

    def __init__(self) -> None:
        self.made: list[str] = []

    def uid_for(self, number: int) -> int:
        return 1_000_000 + number

    def fork_in_namespace(self) -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def test_a_host_that_forks_no_more_gets_its_answer_and_its_group_is_removed() -> None:
    ours, theirs = socket.socketpair()
    ground: Any = NoProcesses()
    template = Template(Channel(ours), ground, None)
    log: list[tuple[str, str]] = []
    ground.groups = SimpleNamespace(
        make=lambda name: log.append(("make", name)), remove=lambda name: log.append(("remove", name))
    )
    fd = os.dup(0)
    assert template._spawn(CONFIG, fd) == {"error": "no zygote: [Errno 11] Resource temporarily unavailable"}
    with pytest.raises(OSError):
        os.fstat(fd)
    assert log == [("make", "1"), ("remove", "1")]
    assert (template.zygotes, template._end(4711)) == ({}, None)
    for end in (ours, theirs):
        end.close()


def test_an_answer_that_refuses_a_zygote_is_a_fault(template: TemplateHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "receive", lambda *_: ({"error": "no zygote: [Errno 11]"}, []))
    with nothing_left(), pytest.raises(JudgeError) as caught:
        TemplateHandle.spawn(_deaf(template), CONFIG)
    assert (caught.value.kind, caught.value.message) == ("sandbox_failed", "no zygote: [Errno 11]")


def _deaf(template: TemplateHandle) -> Any:
    """A handle whose messages go nowhere."""
    return SimpleNamespace(_lock=template._lock, channel=SimpleNamespace(send=lambda *_: None), broken=False)


def test_a_state_that_cannot_be_read_is_none() -> None:
    zygote = ZygoteHandle.__new__(ZygoteHandle)
    zygote.open, zygote.own_namespace, zygote.pid = True, False, 2**22 + 1  # above every pid
    zygote.proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    assert zygote._stat() == []
    os.close(zygote.proc)
