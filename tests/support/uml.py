"""User-mode Linux: a kernel of our own as a process, on this machine's files, with control groups of version 2.

`make test-slow` fetches it where it can (requirements/uml.sh). It has one core, and this machine's files read-only.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import join

import pytest

ROOT = Path(__file__).resolve().parents[2]
_INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t hostfs none /srv -o {folder}
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs tmp /tmp -o mode=1777
mkdir -p /dev/shm
mount -t tmpfs tmp /dev/shm -o mode=1777
cd {root}
{command} >/srv/output 2>&1
echo o >/proc/sysrq-trigger
sleep 60
"""


def _found() -> Path | None:
    fetched = Path(sys.prefix) / "uml" / "linux.uml"
    own = shutil.which("linux.uml")
    return fetched if fetched.exists() else Path(own) if own else None


needs_uml = pytest.mark.skipif(_found() is None, reason="no user-mode Linux: `make test-slow` fetches it on Debian")


def run_inside(folder: Path, command: Sequence[str], timeout_s: float) -> str:
    """Run `command` as root in a kernel of its own; what it and the kernel printed. `folder` is /srv in there."""
    kernel = _found()
    assert kernel is not None
    init = folder / "init"
    init.write_text(_INIT.format(folder=folder, root=ROOT, command=join(command)))
    init.chmod(0o755)
    options = ["mem=1G", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}", "quiet"]
    done = subprocess.run(
        [kernel, *options, f"uml_dir={folder}/", "con=null", "con0=null,fd:1"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
    )
    output = folder / "output"
    return done.stdout + done.stderr + (output.read_text() if output.exists() else "")
