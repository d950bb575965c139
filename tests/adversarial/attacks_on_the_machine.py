"""Programs after the machine: memory, processes, time, files, system calls, signals, output."""

from __future__ import annotations

from adversarial.cases import ANSWER, SECRET_TESTS, SUM_CALL, SUM_TESTS, Case, attack

SMALL = {"memory_limit_mb": 256}
TIME, MEMORY, RUNTIME = "time_limit_exceeded", "memory_limit_exceeded", "runtime_error"


def refused(name: str, call: str) -> Case:
    """A libc call that must fail: the program answers only if it went through."""
    return attack(
        name,
        f"""
        import ctypes, os, socket
        libc = ctypes.CDLL(None, use_errno=True)
        if {call}:
            print(sum(map(int, input().split())))
        """,
        SUM_TESTS,
    )


def syscall(name: str, number: int, arguments: str) -> Case:
    """A system call by number (x86_64) that must fail."""
    return refused(name, f"os.uname().machine == 'x86_64' and libc.syscall({number}, {arguments}) >= 0")


ATTACKS: list[Case] = [
    # memory
    attack("half_a_gigabyte_too_much", "x = bytearray(4608 << 20)\n" + ANSWER, SUM_TESTS, MEMORY),
    attack("memory_in_steps", "x = []\nwhile True: x.append(bytearray(b'x' * (1 << 20)))", SUM_TESTS, MEMORY, **SMALL),
    attack(
        "memory_by_mmap",
        "import mmap\nm = mmap.mmap(-1, 1 << 30)\nm.write(b'x' * (1 << 30))\n" + ANSWER,
        SUM_TESTS,
        **SMALL,
    ),
    attack(
        "memory_by_children",
        """
        import os, time
        for _ in range(8):
            if os.fork() == 0:
                x = bytearray(b"x" * (100 << 20))
                time.sleep(30)
        time.sleep(30)
        """,
        SUM_TESTS,
        MEMORY,
        **SMALL,
        time_limit_s=10,
    ),
    attack(
        "memory_in_files",
        """
        import time
        block = b"x" * (1 << 20)
        for folder in (".", "/tmp", "/dev/shm"):
            for number in range(4):
                with open(f"{folder}/{number}", "wb") as file:
                    for _ in range(200):
                        file.write(block)
        time.sleep(5)
        """,
        SUM_TESTS,
        **SMALL,
    ),
    attack(
        "memory_in_shared_memory",
        """
        from multiprocessing.shared_memory import SharedMemory
        import time
        kept = []
        for _ in range(8):
            kept.append(SharedMemory(create=True, size=200 << 20))
            kept[-1].buf[:] = bytes(200 << 20)
        """,
        SUM_TESTS,
        **SMALL,
    ),
    attack(
        "memory_in_unmapped_memfds",
        """
        import os
        for _ in range(16):
            os.posix_fallocate(os.memfd_create("x"), 0, 200 << 20)
        """
        + ANSWER,
        SUM_TESTS,
        **SMALL,
    ),
    attack("one_huge_file", "f = open('big', 'wb')\nf.truncate(1 << 40)\n" + ANSWER, SUM_TESTS),
    attack(
        "raise_the_limits", "import resource as r\nr.setrlimit(r.RLIMIT_AS, (-1, -1))\n" + ANSWER, SUM_TESTS, RUNTIME
    ),
    attack(
        "lock_memory",
        "import ctypes\nprint(ctypes.CDLL(None).mlockall(3) or sum(map(int, input().split())))",
        SUM_TESTS,
    ),
    attack(
        "stack_overflow",
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f() + 1\nf()",
        SUM_TESTS,
    ),
    # processes
    attack("fork_bomb", "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", SUM_TESTS, time_limit_s=1),
    attack(
        "thread_bomb",
        "import threading, time\nwhile 1: threading.Thread(target=time.sleep, args=(9,)).start()",
        SUM_TESTS,
    ),
    attack(
        "daemon_overwrites_the_result",
        """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(0.2)
                os.write(1, b"3\\n")
            os._exit(0)
        """,
        SUM_TESTS,
        "wrong_answer",
    ),
    attack(
        "sleeping_orphans",
        "import os, time\nfor _ in range(20):\n  if os.fork() == 0:\n    os.setsid(); time.sleep(60)\n",
        SUM_TESTS,
    ),
    attack(
        "orphans_that_ignore_signals",
        "import os, signal, time\nfor s in range(1, 32):\n"
        "  try: signal.signal(s, signal.SIG_IGN)\n  except OSError: pass\n"
        "if os.fork() == 0:\n  os.setsid(); time.sleep(60)\n",
        SUM_TESTS,
    ),
    attack(
        "forking_away_from_the_sweep",
        "import os\nif os.fork() == 0:\n  os.setsid()\n  while True:\n    if os.fork(): os._exit(0)\n",
        SUM_TESTS,
        time_limit_s=1,
    ),
    attack("kill_all", "import os\nos.kill(-1, 9)", SUM_TESTS),
    attack("kill_the_parent", "import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(0.1)\n", SUM_TESTS),
    attack("stop_the_parent", "import os, time\nos.kill(os.getppid() or 1, 19)\ntime.sleep(0.1)\n", SUM_TESTS),
    attack(
        "kill_pid_1", "import os\nfor s in range(1, 65):\n  try: os.kill(1, s)\n  except OSError: pass\n", SUM_TESTS
    ),
    attack("kill_the_group", "import os\nos.killpg(0, 9)", SUM_TESTS),
    attack(
        "interrupt_everything",
        "import os\nfor p in range(2, 400):\n  try: os.kill(p, 2)\n  except OSError: pass\n",
        SUM_TESTS,
    ),
    # time
    attack("busy_loop", "while True: pass", SUM_TESTS, TIME, time_limit_s=0.5),
    attack("sleep", "import time; time.sleep(60)", SUM_TESTS, TIME, time_limit_s=0.5),
    attack(
        "bare_except", "while True:\n  try:\n    while True: pass\n  except: pass", SUM_TESTS, TIME, time_limit_s=0.5
    ),
    attack(
        "ignores_the_alarm",
        "import signal\nfor s in (signal.SIGALRM, signal.SIGXCPU, signal.SIGTERM):\n"
        "  signal.signal(s, signal.SIG_IGN)\nwhile 1: pass",
        SUM_TESTS,
        TIME,
        time_limit_s=0.5,
    ),
    attack("stops_itself", "import os; os.kill(os.getpid(), 19)", SUM_TESTS, TIME, time_limit_s=0.5),
    attack(
        "closes_stdout_and_stays",
        "import os, time\nos.close(1); os.close(2); time.sleep(60)",
        SUM_TESTS,
        TIME,
        time_limit_s=0.5,
    ),
    attack(
        "busy_in_a_child", "import os\nif os.fork():\n  os.wait()\nwhile 1: pass", SUM_TESTS, TIME, time_limit_s=0.5
    ),
    attack(
        "busy_in_a_thread",
        "import threading as t\ndef f():\n  while 1: pass\nt.Thread(target=f).start()",
        SUM_TESTS,
        TIME,
        time_limit_s=0.5,
    ),
    attack(
        "busy_at_exit", "import atexit\n@atexit.register\ndef f():\n  while 1: pass", SUM_TESTS, TIME, time_limit_s=0.5
    ),
    attack("nicer_than_others", "import os\nos.nice(19)\n" + ANSWER, SUM_TESTS, RUNTIME),
    attack("waits_for_its_input", "import sys\nsys.stdin.read()\ninput()", SUM_TESTS, RUNTIME),
    attack(
        "cpu_time_in_short_lived_children",
        "import os\nwhile True:\n  if os.fork() == 0:\n    x = sum(range(300000)); os._exit(0)\n  os.wait()",
        SUM_TESTS,
        TIME,
        time_limit_s=1,
    ),
    attack("compile_bomb", "x = " + "(" * 90 + "1" + ")" * 90 + "\n" + "y = [" * 150 + "]" * 150, SUM_TESTS),
    attack("deep_source", "x = " + "-" * 200_000 + "1", SUM_TESTS),
    attack("null_bytes", "print(3)\0", SUM_TESTS, "compile_error"),
    attack("lone_surrogate", "print('\ud800')", SUM_TESTS, "compile_error"),
    # output
    attack("endless_output", "while True: print('x' * 100000)", SUM_TESTS, "output_limit_exceeded", time_limit_s=10),
    attack("endless_stderr", "import sys\nwhile 1: print('x' * 100000, file=sys.stderr)", SUM_TESTS, time_limit_s=3),
    attack(
        "endless_output_in_a_call",
        "def solve(n):\n  while 1: print('x' * 100000)",
        SUM_CALL,
        TIME,
        fn_name="solve",
        time_limit_s=1,
    ),
    attack(
        "slow_output",
        "import time\nwhile 1: print('x', flush=True); time.sleep(0.01)",
        SUM_TESTS,
        TIME,
        time_limit_s=0.5,
    ),
    attack("binary_output", "import os\nos.write(1, bytes(range(256)) * 100)", SUM_TESTS, "wrong_answer"),
    attack("never_reads_stdin", "print(0)", [{"input": "9" * 3_000_000, "output": "1"}], "wrong_answer"),
    # files and network
    attack("write_system_files", "open('/usr/x', 'w')\n" + ANSWER, SUM_TESTS, RUNTIME),
    attack("write_the_interpreter", "import os\nopen(os.__file__, 'a')\n" + ANSWER, SUM_TESTS, RUNTIME),
    attack("write_a_sysctl", "open('/proc/sys/kernel/core_pattern', 'w')\n" + ANSWER, SUM_TESTS, RUNTIME),
    attack("read_shadow", "open('/etc/shadow').read()\n" + ANSWER, SUM_TESTS, RUNTIME),
    attack(
        "read_roots_home", "import os\nos.listdir('/root/.ssh')\nopen('/root/.bashrc')\n" + ANSWER, SUM_TESTS, RUNTIME
    ),
    attack("internet", "import socket\nsocket.create_connection(('127.0.0.1', 80), 1)\n" + ANSWER, SUM_TESTS, RUNTIME),
    attack("listen", "import socket\ns = socket.socket()\ns.bind(('127.0.0.1', 0))\n" + ANSWER, SUM_TESTS, RUNTIME),
    attack(
        "datagrams", "import socket\nsocket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n" + ANSWER, SUM_TESTS, RUNTIME
    ),
    attack("netlink", "import socket\nsocket.socket(socket.AF_NETLINK, 3, 0)\n" + ANSWER, SUM_TESTS, RUNTIME),
    attack(
        "device_node", "import os, stat\nos.mknod('disk', 0o600 | stat.S_IFBLK, 0x801)\n" + ANSWER, SUM_TESTS, RUNTIME
    ),
    attack("chroot_out", "import os\nos.chroot('/')\n" + ANSWER, SUM_TESTS, RUNTIME),
    # identity and system calls
    attack("become_root", "import os\nos.setuid(0)\nprint(SECRET)", SECRET_TESTS, RUNTIME),
    attack(
        "sudo",
        "import os\nos.system('chmod u+s /bin/sh; mount -t tmpfs x /usr')\nopen('/usr/x', 'w')",
        SECRET_TESTS,
        RUNTIME,
    ),
    refused("ptrace_the_parent", "libc.ptrace(16, os.getppid() or 1, 0, 0) == 0"),
    refused("mount", "libc.mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0"),
    refused("unshare_user", "libc.unshare(0x10000000) == 0"),
    refused("personality", "libc.personality(0x40000) != -1"),
    refused("sched_affinity", "libc.sched_setaffinity(0, 8, b'\\x01' + b'\\0' * 7) == 0"),
    syscall("bpf", 321, "0, 0, 0"),
    syscall("io_uring", 425, "8, b'\\0' * 120"),
    syscall("keyctl", 250, "0, -3, 1"),
    syscall("clone_new_namespace", 56, "0x10000000 | 17, 0, 0, 0, 0"),
    syscall("userfaultfd", 323, "1"),
    syscall("perf_event_open", 298, "b'\\1\\0\\0\\0\\x70' + b'\\0' * 123, 0, -1, -1, 0"),
    syscall("x32_calls", 0x40000000 + 39, "0"),
]
