"""Odd but correct programs: they must be accepted."""

from __future__ import annotations

from adversarial.cases import SUM_CALL, SUM_TESTS, Case, honest

LINES = [{"input": "3\n1\n2\n3\n", "output": "6\n"}]
CALL = {"fn_name": "solve"}
BIG = [{"input": "1 " * 1_000_000, "output": str(1_000_000)}]
DEEP = """
    import sys, threading
    def f(n): return 0 if n == 0 else 1 + f(n - 1)
    def main():
        sys.setrecursionlimit(10**6)
        f(90_000)
        print(sum(map(int, input().split())))
    """

HONEST: list[Case] = [
    honest("lines_of_stdin", "import sys\nprint(sum(int(line) for line in sys.stdin) - 3)", LINES),
    honest("open_0", "print(sum(map(int, open(0).read().split())))"),
    honest("os_read", "import os\nprint(sum(map(int, os.read(0, 1 << 20).split())))"),
    honest("dev_stdin", "print(sum(map(int, open('/dev/stdin').read().split())))"),
    honest("proc_self_fd", "print(sum(map(int, open('/proc/self/fd/0').read().split())))"),
    honest("fileinput", "import fileinput\nprint(sum(int(line) for line in fileinput.input()) - 3)", LINES),
    honest(
        "stdin_buffer", "import sys\nsys.stdout.buffer.write(b'%d' % sum(map(int, sys.stdin.buffer.read().split())))"
    ),
    honest("stdin_star_import", "print(sum(map(int, stdin.readline().split())))"),
    honest("walrus_input", "try:\n  while s := input(): print(sum(map(int, s.split())))\nexcept EOFError: pass"),
    honest(
        "global_statement",
        "total = 0\ndef f():\n  global total\n  total = sum(map(int, input().split()))\nf()\nprint(total)",
    ),
    honest("main_guard", "def main(): print(sum(map(int, input().split())))\nif __name__ == '__main__': main()"),
    honest("quit", "print(sum(map(int, input().split())))\nquit()"),
    honest("exit_1", "print(sum(map(int, input().split())))\nexit(1)"),
    honest("sys_exit_message", "import sys\nprint(sum(map(int, input().split())))\nsys.exit('done')"),
    honest("os_exit_0", "import os\nprint(sum(map(int, input().split())), flush=True)\nos._exit(0)"),
    honest("import_os", "import os\nprint(sum(map(int, input().split())), end=os.linesep)"),
    honest("no_final_newline", "print(sum(map(int, input().split())), end='')"),
    honest("crlf", "print(sum(map(int, input().split())), end='\\r\\n')"),
    honest("decimal_spelling", "print('%.3f' % sum(map(int, input().split())))"),
    honest("os_write", "import os\nos.write(1, str(sum(map(int, input().split()))).encode())"),
    honest("own_stdout", "out = open(1, 'w', closefd=False)\nout.write(str(sum(map(int, input().split()))))"),
    honest(
        "replaced_stdout",
        "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer)\nprint(sum(map(int, input().split())))",
    ),
    honest("printed_at_exit", "import atexit\nn = sum(map(int, input().split()))\natexit.register(lambda: print(n))"),
    honest(
        "printed_by_a_thread",
        "import threading\nthreading.Thread(target=lambda: print(sum(map(int, input().split())))).start()",
    ),
    honest("deep_recursion", DEEP + "main()\n"),
    honest("deep_recursion_in_a_thread", DEEP + "t = threading.Thread(target=main); t.start(); t.join()\n"),
    honest(
        "thread_stack_256_mb",
        DEEP + "threading.stack_size(1 << 28); t = threading.Thread(target=main); t.start()\n",
    ),
    honest(
        "lru_cache_recursion",
        """
        @lru_cache(None)
        def f(n): return 0 if n == 0 else 1 + f(n - 1)
        setrecursionlimit(10**6)
        f(40_000)
        print(sum(map(int, input().split())))
        """,
    ),
    honest(
        "twenty_threads",
        """
        import threading
        done = []
        threads = [threading.Thread(target=done.append, args=(1,)) for _ in range(20)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        print(sum(map(int, input().split())))
        """,
    ),
    honest(
        "multiprocessing_pool",
        """
        from multiprocessing import Pool
        def f(x): return x
        if __name__ == "__main__":
            with Pool(2) as pool:
                print(sum(pool.map(f, map(int, input().split()))))
        """,
    ),
    honest(
        "process_pool_executor",
        """
        from concurrent.futures import ProcessPoolExecutor
        with ProcessPoolExecutor(2) as pool:
            print(sum(pool.map(int, input().split())))
        """,
    ),
    honest(
        "multiprocessing_queue",
        """
        from multiprocessing import Process, Queue
        def f(q, n): q.put(sum(n))
        q = Queue()
        p = Process(target=f, args=(q, list(map(int, input().split()))))
        p.start()
        print(q.get())
        p.join()
        """,
    ),
    honest(
        "subprocess",
        "import subprocess\nprint(sum(map(int, subprocess.run(['cat'], capture_output=True).stdout.split())))",
    ),
    honest("asyncio", "import asyncio\nasync def main(): print(sum(map(int, input().split())))\nasyncio.run(main())"),
    honest(
        "temporary_file",
        "import tempfile\nf = tempfile.TemporaryFile('w+')\nf.write(input())\nf.seek(0)\n"
        "print(sum(map(int, f.read().split())))",
    ),
    honest(
        "file_in_the_current_folder", "open('x', 'w').write(input())\nprint(sum(map(int, open('x').read().split())))"
    ),
    honest("two_megabytes_of_output", "print('x' * 2_000_000)", [{"input": "", "output": "x" * 2_000_000}]),
    honest("two_megabytes_of_input", "print(sum(map(int, input().split())))", BIG),
    honest(
        "output_before_input_is_read",
        "print('x' * 300_000)\ns = input()\nprint(len(s))",
        [{"input": "1" * 300_000, "output": "x" * 300_000 + "\n300000"}],
    ),
    honest(
        "stderr_noise", "import sys\nprint('debug' * 10_000, file=sys.stderr)\nprint(sum(map(int, input().split())))"
    ),
    honest("unicode", "print(input()[::-1])", [{"input": "añ→😀\n", "output": "😀→ña\n"}]),
    honest("nothing_to_say", "pass", [{"input": "", "output": ""}]),
    honest(
        "handled_signal",
        "import signal, os\nsignal.signal(2, lambda *a: print(3))\nos.kill(os.getpid(), 2)",
        SUM_TESTS[:1],
    ),
    honest("future_import", "from __future__ import annotations\nprint(sum(map(int, input().split())))"),
    honest(
        "dataclass",
        "from dataclasses import dataclass\n@dataclass\nclass P:\n  a: int\n  b: int\n"
        "p = P(*map(int, input().split()))\nprint(p.a + p.b)",
    ),
    honest(
        "pickle_of_a_class",
        "import pickle\nclass P: pass\np = pickle.loads(pickle.dumps(P()))\nprint(sum(map(int, input().split())))",
    ),
    honest("star_imports_of_the_prelude", "print(reduce(add, map(int, input().split())), end=ascii_letters[:0])"),
    honest("numpy", "import numpy as np\nprint(np.array(input().split(), dtype=int).sum())"),
    honest("big_memory_within_the_limit", "x = bytearray(1 << 30)\nprint(sum(map(int, input().split())))"),
    honest(
        "sleep_within_the_limit",
        "import time\ntime.sleep(1)\nprint(sum(map(int, input().split())))",
        SUM_TESTS[:1],
    ),
    honest(
        "method_of_solution",
        "class Solution:\n  def solve(self, n: List[int]) -> Optional[int]: return sum(n)",
        SUM_CALL,
        **CALL,
    ),
    honest("plain_function", "def solve(n): return sum(n)", SUM_CALL, **CALL),
    honest("static_method", "class Solution:\n  @staticmethod\n  def solve(n): return sum(n)", SUM_CALL, **CALL),
    honest("numpy_scalar", "import numpy as np\ndef solve(n): return np.sum(n)", SUM_CALL, **CALL),
    honest(
        "counter_for_a_dict", "def solve(n): return Counter(n)", [{"input": '["a", "a"]', "output": '{"a": 2}'}], **CALL
    ),
    honest("tuple_for_a_list", "def solve(n): return tuple(n)", [{"input": "[1, 2]", "output": "[1, 2]"}], **CALL),
    honest("true_for_one", "def solve(n): return True", [{"input": "0", "output": "1"}], **CALL),
    honest(
        "call_that_prints_and_reads",
        "def solve(n):\n  print(n)\n  import sys\n  sys.stdin.read()\n  return sum(n)",
        SUM_CALL,
        **CALL,
    ),
    honest(
        "main_guard_in_a_call",
        "def solve(n): return sum(n)\nif __name__ == '__main__': print(solve(input()))",
        SUM_CALL,
        **CALL,
    ),
]
