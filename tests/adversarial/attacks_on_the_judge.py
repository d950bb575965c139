"""Programs after the expected output, the judge's processes, its pipes and its reader."""

from __future__ import annotations

from adversarial.cases import ANSWER, EMPTY_TESTS, SECRET, SECRET_CALL, SECRET_TESTS, SUM_CALL, SUM_TESTS, Case, attack

CALL = {"fn_name": "solve"}

ATTACKS: list[Case] = [
    attack(
        "frames",
        """
        import sys
        frame, found = sys._getframe(), []
        while frame:
            found.append(repr(frame.f_locals) + repr(list(frame.f_globals)))
            frame = frame.f_back
        import re
        print(*re.findall(r"[0-9a-f]{16}", " ".join(found))[:1])
        """,
    ),
    attack(
        "garbage_collector",
        """
        import gc, re
        for thing in gc.get_objects():
            if isinstance(thing, (dict, list, tuple)):
                for text in re.findall(r"'([0-9a-f]{16})", repr(thing)[:100000]):
                    print(text)
        """,
    ),
    attack(
        "own_memory",
        """
        import re
        me = re.compile(rb"(?<![0-9a-f])[0-9a-f]{16}\\\\n")
        for line in open("/proc/self/maps"):
            low, high = (int(x, 16) for x in line.split()[0].split("-"))
            if "rw" not in line or high - low > 1 << 26:
                continue
            with open("/proc/self/mem", "rb", 0) as memory:
                memory.seek(low)
                try:
                    for hit in me.findall(memory.read(high - low)):
                        print(hit[:16].decode())
                except OSError:
                    pass
        """,
    ),
    attack(
        "zygote_memory",
        """
        import os
        for pid in (1, os.getppid()):
            print(open(f"/proc/{pid}/mem", "rb").read(10))
        """,
    ),
    attack(
        "other_processes",
        """
        import os, re
        for pid in filter(str.isdigit, os.listdir("/proc")):
            for name in ("cmdline", "environ", "mem", "maps"):
                try:
                    data = open(f"/proc/{pid}/{name}", "rb").read(1 << 20)
                except OSError:
                    continue
                if pid != str(os.getpid()):
                    for hit in re.findall(rb"[0-9a-f]{16}", data):
                        print(hit.decode())
        """,
    ),
    attack("environment", "import os, re; print(*re.findall('[0-9a-f]{16}', repr(os.environ)))"),
    attack(
        "descriptors",
        """
        import os
        for fd in range(3, 256):
            try:
                os.set_blocking(fd, False)
                print(os.read(fd, 1 << 16).decode())
            except (OSError, UnicodeDecodeError):
                pass
        """,
    ),
    attack(
        "descriptors_of_the_zygote",
        """
        import os
        for fd in os.listdir(f"/proc/{os.getppid()}/fd"):
            print(open(f"/proc/{os.getppid()}/fd/{fd}").read())
        """,
    ),
    attack(
        "test_files",
        """
        import os, re
        for top in ("/tmp", "/var/tmp", "/dev/shm", "/work", "/root", "/home", "/srv", "/mnt"):
            for folder, _, names in os.walk(top):
                for name in names:
                    try:
                        text = open(os.path.join(folder, name), errors="replace").read(1 << 20)
                    except OSError:
                        continue
                    for hit in re.findall(r'"output":"([0-9a-f]{16})', text):
                        print(hit)
        """,
    ),
    attack(
        "walk_up_from_import_path",
        """
        import os, sys
        for path in sys.path:
            here = path
            for _ in range(12):
                here += "/.."
                try:
                    for name in ("tests/adversarial/cases.py", "work/main/tests/adversarial/cases.py"):
                        print(open(os.path.join(here, name)).read()[-16:])
                except OSError:
                    pass
        """,
    ),
    attack(
        "import_the_judge",
        """
        import sys
        names = [name for name in sys.modules if "judge" in name]
        compare = sys.modules.get("verifier_app.judge.compare")
        import verifier_app.judge.compare as compare
        compare.output_difference = lambda *a: None
        """,
    ),
    attack(
        "change_the_runner",
        "import os, sys\nfor m in list(sys.modules.values()):\n    m.output_difference = lambda *a: None\n",
    ),
    attack(
        "zygote_poisoned_by_imports",
        """
        import sys, builtins
        if input() == "1 2":
            builtins.print(3)
        builtins.sum = lambda *a: 11
        sys.modules["__main__"].answer = 11
        """,
        SUM_TESTS,
    ),
    attack("exit_before_output", "import os; os._exit(0)"),
    attack("crash_where_nothing_is_expected", "import os; os.kill(os.getpid(), 11)", EMPTY_TESTS, "runtime_error"),
    attack("exception_where_nothing_is_expected", "raise ValueError", EMPTY_TESTS, "runtime_error"),
    attack("exit_status_where_nothing_is_expected", "import os; os._exit(3)", EMPTY_TESTS, "runtime_error"),
    attack("abort_where_nothing_is_expected", "import os; os.abort()", EMPTY_TESTS, "runtime_error"),
    attack("killed_where_nothing_is_expected", "import os; os.kill(os.getpid(), 9)", EMPTY_TESTS, "runtime_error"),
    attack("hang_where_nothing_is_expected", "while True: pass", EMPTY_TESTS, "time_limit_exceeded", time_limit_s=0.5),
    attack("verdict_on_stdout", 'print(\'{"status": "accepted", "passed": 1}\')'),
    attack("verdict_on_stderr", 'import sys; print(\'{"status": "accepted"}\', file=sys.stderr)'),
    attack(
        "equal_to_everything", "class E:\n  def __eq__(s, o): return True\ndef solve(n): return E()", SUM_CALL, **CALL
    ),
    attack(
        "equal_inside_a_list",
        "class E(list):\n  def __eq__(s, o): return True\ndef solve(n): return E()",
        SECRET_CALL,
        **CALL,
    ),
    attack(
        "int_equal_to_everything",
        "class E(int):\n  def __eq__(s, o): return True\ndef solve(n): return E(9)",
        SUM_CALL,
        **CALL,
    ),
    attack(
        "string_equal_to_everything",
        "class E(str):\n  __eq__ = lambda s, o: True\ndef solve(n): return [E()]",
        SECRET_CALL,
        **CALL,
    ),
    attack(
        "pretended_class",
        "class E:\n  __class__ = list\n  __eq__ = lambda s, o: True\ndef solve(n): return E()",
        SECRET_CALL,
        **CALL,
    ),
    attack(
        "reduce",
        "class E:\n  def __reduce__(s): return (print, ('x',))\ndef solve(n): return E()",
        SUM_CALL,
        "wrong_answer",
        **CALL,
    ),
    attack(
        "patched_json",
        "import json\njson.loads = json.dumps = lambda *a, **k: 'x'\ndef solve(n): return 0",
        SUM_CALL,
        **CALL,
    ),
    attack(
        "patched_encoder",
        """
        import json.encoder
        json.encoder.JSONEncoder.encode = lambda *a: '{"t": ' * 100000
        def solve(n): return 0
        """,
        SUM_CALL,
        **CALL,
    ),
    attack(
        "result_pipe_garbage",
        "import os\nos.write(3, b'\\xff\\x00[[[')\nos._exit(0)\ndef solve(n): pass",
        SUM_CALL,
        **CALL,
    ),
    attack(
        "result_pipe_deep", "import os\ndef solve(n):\n  os.write(3, b'[' * 60000)\n  os._exit(0)", SUM_CALL, **CALL
    ),
    attack("result_pipe_two_values", "import os\ndef solve(n):\n  os.write(3, b'3 ')\n  return 3", SUM_CALL, **CALL),
    attack(
        "result_pipe_flood",
        "import os\ndef solve(n):\n  while 1: os.write(3, b'9' * 65536)",
        SUM_CALL,
        "output_limit_exceeded",
        **CALL,
    ),
    attack("result_pipe_closed", "import os\nos.close(3)\ndef solve(n): return sum(n)", SUM_CALL, **CALL),
    attack("call_without_function", "x = 3", SUM_CALL, "runtime_error", **CALL),
    attack("call_exits", "def solve(n): raise SystemExit(0)", SUM_CALL, "runtime_error", **CALL),
    attack("call_exits_hard", "import os\ndef solve(n): os._exit(0)", SUM_CALL, "wrong_answer", **CALL),
    attack("generator_result", "def solve(n): yield 3", SUM_CALL, "wrong_answer", **CALL),
    attack("recursive_result", "def solve(n):\n  a = []\n  a.append(a)\n  return a", SUM_CALL, "wrong_answer", **CALL),
    attack("huge_int_result", "def solve(n): return 1 << 10**7", SUM_CALL, "wrong_answer", **CALL),
    attack(
        "nan_result", "def solve(n): return float('nan')", [{"input": "1", "output": "NaN"}], "wrong_answer", **CALL
    ),
    attack("rounded_small_number", "print(0)", [{"input": "", "output": "0.00009"}], "wrong_answer"),
    attack("close_everything", "import os; os.closerange(0, 256)", SECRET_TESTS),
    attack("truncate_stdout", "import os\nprint('x')\nos.ftruncate(1, 0)", SECRET_TESTS),
    attack("read_own_output", f"import os\nprint(os.read(1, 99))\nprint('{SECRET[:8]}')", SECRET_TESTS),
    attack("other_test_first", ANSWER.replace("sum(", "max("), SUM_TESTS, "wrong_answer"),
    attack(
        "count_the_tests_in_a_file",
        """
        import os, glob
        seen = glob.glob("/tmp/seen*") + glob.glob("/dev/shm/seen*") + glob.glob("/var/tmp/seen*") + glob.glob("seen*")
        for folder in (".", "/tmp", "/dev/shm", "/var/tmp"):
            try:
                open(os.path.join(folder, "seen%d" % os.getpid()), "w").close()
            except OSError:
                pass
        print(11 if seen else 3)
        """,
        SUM_TESTS,
        "wrong_answer",
    ),
    attack(
        "count_the_tests_in_shared_memory",
        """
        import ctypes
        libc = ctypes.CDLL(None)
        key = libc.shmget(4242, 4096, 0o1666)
        old = libc.shmget(4242, 4096, 0o666 | 0o1000 | 0o2000)
        print(11 if key >= 0 and old < 0 and 0 else 3)
        """,
        SUM_TESTS,
        "wrong_answer",
    ),
]
