"""Parts of the sandboxed side by value, in this process: there a program runs, and its tracer does not see them."""

from __future__ import annotations

import importlib.util
import io
import multiprocessing
import multiprocessing.connection
import multiprocessing.popen_spawn_posix
import os
import resource
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from verifier_app.judge.languages.python import official, rendezvous, runner, threads
from verifier_app.judge.languages.python.prelude import STACK_BYTES
from verifier_app.judge.layers import capabilities, sandbox
from verifier_app.judge.layers.capabilities import UID_BASE, UID_SPAN, HostCapabilities
from verifier_app.judge.procfs import tree

# -- listeners at named pipes --------------------------------------------------------------------------------------


def replaced(name: str) -> Any:
    """A copy of a module of multiprocessing as a program gets it; this process keeps its own."""
    spec = rendezvous._Finder().find_spec(name, multiprocessing.__path__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def connection() -> Any:
    return replaced("multiprocessing.connection")


@pytest.mark.parametrize("authkey", [None, b"secret"])
def test_a_client_and_a_listener_talk_over_pipes_that_are_gone_afterwards(
    connection: Any, tmp_path: Path, authkey: bytes | None
) -> None:
    address = str(tmp_path / "door")
    got: list[Any] = []

    def call() -> None:
        with connection.Client(address, authkey=authkey) as client:
            client.send(["x" * 300_000, 7])
            got.append(client.recv())

    with connection.Listener(address, "AF_UNIX", authkey=authkey) as listener:
        assert listener.address == address
        caller = threading.Thread(target=call)
        caller.start()
        with listener.accept() as accepted:
            text, number = accepted.recv()
            accepted.send((len(text), number))
        caller.join(20)
    assert got == [(300_000, 7)]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConnectionRefusedError):
        connection.Client(address)


def test_a_client_finds_nobody_at_a_door_without_a_listener(connection: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "door")
    with pytest.raises(ConnectionRefusedError):
        connection.Client(str(tmp_path / "door"))


def test_other_addresses_are_sockets_still(connection: Any) -> None:
    with connection.Listener(("127.0.0.1", 0)) as listener:
        assert type(listener._listener).__name__ == "SocketListener"
    ours: Any = multiprocessing.connection
    assert ours.SocketListener.__name__ == "SocketListener"
    assert connection.SocketListener.__name__ == "listen"


def test_a_fork_server_spawns_and_no_other_module_is_changed() -> None:
    found = replaced("multiprocessing.popen_forkserver")
    assert found.Popen is multiprocessing.popen_spawn_posix.Popen
    assert rendezvous._Finder().find_spec("multiprocessing.pool", multiprocessing.__path__) is None


def test_what_is_loaded_before_is_replaced_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    there = types.ModuleType("multiprocessing.popen_forkserver")
    monkeypatch.setitem(sys.modules, "multiprocessing.popen_forkserver", there)
    monkeypatch.delitem(sys.modules, "multiprocessing.connection", raising=False)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    rendezvous.install()
    assert there.Popen is multiprocessing.popen_spawn_posix.Popen
    assert isinstance(sys.meta_path[0], rendezvous._Finder)


# -- room for threads ----------------------------------------------------------------------------------------------

MB = 1 << 20


@pytest.mark.parametrize(
    ("soft", "hard", "size", "wanted"),
    [
        (100 * MB, resource.RLIM_INFINITY, 2 * MB, 103 * MB),
        (100 * MB, 102 * MB, 2 * MB, 102 * MB),
        (100 * MB, resource.RLIM_INFINITY, 0, 101 * MB + STACK_BYTES),
        (100 * MB, 100 * MB, 2 * MB, None),
    ],
)
def test_a_thread_raises_the_limit_by_its_stack(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, size: int, wanted: int | None
) -> None:
    limits: list[tuple[int, tuple[int, int]]] = []
    sizes: list[int] = []

    def stack_size(*new: int) -> int:
        sizes.extend(new)
        return size

    made = SimpleNamespace(
        getrlimit=lambda _: (soft, hard), setrlimit=lambda *given: limits.append(given),
        RLIMIT_AS=resource.RLIMIT_AS, RLIM_INFINITY=resource.RLIM_INFINITY,
    )  # fmt: skip
    monkeypatch.setattr(threads, "resource", made)
    start = threads._with_room(lambda *arguments, **named: (arguments, named), stack_size)
    assert start(print, (1,), daemon=True) == ((print, (1,)), {"daemon": True})
    assert limits == ([] if wanted is None else [(resource.RLIMIT_AS, (wanted, hard))])
    assert sizes == ([size] if size and wanted is not None else [])  # asking has set another default


def test_a_limit_that_may_not_be_raised_starts_the_thread_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1, 2))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert threads._with_room(lambda: "started", lambda *_: 0)() == "started"


# -- the official grader's streams, the runner's search -------------------------------------------------------------


def test_the_official_graders_stdin_reads_as_its_stand_in_does() -> None:
    stdin = official.Stdin("a\nb\n")
    assert [stdin.readline(), stdin.readline(), stdin.readline()] == ["a\n", "b\n", ""]
    assert (stdin.read(), stdin.read(), stdin.readlines()) == ("a\nb\n", "a\nb\n", ["a", "b", ""])
    assert stdin.tell() == 4
    with pytest.raises(TypeError):
        iter(stdin)
    assert stdin.buffer.readline() == stdin.buffer.readline() == b"a\n"
    assert stdin.buffer.read() == b"a\nb\n"
    assert official._open("text")("any file", "w").read() == "text"


@pytest.mark.parametrize(
    ("source", "result"),
    [
        ("class Solution:\n    def solve(self): return 1\ndef solve(): return 2", 1),
        ("class Solution:\n    def other(self): return 1\ndef solve(): return 2", 2),
        ("class Solution:\n    def __init__(self): raise KeyError\ndef solve(): return 2", 2),
        ("class Solution:\n    def __getattr__(self, name): return lambda: name", "solve"),
        ("Solution = 5\ndef solve(): return 2", 2),
    ],
)
def test_the_function_is_the_solutions_method_or_the_plain_one(source: str, result: Any) -> None:
    module = types.ModuleType("solution")
    exec(source, module.__dict__)
    assert runner._find(module, "solve")() == result


@pytest.mark.parametrize(
    ("source", "raised", "message"),
    [
        ("class Solution:\n    def __init__(self): raise KeyError('mine')", KeyError, "mine"),
        ("class Solution:\n    def other(self): return 1", AttributeError, "no attribute 'solve'"),
        ("def other(): return 2", NameError, "neither in class Solution nor as a function"),
    ],
)
def test_a_program_without_the_function_gets_its_own_error(source: str, raised: type[Exception], message: str) -> None:
    module = types.ModuleType("solution")
    exec(source, module.__dict__)
    with pytest.raises(raised, match=message):
        runner._find(module, "solve")


# -- what a host offers ----------------------------------------------------------------------------------------------


def host(monkeypatch: pytest.MonkeyPatch, uid_map: str) -> HostCapabilities:
    monkeypatch.setattr(capabilities, "open", lambda _: io.StringIO(uid_map), raising=False)
    found = HostCapabilities([], [], [], [])
    found._find_uids()
    return found


def test_uids_come_from_what_the_namespace_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    small = host(monkeypatch, "0 100000 10\n1000 200000 65536\n")
    assert (small.uid_base, small.uid_span) == (1000 + 32768, 32767)
    uids = {small.uid_for(number) for number in range(2000)}
    assert len(uids) == 1024
    assert min(uids) >= 1000 + 32768
    assert {small.sweeper_uid(uid) for uid in uids} == {1000 + 65535}  # the map's last, no program's
    whole = host(monkeypatch, f"0 0 {2**32 - 1}\n")
    assert (whole.uid_base, whole.uid_span, whole.sweeper_uid(UID_BASE)) == (UID_BASE, UID_SPAN, UID_BASE + 2**31)
    with pytest.raises(OSError, match="this user namespace maps 3 uids"):
        host(monkeypatch, "0 0 3\n")


def test_a_probe_that_dies_has_found_nothing() -> None:
    found = HostCapabilities([], [], [], [])
    assert found._works("landlock", lambda: os.kill(os.getpid(), signal.SIGKILL)) is False
    assert found._works("seccomp", lambda: None) is True
    assert found._works("uid", lambda: capabilities.become(-2)) is False
    assert found.reasons["landlock"] == "the probe died"
    assert set(found.reasons) == {"landlock", "uid"}
    assert found.missing(["seccomp", "net_namespace", "ipc_namespace"]) == {
        "pid_namespace": "it failed", "private_root": "it failed", "uid": found.reasons["uid"],
        "landlock": "the probe died",
    }  # fmt: skip


# -- what a program leaves behind ----------------------------------------------------------------------------------


@pytest.fixture
def family() -> Iterator[subprocess.Popen[str]]:
    """A shell with two children, of which one has a child too; it ends when its own are gone."""
    script = "sleep 300 & sh -c 'sleep 300 & echo ready; wait' & wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == "ready\n"
        yield shell
        shell.kill()


def below(root: int) -> dict[int, list[bytes]]:
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        return tree(proc, root, False)
    finally:
        os.close(proc)


def test_a_tree_is_swept_but_for_what_is_spared(family: subprocess.Popen[str]) -> None:
    everything = below(family.pid)
    assert len(everything) == 3
    inner = next(pid for pid, fields in everything.items() if fields[1] == str(family.pid).encode() and below(pid))
    assert inner in sandbox.descendants(family.pid)
    sandbox.sweep_tree(family.pid, frozenset({inner}))
    left = {pid for pid, fields in below(family.pid).items() if fields[0] != b"Z"}
    assert inner in left
    sandbox.sweep_tree(family.pid)
    assert family.wait(20) == 0


def test_a_scratch_folder_goes_with_all_that_its_uid_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    (shared / "folder" / "inner").mkdir(parents=True)
    (shared / "file").write_text("left")
    (shared / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "kept").write_text("kept")
    monkeypatch.setattr(sandbox, "SHARED", (str(shared), str(tmp_path / "none")))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    first, second = sandbox.make_scratch(), sandbox.make_scratch()
    assert os.stat(first).st_mode & 0o777 == 0o700
    sandbox.remove_scratch(first, None)  # no uid of its own: what is there may be anybody's
    sandbox.remove_scratch(second, os.getuid() + 1)
    assert sorted(path.name for path in shared.iterdir()) == ["file", "folder", "link"]
    sandbox.remove_scratch(second, os.getuid())
    assert list(shared.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "shared"]
