"""Programs that CPython runs well, and judges that replace a part of the process do not: threads, streams, the end."""

from __future__ import annotations

from adversarial.cases import Case, honest

SUM = "print(sum(map(int, input().split())))\n"
OK = [{"input": "", "output": "ok"}]
SMALL = {"memory_limit_mb": 256}
LRU = """
    import sys, threading
    from functools import lru_cache
    sys.setrecursionlimit(10**6)
    @lru_cache(None)
    def f(n): return 0 if n == 0 else 1 + f(n - 1)
    def main(): print('ok' if f(100_000) == 100_000 else '')
    """
LRU_END = "t = threading.Thread(target=main); t.start(); t.join()\n"
SLEEPERS = """
    import threading, time
    threads = [threading.Thread(target=time.sleep, args=(0.3,)) for _ in range({})]
    [t.start() for t in threads]
    [t.join() for t in threads]
    print('ok')
    """

THREADS: list[Case] = [
    honest("a_hundred_threads", SLEEPERS.format(100), OK),
    honest("eight_threads_in_256_mb", SLEEPERS.format(8), OK, **SMALL),
    honest(
        "a_hundred_raw_threads",
        "import _thread, time\ndone = []\n"
        "for i in range(100): _thread.start_new_thread(lambda: (time.sleep(0.2), done.append(1)), ())\n"
        "while len(done) < 100: time.sleep(0.01)\nprint('ok')",
        OK,
    ),
    honest(
        "executor_of_a_hundred",
        "from concurrent.futures import ThreadPoolExecutor\nimport time\n"
        "with ThreadPoolExecutor(100) as pool: list(pool.map(lambda _: time.sleep(0.05), range(100)))\nprint('ok')",
        OK,
    ),
    honest(
        "default_executor_in_256_mb",
        "from concurrent.futures import ThreadPoolExecutor\nimport time\n"
        "with ThreadPoolExecutor() as pool: list(pool.map(lambda _: time.sleep(0.05), range(20)))\nprint('ok')",
        OK,
        **SMALL,
    ),
    honest(
        "pool_in_256_mb",
        "from multiprocessing import Pool\ndef f(x): return x\n"
        "with Pool(2) as pool: print('ok' if sum(pool.map(f, range(4))) == 6 else '')",
        OK,
        **SMALL,
    ),
    honest("cached_recursion_in_a_thread", LRU + LRU_END, OK),
    honest("cached_recursion_on_a_stack_of_512_mb", LRU + "threading.stack_size(1 << 29); " + LRU_END, OK),
    honest("stack_of_256_mb_in_256_mb", LRU + "threading.stack_size(1 << 28); " + LRU_END, OK, **SMALL),
]

STREAMS: list[Case] = [
    honest(
        "carriage_return_is_data",
        "import sys\nprint(input() == '1\\r', len(sys.stdin.read().split('\\n')), end='')",
        [{"input": "1\r\n2\r3\r\r\n", "output": "True 2"}],
    ),
    honest(
        "carriage_returns_end_no_line",
        "print(int(input()) + int(input()))",
        [{"input": "1\r\r\n2\r\r\n", "output": "3"}],
    ),
    honest(
        "as_much_as_fstat_says",
        "import io, os\ninput = io.BytesIO(os.read(0, os.fstat(0).st_size)).readline\n" + SUM,
    ),
    honest("mapped_stdin", "import mmap\nprint(sum(map(int, mmap.mmap(0, 0, prot=mmap.PROT_READ).read().split())))"),
    honest("stdin_from_its_start_again", "import sys\nsys.stdin.read()\nsys.stdin.seek(0)\n" + SUM),
    honest(
        "stdin_as_an_asyncio_pipe",
        """
        import asyncio, sys
        async def main():
            reader = asyncio.StreamReader()
            protocol = asyncio.StreamReaderProtocol(reader)
            await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
            print(sum(map(int, (await reader.readline()).split())))
        asyncio.run(main())
        """,
    ),
    honest("byte_order_mark", "\ufeffprint('ok')", OK),
    honest("four_hundred_files", "files = [open('/dev/null') for _ in range(400)]\nprint('ok')", OK),
    honest("much_on_stderr", "import sys\nfor _ in range(70): sys.stderr.write('x' * (1 << 20))\nprint('ok')", OK),
]

ENDINGS: list[Case] = [
    honest("bound_write", "write = open(1, 'w').write\nwrite('ok')", OK),
    honest("partial_print", "print = partial(print, file=open(1, 'w', closefd=False))\nprint('ok')", OK),
    honest("stream_in_an_attribute", "class O: pass\no = O()\no.out = open(1, 'w')\no.out.write('ok')", OK),
    honest("stream_in_a_slot", "class O: __slots__ = ('out',)\no = O()\no.out = open(1, 'w')\no.out.write('ok')", OK),
    honest("stream_in_a_list", "outs = [open(1, 'w')]\nouts[0].write('ok')", OK),
    honest(
        "stream_in_a_closure",
        "def maker():\n  out = open(1, 'w')\n  return lambda text: out.write(text)\nwrite = maker()\nwrite('ok')",
        OK,
    ),
    honest("raw_buffer", "w = io.BufferedWriter(io.FileIO(1, 'w', closefd=False))\nw.write(b'ok')", OK),
    honest("detached_stdout", "import sys\nout = sys.stdout.detach()\nout.write(b'ok')", OK),
    honest(
        "stream_of_its_own_class",
        """
        import io, os
        class Out(io.IOBase):
            def __init__(self): self.parts = []
            def write(self, text): self.parts.append(text)
            def flush(self):
                os.write(1, ''.join(self.parts).encode())
                self.parts.clear()
        out = Out()
        print('ok', file=out)
        """,
        OK,
    ),
    honest(
        "stream_that_writes_when_it_closes",
        "import io, os\nclass Out(io.StringIO):\n  def close(self): os.write(1, self.getvalue().encode())\n"
        "out = Out()\nprint('ok', file=out)",
        OK,
    ),
    honest(
        "finalizer_with_globals",
        "parts = []\ndef text(): return ''.join(parts)\n"
        "class T:\n  def __del__(self): print(text())\nt = T()\nparts += 'ok'",
        OK,
    ),
    honest(
        "finalizers_in_order",
        "class T:\n  def __init__(self, n): self.n = n\n  def __del__(self): print(self.n)\na, b = T('o'), T('k')",
        [{"input": "", "output": "o\nk"}],
    ),
    honest(
        "finalized_once",
        "kept = []\nclass T:\n  def __del__(self):\n    print('ok')\n    kept.append(self)\nt = T()\ndel t",
        OK,
    ),
    honest("suspended_generator", "def g():\n  try: yield\n  finally: print('ok')\nx = g()\nnext(x)", OK),
    honest(
        "suspended_in_a_with",
        "from contextlib import contextmanager\n@contextmanager\ndef c():\n  yield\n  print('never')\n"
        "@contextmanager\ndef d():\n  try: yield\n  finally: print('ok')\n"
        "def g():\n  with d(): yield\nx = g()\nnext(x)",
        OK,
    ),
    honest("weak_finalizer", "import weakref\nclass T: pass\nt = T()\nweakref.finalize(t, print, 'ok')", OK),
    honest(
        "finalizer_after_stdout_was_replaced",
        "import io, sys\nsys.stdout = io.StringIO()\nclass T:\n  def __del__(self): print('ok')\nt = T()",
        OK,
    ),
    honest(
        "finalizer_beside_a_daemon",
        "import threading\ndef f():\n  while True: pass\nthreading.Thread(target=f, daemon=True).start()\n"
        "class T:\n  def __del__(self): print('ok')\nt = T()",
        OK,
    ),
    honest("output_before_sys_exit", "import sys\nout = [open(1, 'w')]\nout[0].write('ok')\nsys.exit(1)", OK),
]

AS_CPYTHON = THREADS + STREAMS + ENDINGS
