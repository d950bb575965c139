"""The HTTP service against callers that are slow, endless, or send what is no request: an answer, never a 500."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.verification.conftest import TOKEN, Service, Start
from verifier_app.connections import HEADERS_S, MAX_HEADER_BYTES

TESTS = [{"input": "1 2\n", "output": "3\n"}]
RIGHT = {"code": "print(sum(map(int, input().split())))", "tests": TESTS}
LONG = "1" * 400


@contextlib.contextmanager
def connected(service: Service, sent: bytes) -> Iterator[socket.socket]:
    """A connection on which these bytes were sent."""
    address = httpx.URL(service.url)
    with socket.create_connection((address.host, address.port or 80), timeout=60) as connection:
        connection.sendall(sent)
        yield connection


def head(length: int, path: str = "/verify", method: str = "POST") -> bytes:
    lines = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {length}\r\n\r\n"
    return lines.encode()


def test_bodies_that_do_not_come_take_no_place_and_end_with_408(start: Start) -> None:
    service = start(queue="0", body_s="2")  # room for one rollout
    with contextlib.ExitStack() as opened:
        slow = [opened.enter_context(connected(service, head(1000) + b"{")) for _ in range(5)]
        slow += [opened.enter_context(connected(service, head(99, f"/tests/{'0' * 64}", "PUT") + b"["))]
        with service.client() as client:
            assert client.post("/verify", json=RIGHT).json()["verdict"]["status"] == "accepted"
        for one in slow:
            answer = one.recv(65536)
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"VERIFIER_BODY_S" in answer or b"VERIFIER_BODY_S" in one.recv(65536)


@pytest.mark.parametrize("what", ["one header", "many headers", "request line"])
def test_headers_are_bounded(service: Service, what: str) -> None:
    filler = b"x" * (4 << 20)
    begin = {
        "one header": b"GET /health HTTP/1.1\r\nA: " + filler,
        "many headers": b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * (len(filler) // 6),
        "request line": b"GET /" + filler,
    }[what]
    before = psutil.Process(service.process.pid).memory_info().rss
    received = b""
    with contextlib.suppress(ConnectionError), connected(service, b"") as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(begin)
        while part := connection.recv(65536):
            received += part
    assert received == b"" or received.startswith(b"HTTP/1.1 400")
    assert psutil.Process(service.process.pid).memory_info().rss - before < 3 << 20
    assert len(filler) > MAX_HEADER_BYTES
    assert httpx.get(service.url + "/health").status_code == 200


@pytest.mark.slow  # the service gives headers 20 s
def test_headers_that_do_not_come_end_the_connection(service: Service) -> None:
    with connected(service, b"GET /health HTTP/1.1\r\n") as first, connected(service, b"") as second:
        began = time.monotonic()
        assert first.recv(1) == second.recv(1) == b""
        assert time.monotonic() - began > HEADERS_S - 2
    with connected(service, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n") as kept:
        assert kept.recv(65536).startswith(b"HTTP/1.1 200")
        kept.sendall(b"GET /health HTTP/1.1\r\n")  # the second request of a connection that is kept
        assert kept.recv(65536) == b""


@pytest.mark.parametrize("number", [LONG, "-" + LONG, "NaN", "Infinity", "-Infinity", "1e999", "true", '"1"', "[]"])
@pytest.mark.parametrize("field", ["time_limit_s", "memory_limit_mb", "deadline_s", "decimal_tolerance", "count"])
def test_a_limit_that_is_no_number_or_out_of_range_is_a_400_that_names_it(
    service: Service, field: str, number: str
) -> None:
    if field == "count":
        body = f'{{"code": "", "tests_ref": {{"sha256": "{"0" * 64}", "count": {number}}}}}'
    else:
        body = json.dumps(RIGHT)[:-1] + f', "{field}": {number}}}'
    with service.client() as client:
        answer = client.post("/verify", content=body)
    assert answer.status_code == 400
    assert field in answer.json()["error"]["message"]
    assert len(answer.json()["error"]["message"]) < 300


@pytest.mark.parametrize("order", [f"[{LONG}]", "[NaN]", "[0.0]", "[[0]]", "{}", '"0"', "[true]", "[0, 0]"])
def test_an_order_that_is_none_is_a_400(service: Service, order: str) -> None:
    with service.client() as client:
        answer = client.post("/verify", content=json.dumps(RIGHT)[:-1] + f', "order": {order}}}')
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("order: ")


@pytest.mark.parametrize(
    "text", ["\\ud800", "\\udfff\\ud800", "\\u0000", "\\u202e"], ids=["high", "swapped", "nul", "turned"]
)
def test_odd_text_from_a_caller_comes_back_as_a_message(service: Service, text: str) -> None:
    with service.client() as client:
        for body in (
            json.dumps(RIGHT)[:-1] + f', "{text}": 1}}',
            json.dumps({**RIGHT, "fn_name": "@"}).replace("@", text),
            json.dumps({"code": "", "tests_ref": {"sha256": "@", "count": 1}}).replace("@", text),
        ):
            answer = client.post("/verify", content=body)
            assert answer.status_code == 400
            answer.json()["error"]["message"].encode()


def test_odd_text_from_a_program_is_an_ordinary_verdict(service: Service) -> None:
    code = 'import os\ndef solve(n):\n    os.write(3, b\'{"x":"\\\\ud800"}\')\n    os._exit(0)'
    request = {"code": code, "fn_name": "solve", "tests": [{"input": "1", "output": "3"}]}
    with service.client() as client:
        answer = client.post("/verify", json=request)
    assert answer.status_code == 200
    answer.json()["verdict"]["message"].encode()


NO_SETS: dict[str, bytes] = {
    "no JSON": b"print(1)",
    "no UTF-8": b"\xff\xfe[]",
    "too deep": b"[" * 100_000 + b"]" * 100_000,
    "a number of 5000 digits": b"[" + b"1" * 5000 + b"]",
    "an object": b"{}",
    "null": b"null",
    "empty": b"[]",
    "a test without output": b'[{"input":""}]',
    "an input of another type": b'[{"input":1,"output":""}]',
    "one key too many": b'[{"input":"","output":"","x":1}]',
    "a lone surrogate": b'[{"input":"\\ud800","output":""}]',
}


@pytest.mark.parametrize("name", NO_SETS)
def test_what_is_no_test_set_is_refused_where_it_is_sent(service: Service, name: str) -> None:
    data = NO_SETS[name]
    with service.client() as client:
        answer = client.put(f"/tests/{hashlib.sha256(data).hexdigest()}", content=data)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("tests")
    assert not list(service.tests_dir.glob(f"*/{hashlib.sha256(data).hexdigest()}"))


def stored(folder: Path, data: bytes) -> str:
    """Puts a file into a store past the service."""
    sha = hashlib.sha256(data).hexdigest()
    (folder / sha[:2]).mkdir(parents=True, exist_ok=True)
    (folder / sha[:2] / sha).write_bytes(data)
    return sha


@pytest.mark.parametrize("name", NO_SETS)
def test_a_stored_file_that_is_no_set_is_one_clear_error_and_no_judge_dies(service: Service, name: str) -> None:
    sha = stored(service.tests_dir, NO_SETS[name])
    with service.client() as client:
        client.post("/verify", json=RIGHT)
        judges = _judges(service)
        answer = client.post("/verify", json={"code": "", "tests_ref": {"sha256": sha, "count": 1}})
        assert (answer.status_code, answer.json()["error"]["kind"]) == (500, "test_set_corrupt")
        assert sha in answer.json()["error"]["message"]
        assert "no test set" in answer.json()["error"]["message"]
        assert _judges(service) >= judges
        assert client.post("/verify", json=RIGHT).json()["verdict"]["status"] == "accepted"


def _judges(service: Service) -> set[Any]:
    return {child.pid for child in psutil.Process(service.process.pid).children()}
