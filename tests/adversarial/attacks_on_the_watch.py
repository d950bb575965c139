"""Programs after the watch: its descriptors, its clock, its count of memory, and what outlives a test."""

from __future__ import annotations

from adversarial.cases import ANSWER, SECRET_TESTS, SUM_CALL, SUM_TESTS, Case, attack, honest

TIME, MEMORY, RUNTIME, WRONG = "time_limit_exceeded", "memory_limit_exceeded", "runtime_error", "wrong_answer"
FIRST = SUM_TESTS[:1]

ATTACKS: list[Case] = [
    attack("real_time_signal", "import os\nos.kill(os.getpid(), 42)", SUM_TESTS, RUNTIME),
    attack(
        "surrogate_in_the_message",
        'import os\ndef solve(n):\n    os.write(3, b\'{"x": "\\\\udfff"}\')\n    os._exit(0)',
        SUM_CALL,
        WRONG,
        fn_name="solve",
    ),
    attack(
        "descriptors_of_the_judges_side",
        """
        import os
        for fd in range(3, 900):
            try:
                os.listdir(fd)
            except OSError:
                continue
            print(sum(map(int, input().split())))
            break
        """,
        SUM_TESTS,
        WRONG,
    ),
    attack(
        "command_lines_by_descriptor",
        """
        import os
        for fd in range(3, 900):
            try:
                print(open(os.open("1/cmdline", os.O_RDONLY, dir_fd=fd)).read())
            except OSError:
                pass
        """,
        SECRET_TESTS,
    ),
    attack(
        "the_hosts_processes_and_sockets",
        """
        import os
        own = {"1", str(os.getpid())}
        found = 0
        try: found += len([name for name in os.listdir("/proc") if name.isdigit()]) > 4
        except OSError: pass
        for pid in range(1, 2000):
            if str(pid) not in own:
                try: found += len(open(f"/proc/{pid}/cmdline").read()) > 0
                except OSError: pass
        for path in ("/proc/net/unix", "/proc/self/net/tcp", "/proc/net/tcp"):
            try: found += len(open(path).readlines()) > 1
            except OSError: pass
        if found: print(sum(map(int, input().split())))
        """,
        SUM_TESTS,
        WRONG,
    ),
    attack(
        "children_that_nobody_waits_for",
        """
        import os, signal, time
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        for _ in range(12):
            if os.fork() == 0:
                while time.process_time() < 0.25: pass
                os._exit(0)
            try: os.wait()
            except ChildProcessError: pass
        print(sum(map(int, input().split())))
        """,
        FIRST,
        TIME,
        time_limit_s=1,
    ),
    attack(
        "orphans_that_compute",
        """
        import os, time
        while True:
            if os.fork() == 0:
                if os.fork() == 0:
                    while time.process_time() < 0.2: pass
                os._exit(0)
            os.wait()
            time.sleep(0.1)
        """,
        FIRST,
        TIME,
        time_limit_s=1,
    ),
    attack(
        "shared_memory_without_pages",
        """
        import mmap, os, time
        def hold(mb):
            memory = mmap.mmap(-1, mb << 20)
            for start in range(0, mb << 20, 4 << 20):
                memory[start:start + (4 << 20)] = b"x" * (4 << 20)
                memory.madvise(mmap.MADV_DONTNEED, start, 4 << 20)
            return memory
        for _ in range(3):
            reader, writer = os.pipe()
            if os.fork() == 0:
                memory = hold(60)
                os.write(writer, b"1")
                time.sleep(9)
            os.read(reader, 1)
        time.sleep(0.5)
        print(sum(map(int, input().split())))
        """,
        FIRST,
        MEMORY,
        memory_limit_mb=128,
        time_limit_s=10,
    ),
    attack(
        "buffers_of_sockets",
        """
        import os, socket, time
        kept = []
        for _ in range(300):
            pair = socket.socketpair()
            kept.append(pair)
            pair[0].setblocking(False)
            try:
                while True: pair[0].send(b"x" * 65536)
            except BlockingIOError: pass
        time.sleep(0.5)
        print(sum(map(int, input().split())))
        """,
        FIRST,
        MEMORY,
        memory_limit_mb=64,
        time_limit_s=10,
    ),
    attack(
        "files_held_open_without_a_name",
        """
        import os, time
        kept = []
        for folder in (os.getcwd(), "/dev/shm"):
            for number in range(3):
                kept.append(open(f"{folder}/{number}", "wb"))
                os.unlink(kept[-1].name)
                for _ in range(30): kept[-1].write(b"x" * (1 << 20))
                kept[-1].flush()
        time.sleep(0.5)
        print(sum(map(int, input().split())))
        """,
        FIRST,
        MEMORY,
        RUNTIME,
        memory_limit_mb=96,
        time_limit_s=10,
    ),
    attack(
        "marks_on_the_scratch_folder",
        """
        import os
        here = os.getcwd()
        seen = os.stat(here).st_mtime_ns == 1234
        try: seen |= bool(os.listxattr(here))
        except OSError: pass
        for leave in (lambda: os.setxattr(here, "user.mark", b"1"), lambda: os.utime(here, ns=(1234, 1234))):
            try: leave()
            except OSError: pass
        print(11 if seen else 3)
        """,
        SUM_TESTS,
        WRONG,
    ),
    attack(
        "survivor_that_stops_its_sweeper",
        """
        import os, signal
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGCONT, signal.SIG_IGN)
            while True:
                try: os.kill(-1, signal.SIGSTOP)
                except OSError: pass
        """,
        SUM_TESTS,
    ),
    attack(
        "a_socket_of_any_family",
        "import socket\nsocket.socket(socket.AF_UNIX)\n" + ANSWER,
        SUM_TESTS,
        RUNTIME,
    ),
    attack("a_pair_of_another_family", "import socket\nsocket.socketpair(16)\n" + ANSWER, SUM_TESTS, RUNTIME),
    attack(
        "limits_of_another_process",
        "import os, resource\nresource.prlimit(os.getppid() or 1, resource.RLIMIT_NOFILE, (3, 3))\n" + ANSWER,
        SUM_TESTS,
        RUNTIME,
    ),
]

HONEST: list[Case] = [
    honest("a_thousand_syntax_warnings", "1 is 1\n" * 1000 + ANSWER),
    honest(
        "manager",
        """
        from multiprocessing import Manager, Process
        def add(found, number): found[number] = number
        with Manager() as manager:
            found = manager.dict()
            workers = [Process(target=add, args=(found, number)) for number in map(int, input().split())]
            for worker in workers: worker.start()
            for worker in workers: worker.join()
            print(sum(found.values()))
        """,
    ),
    honest(
        "mapped_file_counts_once",
        """
        import mmap, time
        file = open("large", "w+b")
        file.truncate(80 << 20)
        memory = mmap.mmap(file.fileno(), 0)
        for start in range(0, 80 << 20, 4096): memory[start] = 1
        time.sleep(0.2)
        print(sum(map(int, input().split())))
        """,
        memory_limit_mb=128,
    ),
    honest(
        "python_in_a_subprocess",
        """
        import subprocess, sys
        code = "print(sum(map(int, input().split())))"
        print(subprocess.run([sys.executable, "-c", code], input=input(), capture_output=True, text=True).stdout)
        """,
    ),
    honest("modules_of_loaded_packages", "import json.tool, importlib.metadata\n'a'.encode('cp1252')\n" + ANSWER),
]
