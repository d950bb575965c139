"""What each way of verification costs: this machine's judges, the HTTP service, Modal's client and containers.

    python benchmarks/verification.py [--calls 400] [--only local http modal gvisor] [--out FILE.json]

All on this machine: the service listens on loopback, and Modal is its own client and its own container entry point
around the control plane of the tests, so that its numbers are the client's and a container's start, not the cloud's.
Rates: `--calls` calls of a program with two tests, at most BOUND in flight. Added latency: medians over single calls.
Large set: eight calls at once that share a set of 46 MB, and the bytes that travelled. Per test: a program with 20
tests in one container against one container for each of its tests. `gvisor`: the containers run inside gVisor (`make
test` fetches runsc), as Modal's do; seconds of a call by its number of tests, from which the README's costs come.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx

from environments.launch.processes import free_port
from environments.livecode.config import LivecodeEnvConfig
from environments.livecode.verification.base import Verifier
from environments.livecode.verification.factory import build_verifier

BOUND = 4
LARGE_MB = 46
WAYS = ["local", "http", "modal", "gvisor"]
TOKEN = "benchmark-token-0123456789"
TESTS = [{"input": f"{number}\n", "output": f"{number + 1}\n"} for number in range(2)]
PROGRAM = "print(int(input()) + 1)\n"


def program(size: int) -> str:
    """A right program of this many bytes."""
    return PROGRAM + "# " + "x" * (size - len(PROGRAM) - 2)


async def rate(verifier: Verifier, calls: int, code: str) -> float:
    """Verdicts per second."""
    started = time.monotonic()
    verdicts = await asyncio.gather(*(verifier.verify({"code": code, "tests": TESTS}) for _ in range(calls)))
    assert all(verdict["status"] == "accepted" for verdict in verdicts)
    return calls / (time.monotonic() - started)


async def latency(verifier: Verifier, calls: int) -> float:
    """Median milliseconds of single calls."""
    times = []
    for _ in range(calls):
        started = time.monotonic()
        await verifier.verify({"code": PROGRAM, "tests": TESTS})
        times.append(time.monotonic() - started)
    return 1000 * statistics.median(times)


async def large(verifier: Verifier) -> tuple[float, float]:
    """Seconds of eight calls at once on a large set, first and second time."""
    piece = "7 " * (LARGE_MB * 100_000 // 2)
    tests = [{"input": f"{number}\n{piece}", "output": str(number + 1)} for number in range(10)]
    seconds = []
    for _ in range(2):
        started = time.monotonic()
        requests = [{"code": PROGRAM, "tests": tests, "time_limit_s": 60.0}] * 8
        await asyncio.gather(*(verifier.verify(request) for request in requests))
        seconds.append(time.monotonic() - started)
    return seconds[0], seconds[1]


async def per_test(verifier: Verifier) -> tuple[float, float]:
    """Seconds of a program's 20 tests in one call, and in one call each."""
    tests = [{"input": f"{number}\n", "output": f"{number + 1}\n"} for number in range(20)]
    started = time.monotonic()
    await verifier.verify({"code": PROGRAM, "tests": tests})
    together = time.monotonic() - started
    started = time.monotonic()
    await asyncio.gather(*(verifier.verify({"code": PROGRAM, "tests": [test]}) for test in tests))
    return together, time.monotonic() - started


@contextlib.contextmanager
def service(folder: Path) -> Iterator[str]:
    """The HTTP service with as many judges as the bound."""
    port = free_port()
    wanted = {"PORT": str(port), "TOKEN": TOKEN, "WORKERS": str(BOUND), "TESTS_DIR": str(folder)}
    variables = {f"VERIFIER_{name}": value for name, value in wanted.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "verifier_app", "serve"], env=os.environ | variables, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False)
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


@contextlib.asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[Verifier]:
    """A verifier of the environment."""
    config = LivecodeEnvConfig(verifier_concurrency=BOUND, verifier_workers=BOUND, **options)
    async with build_verifier(config) as verifier:
        yield verifier


async def measure(name: str, calls: int, **options: Any) -> dict[str, Any]:
    """All figures of one way."""
    async with opened(**options) as verifier:
        await rate(verifier, BOUND, PROGRAM)
        result: dict[str, Any] = {
            "verdicts_per_s_2_kb": round(await rate(verifier, calls, program(2_000)), 2),
            "verdicts_per_s_30_kb": round(await rate(verifier, calls, program(30_000)), 2),
            "single_call_ms": round(await latency(verifier, max(5, calls // 8)), 1),
        }
        print(name, result, file=sys.stderr)
        first, second = await large(verifier)
        result |= {"large_set_first_s": round(first, 2), "large_set_again_s": round(second, 2)}
    print(name, result, file=sys.stderr)
    return result


async def by_tests(verifier: Verifier, rounds: int) -> dict[str, float]:
    """Median seconds of one call, and of the judging in it, by the number of tests."""
    found = {}
    for count in (1, 10, 50, 100):
        tests = [{"input": f"{number}\n", "output": f"{number + 1}\n"} for number in range(count)]
        calls, tested = [], []
        for _ in range(rounds):
            started = time.monotonic()
            verdict = await verifier.verify({"code": PROGRAM, "tests": tests})
            calls.append(time.monotonic() - started)
            tested.append(sum(test["wall_s"] for test in verdict["tests"]))
        found[f"call_of_{count}_tests_s"] = round(statistics.median(calls), 2)
        found[f"judging_of_{count}_tests_s"] = round(statistics.median(tested), 2)
    print("by tests", found, file=sys.stderr)
    return found


def on_modal(folder: Path, calls: int, capabilities: str | None = None) -> dict[str, Any]:
    """The figures through Modal's client, the peak in flight, and the price of a container for each test.

    capabilities: of containers inside gVisor; None: they run on this machine's kernel.
    """
    from modal.client import _Client

    from tests.support.modal_plane import control_plane

    _Client._set_env_client(None)  # this process may have one of another plane
    with control_plane(folder) as plane:
        plane.capabilities = capabilities
        variables = {"MODAL_SERVER_URL": plane.url, "MODAL_TOKEN_ID": "ak", "MODAL_TOKEN_SECRET": "as"}
        os.environ.update(variables)
        command = [str(Path(sys.executable).with_name("modal")), "deploy", "-m", "verifier_app"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        before = plane.received_bytes
        result = asyncio.run(measure("modal", calls, verifier="modal"))
        result["received_mb"] = round((plane.received_bytes - before) / 1e6, 1)
        result["peak_in_flight"] = plane.most_in_flight

        async def compare() -> tuple[float, float]:
            async with opened(verifier="modal") as verifier:
                return await per_test(verifier)

        together, apart = asyncio.run(compare())
        result["one_container_for_20_tests_s"] = round(together, 2)
        result["one_container_per_test_s"] = round(apart, 2)

        async def counts() -> dict[str, float]:
            async with opened(verifier="modal") as verifier:
                return await by_tests(verifier, 5)

        return result | asyncio.run(counts())


def main() -> None:
    """Measure one way after the other and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=WAYS)
    options = parser.parse_args()
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        "calls": options.calls,
        "in_flight_at_most": BOUND,
        "large_set_mb": LARGE_MB,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "local" in options.only:
            results["local"] = asyncio.run(measure("local", options.calls, tests_dir=str(folder / "local")))
        if "http" in options.only:
            with service(folder / "service") as url:
                os.environ["VERIFIER_TOKEN"] = TOKEN
                results["http"] = asyncio.run(measure("http", options.calls, verifier="http", verifier_urls=[url]))
        if "modal" in options.only:
            results["modal"] = on_modal(folder / "modal", options.calls)
        if "gvisor" in options.only:
            results["gvisor"] = on_modal(folder / "gvisor", options.calls, "docker")
    print(json.dumps(results, indent=1))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
