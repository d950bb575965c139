"""Honest and hostile programs whose verdict must not depend on the kernel."""

from __future__ import annotations

from typing import Any

SUM = [{"input": "1 2\n", "output": "3\n"}, {"input": "5 6\n", "output": "11\n"}]
ANSWER = "\nprint(sum(map(int, input().split())))"
TRY = "\ntry:\n  {act}\n  print('done')\nexcept OSError:\n  print(sum(map(int, input().split())))"


def request(code: str, **fields: Any) -> dict[str, Any]:
    return {"code": code, "tests": SUM, "time_limit_s": 10.0, "memory_limit_mb": 512, **fields}


PROGRAMS: dict[str, dict[str, Any]] = {
    "right": request(ANSWER),
    "right_call": request(
        "class Solution:\n  def add(self, a, b): return a + b",
        fn_name="add",
        tests=[{"input": "1\n2", "output": "3"}],
    ),
    "wrong": request("print(3)"),
    "compile_error": request("def"),
    "exception": request("1 / 0"),
    "reads_all_of_stdin": request("import sys\nprint(sum(map(int, sys.stdin.read().split())))"),
    "numpy": request("import numpy\nprint(int(numpy.array(input().split(), dtype=int).sum()))"),
    "threads": request("import threading\nt = threading.Thread(target=lambda: None)\nt.start(); t.join()" + ANSWER),
    "deep": request(
        "import sys\nsys.setrecursionlimit(10 ** 6)\ndef f(n): return n and 1 + f(n - 1)\nassert f(20000) == 20000"
        + ANSWER
    ),
    "processes": request(
        "import multiprocessing\nif __name__ == '__main__':\n  with multiprocessing.Pool(2) as pool:\n"
        "    print(sum(pool.map(int, input().split())))",
    ),
    "asyncio": request("import asyncio\nasync def f(): await asyncio.sleep(0.01)\nasyncio.run(f())" + ANSWER),
    "writes_and_reads": request(
        "import os, tempfile\nwith tempfile.TemporaryFile() as f:\n  f.write(b'x' * 10 ** 6); f.seek(0)\n"
        "  assert len(f.read()) == 10 ** 6" + ANSWER
    ),
    "loops": request("while True: pass", time_limit_s=1.0),
    "sleeps": request("import time\ntime.sleep(60)", time_limit_s=1.0),
    "too_much_memory": request("x = bytearray(10 ** 9)"),
    "too_much_memory_in_files": request(
        "import time\nheld = bytearray(b'x') * (200 << 20)\nfor n in range(2):\n  open(f'/tmp/{n}', 'wb').write(held)\n"
        "time.sleep(60)"
    ),
    "memory_shared_by_processes": request(
        "import os, time\nheld = bytearray(b'x') * (200 << 20)\nfor _ in range(4):\n  if os.fork() == 0:\n"
        "    sum(held[::4096]); time.sleep(1); os._exit(0)\nfor _ in range(4): os.wait()" + ANSWER,
        tests=SUM[:1],
    ),
    "memory_of_many_processes": request(
        "import os, time\nfor _ in range(6):\n  if os.fork() == 0:\n    held = bytearray(b'x') * (100 << 20)\n"
        "    time.sleep(60)\ntime.sleep(60)",
    ),
    "too_much_output": request("while True: print('x' * 10 ** 6)"),
    "leaves_early": request("import os\nos._exit(0)"),
    "official_in_one_process": request(
        "import math\nmath.n = getattr(math, 'n', 0) + 1\nprint(3 if math.n == 1 else 11)", semantics="official"
    ),
    "official_ends_in_a_later_test": request(
        "a, b = input().split()\nif a == '5': 1 / 0\nprint(3)", semantics="official"
    ),
    "official_loops_in_a_later_test": request(
        "a, b = input().split()\nwhile a == '5': pass\nprint(3)", semantics="official", time_limit_s=1.0
    ),
    "segfault": request("import ctypes\nctypes.string_at(0)"),
    "leaves_a_file": request(
        "import os\nfor p in ('/tmp/left', '/dev/shm/left'):\n  assert not os.path.exists(p)\n  open(p, 'w').close()"
        + ANSWER
    ),
    "leaves_a_process": request("import os, time\nif os.fork() == 0:\n  os.setsid(); time.sleep(60)" + ANSWER),
    "network": request("import socket" + TRY.format(act="socket.create_connection(('127.0.0.1', 1), 1)")),
    "unix_socket": request(
        "import socket" + TRY.format(act="s = socket.socket(socket.AF_UNIX); s.connect('/run/open'); s.recv(9)")
    ),
    "hidden_tests": request(TRY.format(act="__import__('os').listdir('/root')")),
    "kills_the_judge": request("import os\nos.kill(-1, 9)"),
    "queue": request("import ctypes\nassert ctypes.CDLL(None).mq_open(b'/q', 66, 0o600, None) < 0" + ANSWER),
}
FORK_BOMB = request("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", time_limit_s=2.0)
