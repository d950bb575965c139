"""The API server in a process that is killed, as by kill -9, at a chosen operation on the journal's files.

SQLite writes from C, so the kernel stops the process there: a seccomp filter hands every system call that changes a
file to this parent, which lets it go on, or kills the process before it, in the middle of a write, or at the next one.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import uvicorn

from environments.api_server import journal as journal_module
from environments.api_server.journal import Journal
from environments.api_server.launch import bind
from environments.api_server.server import build
from environments.api_server.store import Store
from environments.common import sqlite
from verifier_app.judge.layers.syscalls import PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, prctl

# System calls by name: x86-64, aarch64.
_NUMBERS = {
    "write": (1, 64), "pwrite64": (18, 68), "fsync": (74, 82), "fdatasync": (75, 83), "ftruncate": (77, 46),
    "unlink": (87, 35),
}  # fmt: skip
_MACHINE = ("x86_64", "aarch64").index(platform.machine())
CALLS = {numbers[_MACHINE]: name for name, numbers in _NUMBERS.items()}

_SYS_SECCOMP = (317, 277)[_MACHINE]
_SET_MODE_FILTER, _NEW_LISTENER = 1, 1 << 3
_USER_NOTIF, _ALLOW = 0x7FC00000, 0x7FFF0000
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1
_NOTIFICATION = struct.Struct("=QII iIQ6Q")
_ANSWER = struct.Struct("=QqiI")


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def listener() -> int:
    """From here on this process waits in each of CALLS for who reads from the descriptor that is returned."""
    rules = [(0x20, 0, 0, 0)]  # load the number
    for place, number in enumerate(CALLS):
        rules.append((0x15, len(CALLS) - place, 0, number))  # equal: to the last rule
    rules += [(0x06, 0, 0, _ALLOW), (0x06, 0, 0, _USER_NOTIF)]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *rule) for rule in rules))
    libc = ctypes.CDLL(None, use_errno=True)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    program = _Program(len(rules), ctypes.addressof(packed))
    fd = int(libc.syscall(_SYS_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, ctypes.byref(program)))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return fd


def live(path: Path, port: int, channel: socket.socket) -> None:
    """Serves until the process dies."""
    journal_module.KEPT_BYTES = 600  # so that old bodies go,
    journal_module.FREE_BYTES = 0  # space is given back,
    sqlite.KEPT_LOG_BYTES = 100_000  # and the log is moved
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    fd = listener()
    socket.send_fds(channel, [b"x"], [fd])
    os.close(fd)
    app = build(Store(Journal(path)))
    config = uvicorn.Config(app, log_level="critical", ws="none", lifespan="off")
    uvicorn.Server(config).run(sockets=[bind("127.0.0.1", port)])


def calls(fd: int, ended: int, path: Path) -> Iterator[tuple[int, str, tuple[int, ...]]]:
    """Each call on the journal's files, held up until the next is asked for: thread, name, arguments.

    ended: the process as a descriptor; the listener alone does not tell its end.
    """
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.register(ended, select.POLLIN)
    while ended not in dict(poll.poll()):
        notification = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(fd, _RECEIVE, notification)
        except (FileNotFoundError, InterruptedError):  # it died while it waited
            continue
        key, thread, _, number, _, _, *arguments = _NOTIFICATION.unpack(notification)
        name = CALLS[number]
        if name == "unlink" or _target(thread, arguments[0]).startswith(str(path)):
            yield thread, name, tuple(arguments)
        try:
            fcntl.ioctl(fd, _SEND, bytearray(_ANSWER.pack(key, 0, 0, _CONTINUE)))
        except FileNotFoundError:
            continue


def _target(thread: int, fd: int) -> str:
    try:
        return os.readlink(f"/proc/{thread}/fd/{fd}")
    except OSError:
        return ""


def watch(pid: int, fd: int, path: Path, operations: int) -> None:
    """Kills the process at one of its operations, counted from 1. Odd numbers: before one; even: within a write."""
    ended = os.pidfd_open(pid)
    for count, (thread, name, arguments) in enumerate(calls(fd, ended, path), 1):
        if count == (operations + 1) // 2:
            if operations % 2 == 0 and name in ("write", "pwrite64"):
                _write_half(thread, name, arguments)
            os.kill(pid, signal.SIGKILL)
    os.close(ended)


def _write_half(thread: int, name: str, arguments: tuple[int, ...]) -> None:
    fd, source, length, place = arguments[:4]
    if name == "write":
        _, position, _, flags, *_ = Path(f"/proc/{thread}/fdinfo/{fd}").read_text().split()
        place = Path(f"/proc/{thread}/fd/{fd}").stat().st_size if int(flags, 8) & os.O_APPEND else int(position)
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
        memory.seek(source)
        half = memory.read(length // 2)
    with open(f"/proc/{thread}/fd/{fd}", "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), half, place)


def main() -> None:
    """Forks a server for each line "PORT OPERATIONS PATH", says its pid, and how it ended; imports come once."""
    for line in sys.stdin:
        port, operations, path = line.rstrip("\n").split(" ", 2)
        here, there = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            here.close()
            live(Path(path), int(port), there)
            os._exit(0)
        there.close()
        print(pid, flush=True)
        with closing(here):
            _, (fd, *_), _, _ = socket.recv_fds(here, 1, 1)
        watch(pid, fd, Path(path), int(operations))
        os.close(fd)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
