"""What a comparison costs is bounded by the expected output, not by the 64 MB that a program may print."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[2]
SIZE = 60 << 20
MEMORY_MB = 200  # the output itself and one copy of it, above an interpreter
CPU_S = 3  # a few passes over 60 MB take a tenth of it
MEASURE = """
import sys
from verifier_app.judge import value_codec
from verifier_app.judge.compare import output_difference, value_difference
SIZE = {size}
got = {got}
expected = {expected}
if {call}:
    assert value_difference(value_codec.decode(got, expected), expected) is not None
else:
    assert output_difference(got, expected) is not None
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""
OUTPUTS = {
    "numbers on one line": ("b'1 ' * (SIZE // 2)", "'x'"),
    "numbers where three are due": ("b'11 ' * (SIZE // 3)", "'11 11 11'"),
    "short lines": ("b'1\\n' * (SIZE // 2)", "'1\\n1'"),
    "empty lines": ("b'\\n' * SIZE", "'1'"),
    "spaces of two bytes": ("'\\xa0'.encode() * (SIZE // 2)", "'1'"),
    "one word": ("b'a' * SIZE", "'1 2'"),
    "one word of four-byte characters": ("'\\U0001f600'.encode() * (SIZE // 4)", "'1 2'"),
    "spaces inside a line": ("b'1' + b' ' * SIZE + b'3'", "'1 2'"),
}
VALUES = {
    "empty lists": ("b'[' + b','.join([b'[]'] * (2 << 20)) + b']'", "[1, 2]"),
    "nested lists": ("b'[' * (8 << 20)", "[[1], 2]"),
    "ints": ("b'[' + b'1,' * (20 << 20) + b'1]'", "[1, 2]"),
    "keys that collide": (
        """b'{"d": [' + b','.join(b'[%d, 0]' % (k * (2**61 - 1)) for k in range(100_000)) + b']}'""",
        "{'a': 1}",
    ),
    "keys of the right number that collide": (
        """b'{"d": [' + b','.join(b'[%d, 0]' % (k * (2**61 - 1)) for k in range(50_000)) + b']}'""",
        "{str(k): 0 for k in range(50_000)}",
    ),
}
CASES = [(name, *case, False) for name, case in OUTPUTS.items()] + [
    (name, *case, True) for name, case in VALUES.items()
]


def _bound_cpu() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))


CHECKED = """
from verifier_app.judge import verify
checker = {"code": "import os, sys; sys.exit(0 if os.path.getsize(sys.argv[2]) == 60 << 20 else 1)"}
for piece in (b"1", b"\\xff", "\\U0001f600".encode()):
    code = f"import sys; [sys.stdout.buffer.write({piece} * ((1 << 20) // {len(piece)})) for _ in range(60)]"
    verdict = verify({"code": code, "tests": [{"input": "", "output": "x"}], "checker": checker, "time_limit_s": 60})
    assert verdict["status"] == "accepted", verdict["message"]
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


def test_a_judge_stays_small_under_a_long_answer_that_a_checker_has_to_see() -> None:
    environment = {**os.environ, "PYTHONPATH": str(HOME)}
    done = subprocess.run([sys.executable, "-c", CHECKED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >> 10 < MEMORY_MB


WHOLE = """
from verifier_app.judge import verify
for code in ("sys.stdout.write('1 ' * (30 << 20))", "for _ in range(200_000): sys.__stdout__.buffer.raw.write(b'1')"):
    verdict = verify({"code": code, "tests": [{"input": "", "output": "x"}], "time_limit_s": 60})
    assert verdict["status"] == "wrong_answer", verdict["message"]
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


def test_a_whole_judge_stays_small_under_a_long_answer() -> None:
    environment = {**os.environ, "PYTHONPATH": str(HOME)}
    done = subprocess.run([sys.executable, "-c", WHOLE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >> 10 < MEMORY_MB


@pytest.mark.parametrize(("got", "expected", "call"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_long_answer_costs_little_to_refuse(got: str, expected: str, call: bool) -> None:
    code = MEASURE.format(size=SIZE, got=got, expected=expected, call=call)
    environment = {**os.environ, "PYTHONPATH": str(HOME)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, preexec_fn=_bound_cpu
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >> 10 < MEMORY_MB


def test_long_answers_that_match_are_accepted() -> None:
    from verifier_app.judge.compare import output_difference

    gap = " " * 200_000
    assert output_difference(f"1{gap}2{gap}3\n", "1 2 3") is None
    assert output_difference(f"{gap}\n{gap}a\n{gap}\n", "a") is None
    assert output_difference("1." + "0" * 300_000, "1") is None
    assert output_difference("\u00a0" * 200_000 + "1\u00a02.0", "1 2") is None
    assert output_difference("1" + gap + "a", "1 a") is not None
    assert output_difference(f"1{gap}2{gap}4", "1 2 3") is not None
