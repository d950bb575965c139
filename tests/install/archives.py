"""The wheel and the sdist of the tree, and which of its files they have to carry."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
_SETUPTOOLS = PROJECT["tool"]["setuptools"]
PACKAGES = [pattern.rstrip("*") for pattern in _SETUPTOOLS["packages"]["find"]["include"]]
MODULES = [f"{name}.py" for name in _SETUPTOOLS["py-modules"]]

_BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""


def build(kind: str, source: Path, out: Path) -> Path:
    """Builds the `wheel` or `sdist` of a source folder into `out` with the installed setuptools; its path."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _BUILD, f"build_{kind}", str(out)],
        cwd=source, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return out / done.stdout.split()[-1]


def tracked(*folders: str) -> set[str]:
    """The files of these folders that git knows."""
    listed = subprocess.run(["git", "ls-files", "--", *folders], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.split())


def copy_of_the_tree(target: Path) -> Path:
    """The tracked files and those not yet added, so that builds leave nothing behind in the tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PACKAGES, *MODULES,
         "pyproject.toml", "README.md", "LICENSE", "requirements", "stubs"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        path = target / name
        if (ROOT / name).is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((ROOT / name).read_bytes())
    return target
