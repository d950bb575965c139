"""The private root: what a program sees of the files: system folders and the interpreter, read-only, and no more."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from verifier_app.judge.layers import syscalls

_TOP = ("usr", "bin", "sbin", "lib", "lib64", "lib32", "libx32")
_ETC = ("ld.so.cache", "localtime")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_ACCOUNTS = "root:x:0:0:root:/:/bin/sh\njudge:x:65534:65534:judge:/tmp:/bin/sh\n"
_MOUNT_POINTS = ("/mnt", "/media", "/srv", "/opt", "/run")


def interpreter_paths(packages: list[str]) -> list[str]:
    """The folders that the interpreter and its packages live in, resolved and as named, without nested ones."""
    named = [sys.base_prefix, sys.prefix, sys.exec_prefix, os.path.dirname(os.__file__), *packages]
    executable = os.path.dirname(sys.executable)
    named += [executable, os.path.dirname(executable)] if os.path.basename(executable) == "bin" else [executable]
    paths = sorted({path for name in named for path in (os.path.abspath(name), os.path.realpath(name))})
    return [
        path
        for path in paths
        if path not in ("/", "/usr/local", "/usr")
        and not path.startswith("/usr/")
        and os.path.isdir(path)
        and not any(path != other and path.startswith(other + "/") for other in paths if other != "/")
    ]


def build(interpreter: list[str], packages: Sequence[str], entries: Sequence[str]) -> None:
    """Move this process into a private mount namespace and root. OSError leaves the old root in place.

    Of the folders `packages` only what is named in `entries` is there.
    """
    point = next(
        (
            p
            for p in _MOUNT_POINTS
            if os.path.isdir(p) and not any(i == p or i.startswith(p + "/") for i in interpreter)
        ),
        None,
    )
    if point is None:
        raise OSError("no folder to mount a private root on")
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount("judge", point, "tmpfs", syscalls.MS_NOSUID, "size=4m,mode=0755")
    os.umask(0o022)
    for name in _TOP:
        source, target = f"/{name}", f"{point}/{name}"
        if os.path.islink(source):
            os.symlink(os.readlink(source), target)
        elif os.path.isdir(source):
            _bind(source, target)
    for path in interpreter:
        _bind(path, point + path)
    _show_only(point, packages, entries)
    os.makedirs(f"{point}/etc", exist_ok=True)
    for name in _ETC:
        with contextlib.suppress(OSError):
            _copy(f"/etc/{name}", f"{point}/etc/{name}")
    with open(f"{point}/etc/passwd", "w") as file:
        file.write(_ACCOUNTS)
    for folder in ("tmp", "dev/shm", "proc"):
        os.makedirs(f"{point}/{folder}", exist_ok=True)  # the interpreter may lie below /tmp
    for name in _DEVICES:
        with open(f"{point}/dev/{name}", "w"):
            pass
        syscalls.mount(f"/dev/{name}", f"{point}/dev/{name}", None, syscalls.MS_BIND)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(target, f"{point}/dev/{name}")
    # a fully visible proc must be there for an unprivileged namespace to mount its own over it
    _bind("/proc", f"{point}/proc")
    os.chdir(point)
    syscalls.pivot_root_here()
    syscalls.mount(None, "/", None, syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY | syscalls.MS_NOSUID)


def _show_only(point: str, packages: Sequence[str], entries: Sequence[str]) -> None:
    """Cover the package folders with ones that hold the entries alone, the base interpreter's with empty ones."""
    library = os.path.dirname(os.__file__)
    beside = [f"{library}/site-packages", f"{library}/dist-packages", "/usr/lib/python3/dist-packages"]
    shown = {path for folder in packages for path in (os.path.abspath(folder), os.path.realpath(folder))}
    for folder in sorted({*shown, *beside, *map(os.path.realpath, beside)}):
        target = point + folder
        if not os.path.isdir(target):
            continue
        syscalls.mount("packages", target, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "size=1m,mode=0755")
        for name in entries if folder in shown else ():
            source = f"{folder}/{name}"
            if os.path.isdir(source):
                _bind(source, f"{target}/{name}")
            elif os.path.isfile(source):
                _copy(source, f"{target}/{name}")
        syscalls.mount(
            None, target, None, syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY | syscalls.MS_NOSUID
        )


def _copy(source: str, target: str) -> None:
    with open(source, "rb") as original, open(target, "wb") as copy:
        copy.write(original.read())


def _bind(source: str, target: str) -> None:
    """A read-only bind mount, with what is mounted below."""
    os.makedirs(target, exist_ok=True)
    syscalls.mount(source, target, None, syscalls.MS_BIND | syscalls.MS_REC)
    try:
        syscalls.make_read_only(target)
    except OSError:  # before Linux 5.12; the program's uid may not write there anyway
        with contextlib.suppress(OSError):
            syscalls.mount(
                None, target, None, syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY | syscalls.MS_NOSUID
            )


def mount_scratch(size_mb: int, interpreter: Sequence[str] = ()) -> list[str]:
    """Fresh /tmp and /dev/shm in this mount namespace, at most `size_mb` each; an interpreter below stays in sight."""
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
    folders = ["/tmp", "/dev/shm"]
    covered = [path for path in interpreter if path.startswith(tuple(f"{folder}/" for folder in folders))]
    held = [os.open(path, os.O_PATH | os.O_DIRECTORY) for path in covered]
    options = f"size={size_mb}m,mode=1777"
    for folder in folders:
        try:
            syscalls.mount("scratch", folder, "tmpfs", flags, f"{options},nr_inodes=65536")
        except OSError:  # gVisor before 2026 knows no nr_inodes; a file's name and inode are then bounded by the size
            syscalls.mount("scratch", folder, "tmpfs", flags, options)
    for path, fd in zip(covered, held, strict=True):
        _bind(f"/proc/self/fd/{fd}", path)
        os.close(fd)
    return folders


def mount_proc(hide: bool) -> bool:
    """Mount this pid namespace's own /proc; hide: other users' processes. False where that is refused."""
    flags = (
        syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC | syscalls.MS_RDONLY
    )  # uid 0 writes sysctls uncapped
    for options in ("hidepid=2", None) if hide else (None,):
        with contextlib.suppress(OSError):
            syscalls.mount("proc", "/proc", "proc", flags, options)
            return True
    return False
