"""The packages that a program may import are the project's list, whatever is installed beside the judge."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from verifier_app.judge import Judge
from verifier_app.judge.languages.python.packages import PACKAGES

HOME = Path(__file__).resolve().parents[2]
HOSTS = {"every_layer": (), "no_mount": ("mount",), "no_namespaces": ("unshare",)}
LISTED = """
import numpy, numpy.linalg, sortedcontainers
from numpy import random
print(sum(sortedcontainers.SortedList([2, 1])), numpy.linalg.norm(numpy.array([3, 4])))
"""
SEEN = """
import importlib
seen = []
for name in {names!r}:
    try:
        importlib.import_module(name)
        seen.append(name)
    except ModuleNotFoundError:
        pass
print(seen)
"""


@pytest.fixture(scope="module", params=HOSTS)
def judge(request: pytest.FixtureRequest) -> Iterator[Judge]:
    with Judge(deny=HOSTS[request.param]) as judge:
        yield judge


def others() -> list[str]:
    """Top-level modules of everything else that is installed here."""
    found = {name for name, owners in metadata.packages_distributions().items() if not {*owners} & {*PACKAGES}}
    ours = {"verifier_app", "environments", "trainer", "configs"}
    return sorted(name for name in found - ours if name.isidentifier())


def test_listed_packages_can_be_imported(judge: Judge) -> None:
    verdict = judge.verify({"code": LISTED, "tests": [{"input": "", "output": "3 5.0"}]})
    assert verdict["status"] == "accepted", verdict["message"]


def test_no_other_installed_package_can(judge: Judge) -> None:
    names = others()
    assert {"pandas", "torch", "sympy", "pytest"} <= {*names}
    verdict = judge.verify({"code": SEEN.format(names=names), "tests": [{"input": "", "output": "[]"}]})
    assert verdict["status"] == "accepted", verdict["message"]


def test_in_a_private_root_no_file_of_another_package_is_there_either() -> None:
    code = """
import os, subprocess, sys
folders = [path for path in sys.path if path.endswith("site-packages")]
print(sorted(name for folder in folders for name in os.listdir(folder) if not name.endswith("-info")))
print(subprocess.run([sys.executable, "-c", "import numpy, sortedcontainers"]).returncode)
done = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, text=True)
print(done.stderr.splitlines()[-1])
"""
    with Judge() as judge:
        verdict = judge.verify({"code": code, "tests": [{"input": "", "output": "?"}], "stop_at_first_failure": False})
        if "private_root" not in verdict["isolation"]["layers"]:
            pytest.skip("this host has no private root")
        expected = "['numpy', 'numpy.libs', 'sortedcontainers']\n0\nModuleNotFoundError: No module named 'torch'"
        verdict = judge.verify({"code": code, "tests": [{"input": "", "output": expected}]})
    assert verdict["status"] == "accepted", verdict["message"]


def test_every_listed_package_is_required_and_pinned() -> None:
    project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
    required = {re.split(r"[<>=\[ ]", line)[0] for line in project["dependencies"]}
    for name in PACKAGES:
        assert name in required
        for file in ("cpu.txt", "gpu.txt"):
            pins = (HOME / "requirements" / file).read_text().splitlines()
            assert f"{name}=={metadata.version(name)}" in pins


def test_the_readme_names_them() -> None:
    text = (HOME / "verifier_app" / "judge" / "README.md").read_text()
    assert f"packages.py lists: {', '.join(PACKAGES)}" in text
