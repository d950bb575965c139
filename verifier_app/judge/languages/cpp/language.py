"""C++, the judge's half: g++, found on this machine."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING

from verifier_app.judge.languages.language import Compiler, Image, Language, Warm
from verifier_app.judge.protocol import JudgeError

if TYPE_CHECKING:
    from verifier_app.judge.protocol import Request

GUEST = "verifier_app.judge.languages.cpp.guest"
COMPILER = "VERIFIER_CXX"
"""Environment variable of the judge: the compiler's path, where it is not the g++ of the system's folders."""
SYSTEM = ("/usr", "/bin", "/lib", "/lib64")  # what every private root has
_TELLING = ("error:", "Error:", "undefined reference", "multiple definition")
_KILLED = re.compile(r"^\S+: fatal error: Killed signal terminated program \S+$", re.MULTILINE)
LIMITS = Compiler(time_limit_s=15.0, memory_mb=2048, most_bytes=64 << 20)


def compiler_path() -> str:
    """The compiler, resolved.

    Raises:
        JudgeError: language_missing, with what to install or set.
    """
    named = os.environ.get(COMPILER)
    path = shutil.which(named or "g++", path="/usr/local/bin:/usr/bin:/bin")
    if path is None:
        what = f"{COMPILER} = {named!r} is no program" if named else "no g++ in /usr/local/bin, /usr/bin or /bin"
        fix = f"install g++ or set {COMPILER} to its path. On Modal: deploy with VERIFIER_LANGUAGES=python,cpp"
        raise JudgeError("language_missing", f"language 'cpp': {what}; {fix}")
    return os.path.realpath(path)


class Cpp(Language):
    """C++ as g++ compiles it; see guest.py for the options and what a program meets."""

    name = "cpp"

    def warm(self, request: Request) -> Warm:
        return self.usual()

    def usual(self) -> Warm:
        path = compiler_path()
        prefix = os.path.dirname(os.path.dirname(path))
        outside = not path.startswith(tuple(f"{folder}/" for folder in SYSTEM))
        # one malloc arena: each thread's own would reserve 64 MB of address space
        return Warm(
            GUEST,
            modules=(path,),
            environment=(("MALLOC_ARENA_MAX", "1"),),
            readable=(prefix,) if outside else (),
        )

    def image(self) -> Image:
        return Image(debian=("g++",))

    def compiler(self) -> Compiler:
        compiler_path()
        return LIMITS

    def interrupted(self, errors: str) -> bool:
        return _KILLED.search(errors) is not None

    def complaint(self, errors: str, last_line: str) -> str:
        lines = [line.strip() for line in errors.split("\n") if not line.startswith("collect2:")]
        first = (line for word in _TELLING for line in lines if word in line)
        return next(first, last_line) or "g++ refuses this source"

    def out_of_memory(self, status: int, last_line: str) -> bool:
        return "std::bad_alloc" in last_line
