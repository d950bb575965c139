"""What a language is to the judge: what it can judge, what is warm before a program comes, and what an end means.

A language has two halves. The judge's half is a `Language`; it never shares a process with a program. The other half is
a module, its guest, which runs in the sandbox:

    STACK_BYTES           the main thread's stack of the interpreter that runs the guest; 0: as the host has it
    preload(setup)        in the template, once, before any program arrives
    Program()             one program, in its zygote
      .load(message, file)  takes the source, message["load"], or the file that was built of it (a descriptor, else -1);
                          what is wrong with the source, or None
      .call               whether descriptor 3 takes a result; else descriptor 1 is the output
      .run(alarm)         in a test's process, confined: runs the program on descriptors 0, 1 and 2 and never returns.
                          Closes alarm before anything untrusted runs; what is written to it is a fault of ours and no
                          verdict. Where Warm has one_process, run(alarm, another): at a test's end it calls another(),
                          which is true when the descriptors are those of the next test

A language with a compiler has its guest run twice: a first Program, loaded without source and file, compiles what its
`run` reads from descriptor 0 and writes what it made to descriptor 3; all others are loaded with that file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verifier_app.judge.protocol import Request


def no_packages(folders: Sequence[str]) -> list[str]:
    """Of the interpreter's package folders, a program sees nothing."""
    return []


@dataclass(frozen=True)
class Warm:
    """What a template has ready; programs whose needs are equal share one.

    guest: the module of the language's sandboxed half. modules: what its preload imports. environment: more variables,
    as pairs. packages: of the interpreter's package folders, the names that programs see. readable: folders beyond the
    system's that the private root needs. homes: folders that the guest is imported from, if not the judge's own.
    one_process: whether one process runs all tests of a rollout, one after the other.
    """

    guest: str
    modules: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    packages: Callable[[Sequence[str]], list[str]] = field(default=no_packages, compare=False)
    readable: tuple[str, ...] = ()
    homes: tuple[str, ...] = ()
    one_process: bool = False


@dataclass(frozen=True)
class Compiler:
    """Limits of a compiler that runs once for each rollout, in a sandbox of its own, before the first test.

    Seconds are fair time and CPU time; memory is that of its processes and files; most_bytes is the built file's.
    """

    time_limit_s: float
    memory_mb: int
    most_bytes: int


@dataclass(frozen=True)
class Image:
    """What a container image that has Python needs for a language: names of Debian's packages, and of Python's."""

    debian: tuple[str, ...] = ()
    python: tuple[str, ...] = ()


class Language:
    """The judge's half. Stateless: one object serves all requests.

    name: as a request names it. calls: whether it has problems that call a function. semantics: those that it knows.
    own_processes: its programs are processes of their own, no forks of the zygote's interpreter.
    """

    name = ""
    calls = False
    semantics: tuple[str, ...] = ("process",)
    own_processes = True

    def warm(self, request: Request) -> Warm:
        """What the template of this request's zygotes has ready."""
        raise NotImplementedError

    def usual(self) -> Warm:
        """What most of its programs need, to be started before the first of them is there."""
        raise NotImplementedError

    def image(self) -> Image:
        """What an image needs so that its programs can be judged there."""
        return Image()

    def compiler(self) -> Compiler | None:
        """The compiler's limits; None: each zygote compiles the source itself, by its guest's `load`.

        Raises:
            JudgeError: language_missing, with the fix, where this machine has no compiler.
        """
        return None

    def interrupted(self, errors: str) -> bool:
        """Whether a failed compiler's stderr says that one of its processes was killed, as the kernel does when memory
        is short: it runs once more."""
        return False

    def complaint(self, errors: str, last_line: str) -> str:
        """What a person reads of a compiler's output: `errors` is the end of its stderr."""
        return last_line or "the compiler refuses this source"

    def waits_for_input(self, source: str) -> bool:
        """Whether a program may wait for its input with calls that take no file (epoll): it gets a pipe."""
        return "epoll" in source

    def out_of_memory(self, status: int, last_line: str) -> bool:
        """Whether a failed program wanted for memory, by its status (wait4) and its last line of stderr."""
        return False
