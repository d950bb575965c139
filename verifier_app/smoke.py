"""`atropos verifier smoke`: does the judge hold on Modal, by which layers, and at what cost?"""

from __future__ import annotations

import sys
import time
from typing import Any, NamedTuple

# Modal's published prices in USD (2026-06): a physical core-second, a GiB-second
CORE_SECOND, GIB_SECOND = 0.0000131, 0.00000222


class Case(NamedTuple):
    """A program, and the statuses that a sound judge may give it."""

    name: str
    code: str
    statuses: tuple[str, ...]


MANY = 100  # tests of the program that shows what a test costs
TESTS = [{"input": "1 2\n", "output": "3\n"}, {"input": "5 6\n", "output": "11\n"}]
LIMITS = {"tests": TESTS, "time_limit_s": 2.0, "memory_limit_mb": 512}
# A program that gets what it must not have prints something else than the sum, or nothing.
CASES = [
    Case("right", "print(sum(map(int, input().split())))", ("accepted",)),
    Case("wrong", "print(3)", ("wrong_answer",)),
    Case("syntax", "def", ("compile_error",)),
    Case("exception", "1 / 0", ("runtime_error",)),
    Case("time", "while True: pass", ("time_limit_exceeded",)),
    Case("memory", "x = bytearray(10 ** 9)", ("memory_limit_exceeded",)),
    Case("segfault", "import ctypes; ctypes.string_at(0)", ("runtime_error",)),
    Case("leaves_early", "import os; os._exit(0)", ("wrong_answer",)),
    Case(
        "fork_bomb",
        "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
        ("runtime_error", "time_limit_exceeded"),
    ),
    Case("huge_output", "while True: print('x' * 10 ** 6)", ("output_limit_exceeded",)),
    Case(
        "network",
        "import socket\ntry: socket.create_connection(('1.1.1.1', 53), 1)\n"
        "except OSError: print(sum(map(int, input().split())))",
        ("accepted",),
    ),
    Case(
        "reads_hidden_tests",
        "import os\nfound = [f for d in ('/root/livecode', '/srv') for _, _, names in os.walk(d) for f in names]\n"
        "if not found: print(sum(map(int, input().split())))",
        ("accepted",),
    ),
    Case(
        "kills_the_judge",
        "import os, signal\nfor pid in [os.getppid(), *range(1, 64)]:\n  try:\n"
        "    if pid != os.getpid(): os.kill(pid, signal.SIGKILL)\n  except OSError: pass\n"
        "print(sum(map(int, input().split())))",
        ("accepted", "runtime_error"),
    ),
    Case(
        "writes_for_the_next",
        "import os\nif os.path.exists('/tmp/left'): print('again')\nelse:\n  open('/tmp/left', 'w').write('x')\n"
        "  print(sum(map(int, input().split())))",
        ("accepted",),
    ),
]


def smoke() -> int:
    """Deploys for the length of the test, prints a line for each program, and removes the app: 0 when all hold."""
    try:
        import modal
    except ModuleNotFoundError:
        print("error: the package modal is missing. Run: pip install modal", file=sys.stderr)
        return 2
    from verifier_app.modal_app import app, settings, verify

    per_second = settings.cpu * CORE_SECOND + settings.memory_mb / 1024 * GIB_SECOND
    bad, seconds, levels = 0, 0.0, set()
    try:
        with modal.enable_output(), app.run():
            for case in CASES:
                started = time.monotonic()
                answer = verify.remote({"code": case.code, **LIMITS})
                spent = time.monotonic() - started
                seconds += spent
                status, isolation = _read(answer)
                levels.add(isolation)
                held = status in case.statuses
                bad += not held
                print(f"{'ok ' if held else 'BAD'} {case.name:20} {status:24} {spent:6.2f} s", flush=True)
            judged = {count: _timed(verify, count) for count in (1, MANY)}
    except modal.exception.AuthError as error:
        print(f"error: no valid account ({error}). Run: modal token new", file=sys.stderr)
        return 2
    seconds += sum(judged.values())
    each = max(0.0, judged[MANY] - judged[1]) / (MANY - 1)
    print(
        f"a program with {MANY} tests: {judged[MANY]:.2f} s, with 1: {judged[1]:.2f} s, so {1000 * each:.0f} ms a test"
    )
    for level in sorted(levels - {""}):
        print(f"isolation: {level}")
    print(
        f"{len(CASES) + 2} calls, {seconds:.1f} s from request to answer: at most {seconds * per_second:.5f} USD at "
        f"{CORE_SECOND} a core-second and {GIB_SECOND} a GiB-second"
    )
    print("every program got what it deserves" if not bad else f"{bad} programs did not: do not train with this")
    return 1 if bad else 0


def _timed(verify: Any, count: int) -> float:
    """Seconds of a call, its container's start included, that judges a right program on this many tests."""
    tests = [{"input": f"{number} 1\n", "output": f"{number + 1}\n"} for number in range(count)]
    started = time.monotonic()
    status, _ = _read(verify.remote({"code": CASES[0].code, **LIMITS, "tests": tests}))
    if status != "accepted":
        print(f"BAD {count} tests: {status}")
    return time.monotonic() - started


def _read(answer: dict[str, Any]) -> tuple[str, str]:
    verdict = answer.get("verdict")
    if verdict is None:
        return f"no verdict: {answer['error']['kind']}", ""
    isolation = verdict["isolation"]
    return verdict[
        "status"
    ], f"{isolation.get('level')} ({', '.join(isolation.get('layers', []))})" if isolation else ""
