"""A kernel that refuses to set a resource limit: the program is judged where another layer does the limit's work."""

from __future__ import annotations

import os
import resource

import pytest

from verifier_app.judge import Judge, JudgeError
from verifier_app.judge.verdict import Verdict

REQUEST = {"code": "print(int(input()) ** 2)", "tests": [{"input": "2", "output": "4"}]}
# what gVisor's prlimit64 sets (pkg/sentry/syscalls/linux/sys_rlimit.go); it refuses every other one
GVISOR = {"NOFILE", "AS", "CPU", "DATA", "FSIZE", "MEMLOCK", "STACK", "RSS", "CORE", "NPROC", "RTPRIO"}
KNOWN = {name for name in dir(resource) if name.startswith("RLIMIT_")} - {"RLIMIT_OFILE"}  # an alias of NOFILE
REFUSED_BY_GVISOR = tuple(name.lower() for name in KNOWN if name.removeprefix("RLIMIT_") not in GVISOR)
COVERED = ["RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE", "RLIMIT_NPROC"]

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="the host's full layers need root")


def judged(code: str, *deny: str, time_limit_s: float = 15.0) -> Verdict:
    with Judge(deny=deny) as judge:
        return judge.verify({**REQUEST, "code": code, "time_limit_s": time_limit_s})


def test_limits_that_gvisor_refuses_cost_no_verdict() -> None:
    verdict = judged(str(REQUEST["code"]), *REFUSED_BY_GVISOR)
    assert verdict["status"] == "accepted"
    assert verdict["isolation"]["missing"]["RLIMIT_MSGQUEUE"] == "seccomp refuses mq_open"
    assert verdict["isolation"]["level"] == judged(str(REQUEST["code"]))["isolation"]["level"]


@NEEDS_ROOT
@pytest.mark.parametrize("name", COVERED)
def test_the_verdict_says_what_stands_in_for_a_refused_limit(name: str) -> None:
    verdict = judged(str(REQUEST["code"]), name.lower())
    assert verdict["status"] == "accepted"
    assert verdict["isolation"]["missing"].keys() - judged(str(REQUEST["code"]))["isolation"].get("missing", {}) <= {
        name
    }


@pytest.mark.parametrize("name", ["RLIMIT_AS", "RLIMIT_NOFILE"])
def test_a_refused_limit_that_nothing_covers_is_no_verdict_and_is_named(name: str) -> None:
    with pytest.raises(JudgeError, match=rf"LimitRefused: {name} cannot be set here .*not allowed") as caught:
        judged(str(REQUEST["code"]), name.lower())
    assert caught.value.kind == "sandbox_failed"


def test_a_limit_whose_stand_in_is_missing_too_is_no_verdict() -> None:
    with pytest.raises(JudgeError, match="RLIMIT_MSGQUEUE"):
        judged(str(REQUEST["code"]), "rlimit_msgqueue", "seccomp")


def test_what_stands_in_for_refused_limits_holds() -> None:
    queue = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    queue += "print(4 if libc.mq_open(b'/q', os.O_CREAT | os.O_RDWR, 0o600, None) < 0 else 'opened')"
    assert judged(queue, "rlimit_msgqueue")["status"] == "accepted"
    lock = "import ctypes, mmap\nprint(4 if ctypes.CDLL(None).mlockall(1) else 'locked')"
    assert judged(lock, "rlimit_memlock")["status"] == "accepted"
    assert judged("while True: pass", "rlimit_cpu", time_limit_s=1.0)["status"] == "time_limit_exceeded"
    forks = "import os, time\nfor _ in range(200):\n  if os.fork() == 0:\n    time.sleep(60)\ntime.sleep(60)"
    assert judged(forks, "rlimit_nproc")["status"] == "runtime_error"
