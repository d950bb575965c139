"""`atropos run-api` as a process: where it listens, what it says when it cannot, and that it ends when asked to."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from environments.api_server.launch import AddressError, bind
from environments.launch.processes import free_port

COMMAND = [sys.executable, "-m", "environments.cli", "run-api"]


@contextlib.contextmanager
def running(*options: str, host: str = "127.0.0.1") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server and its port; it is ended with the block."""
    port = free_port()
    command = [*COMMAND, "--host", host, "--port", str(port), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    try:
        while True:
            assert process.poll() is None
            with contextlib.suppress(httpx.TransportError):
                httpx.get(url + "/health", timeout=60)
                break
            time.sleep(0.05)
        yield process, port
    finally:
        process.kill()
        process.communicate()


def refused(*options: str) -> str:
    """What a start that fails says; without a traceback, on one line, with code 2."""
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("signals", [1, 2])
def test_a_stalled_upload_does_not_keep_it_from_ending(signals: int) -> None:
    with running() as (process, port), socket.create_connection(("127.0.0.1", port)) as stalled:
        stalled.sendall(b"POST /scored_data HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        httpx.get(f"http://127.0.0.1:{port}/health", timeout=60)  # the server has the other's first bytes by now
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
        _, said = process.communicate(timeout=240)  # before, it never ended
    assert process.returncode == -signal.SIGTERM
    assert ("requests do not end" in said) == (signals == 1)  # a second one does not wait
    assert "Traceback" not in said


def test_it_listens_on_ipv6() -> None:
    try:
        bind("::1", 0).close()
    except AddressError:
        pytest.skip("no IPv6 on this machine")
    with running(host="::1") as (_, port):
        assert httpx.get(f"http://[::1]:{port}/status", timeout=60).json() == {"current_step": 0, "queue_size": 0}
    bind("[::1]", 0).close()


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "no.such.host.invalid", "", "a" * 300, "1.2.3.4.5"])
def test_an_address_that_it_cannot_listen_on_is_named(host: str) -> None:
    with pytest.raises(AddressError, match="--host"):
        bind(host, 0)


def test_a_start_that_fails_is_one_line(tmp_path: Path) -> None:
    assert "--host 192.0.2.1" in refused("--host", "192.0.2.1", "--port", str(free_port()))
    assert f"--journal {tmp_path}" in refused("--journal", str(tmp_path), "--port", str(free_port()))
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "journal"
    assert f"--journal {below}" in refused("--journal", str(below), "--port", str(free_port()))
