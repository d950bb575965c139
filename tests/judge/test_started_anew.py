"""multiprocessing's start methods that run the program's file anew."""

from __future__ import annotations

import pytest

from verifier_app.judge import Judge

# the future import must stay the first statement, and gcd comes from the prelude
PROGRAM = """
from __future__ import annotations
import multiprocessing as mp
def f(x): return gcd(x, 6)
if __name__ == "__main__":
    context = mp.get_context("METHOD")
    with context.Pool(1) as pool:
        print(pool.map(f, [4, 9]))
    queue = context.Queue()  # its process starts a thread
    process = context.Process(target=queue.put, args=(7,))
    process.start()
    print(queue.get())
    process.join()
"""


@pytest.mark.parametrize("deny", [(), ("mount",), ("unshare",)], ids=["every_layer", "no_mount", "no_namespaces"])
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_every_start_method_works_in_a_small_memory(method: str, deny: tuple[str, ...]) -> None:
    tests = [{"input": "", "output": "[2, 3]\n7\n"}]
    with Judge(deny=deny) as judge:
        verdict = judge.verify({"code": PROGRAM.replace("METHOD", method), "tests": tests, "memory_limit_mb": 256})
    assert verdict["status"] == "accepted", verdict["message"]
