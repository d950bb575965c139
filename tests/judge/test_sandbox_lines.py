"""The tracer that measures the sandboxed side marks what coverage itself would, and programs run without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sandbox_lines import SandboxLines
from verifier_app.judge import Judge, host

SAMPLE = '''
import contextlib

class Made:
    """Its docstring."""

    def __init__(self, size):
        self.size = size
        if size > 2:
            self.size = 2

    @property
    def twice(self):
        return 2 * self.size


def numbers(most):
    for number in range(most):
        if number % 2:
            yield number
        else:
            yield -number


@contextlib.contextmanager
def opened():
    try:
        yield 1
    finally:
        pass


def caught(value):
    try:
        return 1 // value
    except ZeroDivisionError:
        return None
    finally:
        value += 1


def main():
    total = sum(numbers(4)) + sum(x for x in [1, 2])
    with opened() as one:
        total += one
    while total > 0:
        total -= 3
    for value in (0, 1):
        caught(value)
    return Made(3).twice, [y for y in numbers(2)], (lambda: total)()


if __name__ == "__main__" or True:
    main()
'''
BY_COVERAGE = """
import json, sys
from coverage import Coverage
cov = Coverage(branch=True, data_file=None, include=[sys.argv[1] + "/*"], config_file=False)
sys.path.insert(0, sys.argv[1])
cov.start()
import sample
cov.stop()
print(json.dumps(cov.get_data().arcs(sys.argv[1] + "/sample.py")))
"""


def test_the_steps_are_those_that_coverage_sees(tmp_path: Path) -> None:
    folder = tmp_path / "verifier_app" / "judge"
    folder.mkdir(parents=True)
    (folder / "sample.py").write_text(SAMPLE)
    lines = SandboxLines(tmp_path, tmp_path)
    boot = lines.boot(f"sys.path.insert(0, {str(folder)!r})\nimport sample")
    subprocess.run([sys.executable, "-I", "-S", "-c", boot], check=True, env={}, timeout=60)
    [(name, steps)] = lines.arcs().items()
    assert name == str(folder / "sample.py")
    command = [sys.executable, "-I", "-c", BY_COVERAGE, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={}, timeout=60)
    assert sorted(steps) == sorted(tuple(step) for step in json.loads(done.stdout))
    assert len(steps) > 40


def test_a_program_runs_untraced_and_the_sandbox_around_it_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(host.__file__).parents[2]
    lines = SandboxLines(root, tmp_path)
    plain = host.BOOT.rpartition("\n")[2]  # in `make coverage` it has a tracer before it already
    monkeypatch.setattr(host, "BOOT", lines.boot(plain))
    with Judge() as judge:
        tests = [{"input": "1", "output": "None"}]
        verdict = judge.verify({"code": "import sys\nprint(sys.gettrace())", "tests": tests})
    assert verdict["status"] == "accepted"
    reached = {Path(name).name for name in lines.arcs()}
    assert {"template.py", "zygote.py", "sandbox.py", "runner.py", "ending.py", "seccomp.py"} <= reached
