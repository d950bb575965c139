"""gVisor, in which Modal's containers run: commands in a sandbox of `runsc`, as root with a container's capabilities.

`make test` fetches runsc where it can (requirements/gvisor.sh). The sandbox sees this machine's files, and its writes
stay in it except below the folders that are shared; it has no network, as Modal's containers of this app.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
OLDEST = 20230801  # with PR_SET_CHILD_SUBREAPER
_DOCKER = (
    "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL"
)
_MORE = "SYS_ADMIN SYS_PTRACE SYS_RESOURCE NET_ADMIN SYS_NICE IPC_LOCK IPC_OWNER DAC_READ_SEARCH LEASE LINUX_IMMUTABLE"
CAPABILITIES = {"all": f"{_DOCKER} {_MORE}".split(), "docker": _DOCKER.split(), "none": []}


def _found() -> Path | None:
    """This environment's runsc, or the machine's own."""
    fetched = Path(sys.prefix) / "gvisor" / "runsc"
    own = shutil.which("runsc")
    return fetched if fetched.exists() else Path(own) if own else None


@cache
def why_not() -> str:
    """Why nothing can run in gVisor here; empty where it can."""
    runsc = _found()
    if runsc is None:
        return "no runsc: `make test` fetches it on Debian"
    text = subprocess.run([runsc, "--version"], capture_output=True, text=True, check=False).stdout
    date = re.search(r"20\d{6}", text)
    if date is None or int(date[0]) < OLDEST:
        return f"{runsc} is too old or unknown: {text.strip()}"
    tried = subprocess.run(
        [runsc, "--rootless", "--network=none", "do", "true"], capture_output=True, text=True, check=False, timeout=60
    )
    return f"runsc does not run here: {tried.stderr[-300:]}" if tried.returncode else ""


needs_gvisor = pytest.mark.skipif(bool(why_not()), reason=why_not() or "gVisor runs here")


def inside(
    folder: Path,
    capabilities: str,
    command: Sequence[str],
    variables: Mapping[str, str] | None = None,
    shared: Sequence[Path] = (),
    cwd: Path = ROOT,
) -> list[str]:
    """The command that runs `command` in a sandbox of its own, as root with these CAPABILITIES.

    Args:
        folder: an empty one for the sandbox's description and state.
        variables: the whole environment.
        shared: folders in which what is written is seen outside, and whose Unix sockets can be connected to.
    """
    runsc = _found()
    assert runsc is not None
    names = [f"CAP_{name}" for name in CAPABILITIES[capabilities]]
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/run", "type": "tmpfs", "source": "tmpfs"},
    ]
    mounts += [{"destination": str(path), "type": "bind", "source": str(path)} for path in shared]
    description = {
        "ociVersion": "1.0.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(command),
            "env": [f"{name}={value}" for name, value in (variables or {"PATH": "/usr/bin:/bin"}).items()],
            "cwd": str(cwd),
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), names),
        },
        "root": {"path": "/"},
        "hostname": "container",
        "mounts": mounts,
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(description))
    flags = ["--rootless", "--network=none", "--overlay2=root:memory", "--host-uds=open", f"--root={folder / 'state'}"]
    return [str(runsc), *flags, "run", f"--bundle={folder}", f"test-{abs(hash(folder))}"]


def judged(folder: Path, capabilities: str, requests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """name -> verdict in a container with these capabilities; beside them how often its open socket was reached."""
    shared = folder / "shared"
    shared.mkdir()
    (shared / "requests").write_text(json.dumps(requests))
    command = [sys.executable, "-m", "tests.gvisor.judged_inside", str(shared / "requests"), str(shared / "answers")]
    done = subprocess.run(
        inside(folder / "bundle", capabilities, command, shared=[shared]), capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads((shared / "answers").read_text()))
