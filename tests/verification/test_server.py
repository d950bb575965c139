"""The HTTP service: guarded, bounded, with the judge's own verdicts, and gone without a trace."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import httpx
import psutil
import pytest

from environments.livecode.verification.local import PERMANENT
from tests.support.compiler import needs_compiler
from tests.verification.conftest import Service, Start
from verifier_app.judge import Judge
from verifier_app.judge.store import encode_tests
from verifier_app.server import STATUS

TESTS = [{"input": "1 2\n", "output": "3\n"}, {"input": "5 6\n", "output": "11\n"}]
RIGHT = {"code": "print(sum(map(int, input().split())))", "tests": TESTS}
BUSY = {"code": "while True: pass", "tests": TESTS, "time_limit_s": 60}
PROGRAMS = {
    "pass": RIGHT["code"],
    "wrong": "print(3)",
    "time": "while True: pass",
    "memory": "x = bytearray(10 ** 9)",
    "segfault": "import ctypes; ctypes.string_at(0)",
    "os_exit": "import os; os._exit(0)",
    "fork_bomb": "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
    "huge_output": "while True: print('x' * 10 ** 6)",
    "syntax": "def",
}


def test_every_verdict_is_the_judges_own(service: Service) -> None:
    limits = {"tests": TESTS, "time_limit_s": 1.0, "memory_limit_mb": 300}
    with service.client() as client, Judge() as judge:
        for name, code in PROGRAMS.items():
            here = judge.verify({"code": code, **limits})
            answer = client.post("/verify", json={"code": code, **limits})
            there = answer.raise_for_status().json()["verdict"]
            assert (there["status"], there["failed_test"]) == (here["status"], here["failed_test"]), name
            assert there["isolation"] == here["isolation"]


@needs_compiler
def test_a_request_names_its_language(service: Service) -> None:
    code = '#include <cstdio>\nint main() { int a, b; scanf("%d %d", &a, &b); printf("%d", a + b); }'
    with service.client() as client:
        answer = client.post("/verify", json={"code": code, "language": "cpp", "tests": TESTS})
        unknown = client.post("/verify", json={"code": code, "language": "c--", "tests": TESTS})
    assert answer.raise_for_status().json()["verdict"]["status"] == "accepted"
    assert (unknown.status_code, unknown.json()["error"]["kind"]) == (400, "bad_request")


def test_a_missing_compiler_is_a_fault_that_no_caller_tries_again() -> None:
    assert STATUS["language_missing"] == 500
    assert "language_missing" in PERMANENT


@pytest.mark.parametrize("token", [None, "", "wrong", "a token that is long enougH", "ä" * 20])
@pytest.mark.parametrize("route", ["POST /verify", "PUT /tests/0", "GET /metrics"])
def test_nothing_but_health_answers_without_the_token(service: Service, token: str | None, route: str) -> None:
    method, path = route.split()
    headers = {} if token is None else {b"Authorization": f"Bearer {token}".strip().encode()}
    answer = httpx.request(method, service.url + path, headers=headers, content=b"{}" if method != "GET" else None)
    assert answer.status_code == 401
    assert answer.json()["error"]["kind"] == "unauthorized"
    assert httpx.get(service.url + "/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "is not JSON"),
        (b"[1]", 400, "request: is list"),
        (b"[" * 100_000, 400, "is not JSON"),
        (json.dumps({**RIGHT, "x": 1}).encode(), 400, "x: is an unknown field"),
        (json.dumps({**RIGHT, "tests": []}).encode(), 400, "tests: is empty"),
        (json.dumps({"code": "", "tests_ref": {"sha256": "0" * 64, "count": 1}}).encode(), 404, "upload the set"),
        (b" " * (2 << 20) + b"{}", 413, "longer than 2 MiB"),
    ],
)
def test_a_bad_request_is_an_error_with_its_field_and_never_a_verdict(
    service: Service, body: bytes, status: int, message: str
) -> None:
    with service.client() as client:
        answer = client.post("/verify", content=body)
        unannounced = client.post("/verify", content=iter([body]))  # chunked: no content-length
    for one in (answer, unannounced):
        assert one.status_code == status
        assert message in one.json()["error"]["message"]
        assert "verdict" not in one.json()


def test_an_uploaded_set_is_named_by_its_hash(service: Service) -> None:
    data = encode_tests(TESTS)
    sha = hashlib.sha256(data).hexdigest()
    with service.client() as client:
        assert client.put(f"/tests/{'0' * 64}", content=data).status_code == 400
        spaced = json.dumps(TESTS).encode()
        assert client.put(f"/tests/{hashlib.sha256(spaced).hexdigest()}", content=spaced).status_code == 400
        for _ in range(2):
            assert client.put(f"/tests/{sha}", content=data).json() == {"tests_ref": {"sha256": sha, "count": 2}}
        request = {"code": RIGHT["code"], "tests_ref": {"sha256": sha, "count": 2}}
        assert client.post("/verify", json=request).json()["verdict"]["passed"] == 2


def test_a_damaged_set_is_our_fault_and_no_verdict(start: Start) -> None:
    service, data = start(), encode_tests(TESTS)
    sha = hashlib.sha256(data).hexdigest()
    with service.client() as client:
        client.put(f"/tests/{sha}", content=data).raise_for_status()
        (service.tests_dir / sha[:2] / sha).write_bytes(b"[]")  # before any judge has read it
        request = {"code": RIGHT["code"], "tests_ref": {"sha256": sha, "count": 2}}
        answer = client.post("/verify", json=request)
    assert answer.status_code == 500
    assert answer.json()["error"]["kind"] == "test_set_corrupt"
    assert sha in answer.json()["error"]["message"]


def test_the_metrics_count_verdicts_and_faults(start: Start) -> None:
    with start().client() as client:
        client.post("/verify", json=RIGHT)
        client.post("/verify", json={**RIGHT, "code": "print(1)"})
        client.post("/verify", content=b"?")
        text = client.get("/metrics").text
    assert 'verifier_verdicts_total{status="accepted"} 1.0' in text
    assert 'verifier_verdicts_total{status="wrong_answer"} 1.0' in text
    assert 'verifier_faults_total{kind="bad_request"} 1.0' in text
    assert "verifier_rollouts 0.0" in text
    assert "verifier_room 17.0" in text


def in_background(service: Service, request: dict[str, Any]) -> tuple[threading.Thread, list[httpx.Response]]:
    """A call under way: the service has it when this returns."""
    answers: list[httpx.Response] = []

    def call() -> None:
        with service.client() as client:
            answers.append(client.post("/verify", json=request))

    thread = threading.Thread(target=call)
    thread.start()
    with service.client() as client:
        while "verifier_rollouts 1.0" not in client.get("/metrics").text:
            time.sleep(0.01)
    return thread, answers


def test_more_than_fits_is_refused_at_once_with_429(start: Start) -> None:
    service = start(queue="0")
    thread, answers = in_background(service, {**BUSY, "time_limit_s": 3})
    with service.client() as client:
        refused = client.post("/verify", json=RIGHT)
    thread.join()
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    assert refused.json()["error"]["kind"] == "busy"
    assert answers[0].json()["verdict"]["status"] == "time_limit_exceeded"


def test_a_caller_that_hangs_up_frees_its_judge(start: Start) -> None:
    service = start(queue="0")
    with service.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post("/verify", json=BUSY, timeout=1.0)
    with service.client() as client:
        for _ in range(200):
            answer = client.post("/verify", json=RIGHT)
            if answer.status_code == 200:
                break
            time.sleep(0.05)
    assert answer.json()["verdict"]["status"] == "accepted"


def test_an_idle_judge_that_is_killed_is_replaced(start: Start) -> None:
    service = start()
    with service.client() as client:
        for _ in range(2):
            assert client.post("/verify", json=RIGHT).json()["verdict"]["status"] == "accepted"
            (judge,) = psutil.Process(service.process.pid).children()
            judge.kill()
            psutil.wait_procs([judge], timeout=10)
            time.sleep(0.2)  # its pipe is closed by now
        assert client.post("/verify", json=RIGHT).json()["verdict"]["status"] == "accepted"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_finishes_what_runs_refuses_what_comes_and_leaves_nothing(start: Start, number: int) -> None:
    service = start()
    with service.client() as client:
        client.post("/verify", json=RIGHT)  # so that its judge runs
    slow = {"code": "import time; time.sleep(1.5); print(3)", "tests": TESTS[:1]}
    thread, answers = in_background(service, slow)
    family = psutil.Process(service.process.pid).children(recursive=True)
    assert family
    os.kill(service.process.pid, number)
    thread.join()
    assert answers[0].json()["verdict"]["status"] == "accepted"
    service.process.wait(20)
    assert psutil.wait_procs(family, timeout=10)[1] == []
    with pytest.raises(httpx.TransportError):
        httpx.get(service.url + "/health")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"HOST": "0.0.0.0"}, "host 0.0.0.0: others can reach it, and there is no token: set VERIFIER_TOKEN"),
        ({"TOKEN": "short"}, "token: shorter than 16 characters"),
        ({"PORT": "x"}, "VERIFIER_PORT = 'x': "),
        ({"WORKERS": "0"}, "VERIFIER_WORKERS = '0': "),
        ({"REQUIRE_ISOLATION": "much"}, "VERIFIER_REQUIRE_ISOLATION = 'much': "),
    ],
)  # fmt: skip
def test_wrong_settings_are_named_before_anything_starts(settings: dict[str, str], message: str) -> None:
    variables = {f"VERIFIER_{name}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "verifier_app", "serve"]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "short'" not in done.stderr  # never the token itself
    assert "Traceback" not in done.stderr
