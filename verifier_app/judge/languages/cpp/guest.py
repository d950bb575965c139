"""C++, the sandboxed half: the compiler in a sandbox of its own, then the program that it made, once for each test.

A program is executed from a file in memory that is closed when it begins: no path leads to it, and its process holds no
descriptor but those of its test. Its stack may grow to the memory limit, as on a contest's server; gVisor maps the
whole stack when a program starts, and at most 128 MB. The address space has room for threads beyond the memory limit;
what is really held is the watchdog's, or the kernel's, to bound.
"""

from __future__ import annotations

import _signal
import os
import resource
import struct
import sys
from typing import Any

from verifier_app.judge.layers.limits import MAX_OPEN_FILES, MAX_TASKS
from verifier_app.judge.layers.sandbox import PATH_FD
from verifier_app.judge.layers.setup import Setup

OPTIONS = (
    *("-x", "c++", "-std=gnu++20", "-O2", "-pipe", "-pthread", "-w"),
    *("-fmax-errors=1", "-fdiagnostics-color=never", "-fno-diagnostics-show-caret"),
)
STACK_BYTES = 0
RESULT_FD = 3
SOURCE, PROGRAM = "solution.cpp", "solution"
THREAD_STACK_BYTES = 2 << 20  # the C library's, where the main thread's stack has no limit; else the same as that
MAPPED_STACK_BYTES = 128 << 20  # gVisor's most; without a limit its stack has 8 MB
BESIDE_BYTES = 2 << 20  # of address space, for each thread
EXIT_REFUSED = 1
# the interpreter ignores them, and what is ignored stays so over exec
_RESET = (_signal.SIGINT, _signal.SIGPIPE, _signal.SIGXFSZ)
_ELF64, _LOADED = b"\x7fELF\x02\x01", 1
_compiler = ""
_most_stack = resource.RLIM_INFINITY


def preload(setup: Setup) -> None:
    """Nothing is loaded; setup.modules names the compiler."""
    global _compiler, _most_stack
    [_compiler] = setup.modules
    sys.path[:] = [path for path in sys.path if path not in setup.homes]
    if not stack_grows():
        _most_stack = MAPPED_STACK_BYTES


class Program:
    """The compiler, before there is a built file; then the program."""

    def __init__(self) -> None:
        self.file = -1
        self.call = True  # the compiler's result goes to descriptor 3
        self.loaded_bytes = 0

    def load(self, message: dict[str, Any], file: int) -> str | None:
        """Take over the built file; without one this zygote compiles."""
        self.file, self.call = file, file < 0
        if file >= 0:
            self.loaded_bytes = loaded_bytes(os.pread(file, 1 << 16, 0))
        return None

    def run(self, alarm: int) -> None:
        """In the forked child, confined. Never returns."""
        try:
            os.closerange(PATH_FD, MAX_OPEN_FILES)  # the interpreter's folders, where it reaches them by descriptor
            for number in _RESET:
                _signal.signal(number, _signal.SIG_DFL)
            if self.file < 0:
                os._exit(compile_to(RESULT_FD, alarm))
            self._become_program()
        except BaseException as error:
            what = "compiler" if self.file < 0 else "program"
            os.write(alarm, f"the {what} does not start: {type(error).__name__}: {error}".encode()[:1000])
        finally:
            os._exit(EXIT_REFUSED)

    def _become_program(self) -> None:
        space, hard = resource.getrlimit(resource.RLIMIT_AS)
        if self.loaded_bytes > space != resource.RLIM_INFINITY:  # the kernel would kill it without a word
            os.write(2, f"std::bad_alloc: {self.loaded_bytes >> 20} MB of static data".encode())
            os._exit(EXIT_REFUSED)
        _, stack = resource.getrlimit(resource.RLIMIT_STACK)
        stack = lower(stack, _most_stack)
        if space != resource.RLIM_INFINITY:
            of_thread = THREAD_STACK_BYTES if stack == resource.RLIM_INFINITY else stack
            space = lower(space + MAX_TASKS * (of_thread + BESIDE_BYTES), hard)
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
        resource.setrlimit(resource.RLIMIT_STACK, (stack, stack))
        os.execve(self.file, [PROGRAM], os.environ)


def lower(one: int, other: int) -> int:
    """The lower of two limits, of which either may be none."""
    return min((limit for limit in (one, other) if limit != resource.RLIM_INFINITY), default=resource.RLIM_INFINITY)


def stack_grows() -> bool:
    """Whether the kernel maps a stack as it is used: this process's is then smaller than it may become."""
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    with open("/proc/self/maps", encoding="ascii", errors="replace") as file:
        ranges = [line.split()[0].split("-") for line in file if line.rstrip().endswith("[stack]")]
    mapped = sum(int(end, 16) - int(start, 16) for start, end in ranges)
    return mapped < lower(soft, 8 << 20)


def compile_to(fd: int, alarm: int) -> int:
    """Compile what descriptor 0 holds in the current folder and write the program to `fd`; the exit status.

    Closes alarm as soon as the compiler runs; OSError before: it does not start.
    """
    with open(0, "rb", closefd=False) as stream, open(SOURCE, "wb") as file:
        file.write(stream.read())
    pid = os.posix_spawn(_compiler, [_compiler, *OPTIONS, "-o", PROGRAM, SOURCE], os.environ)
    os.close(alarm)
    _, status = os.waitpid(pid, 0)
    if status:
        return EXIT_REFUSED
    with open(PROGRAM, "rb") as file:
        while piece := memoryview(file.read(1 << 20)):
            while piece:
                piece = piece[os.write(fd, piece) :]
    return 0


def loaded_bytes(head: bytes) -> int:
    """Bytes of memory that an ELF file's segments take when it is started; 0 where the head is none of ours."""
    if not head.startswith(_ELF64):
        return 0
    try:
        (start,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        total = 0
        for number in range(count):
            kind, *_, memory = struct.unpack_from("<IIQQQQQ", head, start + number * size)
            total += memory if kind == _LOADED else 0
    except struct.error:
        return 0
    return total
