"""Landlock: which files a program may read and write, no TCP, and no signal to anything outside its sandbox."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from verifier_app.judge.layers import syscalls

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # one number on all architectures
_VERSION_FLAG = 1
_PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
READ = EXECUTE | READ_FILE | READ_DIR
_FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | 1 << 14 | 1 << 15  # those that a rule on a file may name
_FS_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_SCOPE_ABI = 6


class _PathRule(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("allowed", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


def version() -> int:
    """The kernel's Landlock ABI, 0 where there is none."""
    try:
        return syscalls.syscall("landlock_create_ruleset", _CREATE, None, 0, _VERSION_FLAG)
    except OSError:
        return 0


def restrict(readable: Iterable[str], writable: Iterable[str]) -> None:
    """Confine this process and its descendants: these paths and what lies below, everything else refused.

    Needs no_new_privs (set here). Paths that do not exist are left out. OSError where Landlock is missing.
    """
    abi = version()
    rights = _FS_RIGHTS[max(1, min(abi, 5))]
    network = 3 if abi >= 4 else 0  # bind and connect of TCP: no rule allows any
    scoped = 3 if abi >= _SCOPE_ABI else 0  # abstract sockets and signals stay inside
    attributes = (ctypes.c_uint64 * 3)(rights, network, scoped)
    size = 8 if abi < 4 else 16 if abi < _SCOPE_ABI else 24
    ruleset = syscalls.syscall("landlock_create_ruleset", _CREATE, ctypes.byref(attributes), size, 0)
    try:
        for path in readable:
            _allow(ruleset, path, READ & rights)
        for path in writable:
            _allow(ruleset, path, rights)
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        syscalls.syscall("landlock_restrict_self", _RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):
            rights &= _FILE_RIGHTS
        rule = _PathRule(rights, fd)
        syscalls.syscall("landlock_add_rule", _ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(fd)
