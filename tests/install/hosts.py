"""Virtual environments of their own for what is tested against the real packages: made once, kept in .venv-hosts.

A test that needs one is skipped, with the reason, where no package index answers.
"""

from __future__ import annotations

import os
import site
import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path

import filelock
import pytest

from tests.install.archives import ROOT

FOLDER = ROOT / ".venv-hosts"
_PIP = ("-m", "pip", "--disable-pip-version-check", "--retries", "1", "--timeout", "60")
_NO_INDEX = (
    "No matching distribution", "Could not find a version", "Failed to establish", "ConnectionError", "Read timed out",
    "Max retries", "Temporary failure in name resolution", "Network is unreachable", "ProxyError",
)  # fmt: skip


def environment(name: str, requirements: Sequence[str], *, upon_ours: bool = False, alone: bool = True) -> Path:
    """The Python of the environment `name` with these requirements, made where it is missing or has others.

    Args:
        upon_ours: it sees the packages of this environment too, torch above all.
        alone: with upon_ours, the requirements are installed without what they ask for.

    Skips the test where no index answers; a requirement that does not install is a failure.
    """
    FOLDER.mkdir(exist_ok=True)
    folder = FOLDER / name
    python, mark = folder / "bin" / "python", folder / "requirements"
    wanted = "\n".join([f"{upon_ours}", *requirements])
    with filelock.FileLock(FOLDER / f"{name}.lock"):
        if not mark.is_file() or mark.read_text() != wanted:
            venv.create(folder, with_pip=True, clear=True)
            if upon_ours:
                (own,) = folder.glob("lib/python3*/site-packages")
                ours = "".join(f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages())
                (own / "ours.pth").write_text(ours)
            if requirements:
                install(python, *(["--no-deps"] if upon_ours and alone else []), *requirements)
            mark.write_text(wanted)
    return python


def install(python: Path, *requirements: str) -> None:
    """Installs with the ordinary client; skips the test where no index answers."""
    done = subprocess.run(
        [python, *_PIP, "install", "--quiet", *requirements], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip()
        if any(words in said for words in _NO_INDEX):
            pytest.skip(f"no package index answers: {said.splitlines()[-1][:200]}")
        pytest.fail(f"pip install {' '.join(requirements)}: {said[-2000:]}")


def run(
    python: Path, *words: str, cwd: Path = ROOT, timeout_s: float = 600.0, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A program of that environment, with none of this one's variables that name packages."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")} | variables
    return subprocess.run(
        [python, *words], cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=timeout_s
    )
