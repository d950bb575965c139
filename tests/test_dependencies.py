"""What is installed is what is pinned: a check of the supply chain that needs no network."""

from __future__ import annotations

import os
import re
import site
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"atropos-livecode"}
OF_THE_ENVIRONMENT = {"pip", "setuptools", "wheel"}
OF_A_CUDA_BUILD = re.compile(r"nvidia-.*|cuda-.*|triton")
"""Where the index serves a CUDA build of torch, the set-up installs what that build needs."""


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def plain_version(version: str) -> str:
    """Without the part that names a build, such as +cpu."""
    return version.partition("+")[0]


def pins(path: Path) -> dict[str, str]:
    """{package: version} of a pinned list; a line without a version is an error."""
    found = {}
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, version = line.split(";")[0].strip().partition("==")
            assert version, line
            found[plain(name.partition("[")[0])] = plain_version(version)
    return found


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_every_line_of_a_list_is_one_exact_version_and_no_address(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert len(pins(ROOT / "requirements" / f"{name}.txt")) > 100
    assert not re.search(r"://|--index|--find-links|@ ", text)


def test_what_is_installed_is_what_is_pinned() -> None:
    installed = {plain(one.metadata["Name"]): one.version for one in distributions(path=site.getsitepackages())}
    gpu = "vllm" in installed
    pinned = pins(ROOT / "requirements" / ("gpu.txt" if gpu else "cpu.txt"))
    assert pinned.keys() <= installed.keys()
    other = {name: installed[name] for name, version in pinned.items() if plain_version(installed[name]) != version}
    assert other == {}
    if "CI" in os.environ:  # elsewhere a developer may have installed tools of their own
        more = installed.keys() - pinned.keys() - OURS - OF_THE_ENVIRONMENT
        assert {name for name in more if not OF_A_CUDA_BUILD.fullmatch(name)} == set()


def test_no_package_runs_at_pythons_start() -> None:
    """A .pth file's import lines run before every program; known ones are tools of the environment and our own link."""
    known = re.compile(r"distutils-precedence|__editable__.*|_virtualenv|coverage|a1_coverage")
    folders = [Path(folder) for folder in site.getsitepackages()]
    running = [
        path.name
        for folder in folders
        for path in folder.glob("*.pth")
        if not known.fullmatch(path.stem) and re.search(r"^import[ \t]", path.read_text(), re.MULTILINE)
    ]
    assert running == []
