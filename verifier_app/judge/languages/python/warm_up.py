"""A rehearsal in the template, so that the interpreter's caches are filled once and not by every test's process.

A fork starts with the template's caches: method lookups, version tags of types, specialized bytecode, argument parsers.
Each entry that a child has to add is a write to a shared page, so a fault and a copy: 22 of the 370 of a trivial test.
"""

from __future__ import annotations

import os
import sys

from verifier_app.judge.languages.python import ending

REHEARSALS = 10  # the interpreter specializes a function's bytecode when it runs the eighth time
_PROGRAM = """
first, *rest = map(int, input().split())
numbers = [int(word) for word in sys.stdin.readline().split()]
count = {}
for line in sys.stdin.read().splitlines():
    count[line] = count.get(line, 0) + 1
def double(number):
    return 2 * number
print(first, double(first), *numbers)
print(f"{first} {len(count)}", " ".join(map(str, sorted(rest))), end="")
sys.stdout.write("\\n")
"""
"""What most programs do, in the ways in which they do it."""


def warm_up() -> None:
    """Run a small program on streams like a test's, several times; sys.stdin and sys.stdout are restored."""
    streams = sys.stdin, sys.stdout
    code = compile(_PROGRAM, "warm_up.py", "exec")
    try:
        for _ in range(REHEARSALS):
            reader, writer = os.pipe()
            os.write(writer, b"1 2 3\n4 5\na\nb\na\n")
            os.close(writer)
            with (
                open(reader, encoding="utf-8", newline="\n") as sys.stdin,
                open(os.devnull, "w", encoding="utf-8", newline="\n") as sys.stdout,
            ):
                exec(code, {"sys": sys})
                ending.flush(sys.stdout)
                ending.flush(sys.stdout.buffer)
    finally:
        sys.stdin, sys.stdout = streams
