"""System calls that Python 3.11 does not wrap, by ctypes. A failing call raises OSError with the call's name."""

from __future__ import annotations

import ctypes
import errno
import os
import sys

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

AT_FDCWD = -100
AT_RECURSIVE = 0x8000
_SYS_MOUNT_SETATTR = 442  # one number on all architectures since Linux 5.12
_MOUNT_ATTR_RDONLY = 1
_MOUNT_ATTR_NOSUID = 2
_CAPABILITY_VERSION_3 = 0x20080522


def _check(name: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def prctl(option: int, value: int, pointer: ctypes.c_void_p | None = None) -> None:
    """prctl(2) with one argument, or with a second one that is a pointer."""
    _check("prctl", _libc.prctl(option, value, pointer, 0, 0))


def syscall(name: str, number: int, *arguments: object) -> int:
    """syscall(2): integers go as longs."""
    longs = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return _check(name, _libc.syscall(ctypes.c_long(number), *longs))


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check("unshare", _libc.unshare(flags))


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2)."""
    result = _libc.mount(_bytes(source), _bytes(target), _bytes(kind), ctypes.c_ulong(flags), _bytes(options))
    _check(f"mount {target}", result)


def umount(target: str, flags: int) -> None:
    """umount2(2)."""
    _check(f"umount {target}", _libc.umount2(_bytes(target), flags))


def pivot_root_here() -> None:
    """Make the current directory, a mount point, the root of this mount namespace, and let go of the old root."""
    _check("pivot_root", _libc.syscall(ctypes.c_long(_PIVOT_ROOT[os.uname().machine]), b".", b"."))
    umount(".", MNT_DETACH)
    os.chdir("/")


_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


def make_read_only(path: str) -> None:
    """Set a mount and all below it read-only and nosuid (mount_setattr(2))."""
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID, 0, 0, 0)
    size = ctypes.sizeof(attributes)
    syscall("mount_setattr", _SYS_MOUNT_SETATTR, AT_FDCWD, _bytes(path), AT_RECURSIVE, ctypes.byref(attributes), size)


def drop_capabilities() -> None:
    """capset(2) to nothing; with no_new_privs they never come back."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    _check("capset", _libc.capset(ctypes.byref(header), ctypes.byref(data)))


def default_signals(kept: frozenset[int]) -> None:
    """Unblock every signal and give it its default action, but those in `kept`.

    Both are inherited across exec, and libc's own calls leave 32 and 33 out, which it uses itself.
    """
    procmask, action = _RT_SIGNALS[os.uname().machine]
    none = ctypes.c_uint64(0)
    syscall("rt_sigprocmask", procmask, _SIG_SETMASK, ctypes.byref(none), None, 8)
    default = (ctypes.c_uint64 * 4)()  # handler, flags, restorer, mask
    for number in range(1, _NSIG):
        if number not in kept:
            syscall("rt_sigaction", action, number, ctypes.byref(default), None, 8)


_RT_SIGNALS = {"x86_64": (14, 13), "aarch64": (135, 134)}
_SIG_SETMASK = 2
_NSIG = 65


_own = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter's lock
_raw_fork = _own.fork
_wait4 = _own.wait4
_status = ctypes.c_int()
_usage = (ctypes.c_long * 18)()  # struct rusage: two timevals, then maxrss and 13 others
_wait_arguments = (ctypes.c_int(-1), ctypes.byref(_status), ctypes.c_int(0), ctypes.byref(_usage))


def fork() -> int:
    """fork(2) of a process that has one thread and nothing to prepare.

    os.fork runs the interpreter's hooks in the child: new locks, the threads' bookkeeping, random's seed. With one
    thread only the seed matters (the caller's part here), and together they copy 70 pages. Only where it is tried.
    """
    if sys.version_info[:2] != (3, 11):
        return os.fork()
    pid: int = _raw_fork()
    if pid < 0:
        raise OSError(errno.EAGAIN, "fork")
    return pid


def wait_any() -> tuple[int, int, float, int]:
    """wait4(2) for any child: pid (-1: there is none), status, CPU seconds, peak KB.

    os.wait4 imports a module each time. For a process that has one thread and no signal handlers.
    """
    pid: int = _wait4(*_wait_arguments)
    return pid, _status.value, _usage[0] + _usage[2] + (_usage[1] + _usage[3]) / 1e6, _usage[4]
