"""Languages: the seam, C++ behind it, and what a machine without its compiler answers."""

from __future__ import annotations

import ast
import json
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.compiler import needs_compiler
from tests.support.sources import parsed
from verifier_app import judge as package
from verifier_app.container import judge_all
from verifier_app.judge import Judge, JudgeError, TestStore, loading
from verifier_app.judge.languages.cpp import language as cpp
from verifier_app.judge.languages.cpp.guest import loaded_bytes, lower
from verifier_app.judge.languages.language import Compiler
from verifier_app.judge.pool import JudgePool
from verifier_app.judge.process_io import sealed_file
from verifier_app.judge.protocol import parse_request
from verifier_app.judge.running import Ended, Ran, run_process

SUM = '#include <cstdio>\nint main() { int a, b; scanf("%d %d", &a, &b); printf("%d", a + b); }'
TESTS = [{"input": "1 2\n", "output": "3\n"}, {"input": "5 6\n", "output": "11\n"}, {"input": "0 0\n", "output": "0\n"}]
MESSY = SUM.replace("int a,", 'fclose(fopen("left_behind", "w")); int a,')
BOMB = """
template <int A, int B> struct T { static const long v = T<A - 1, B * 2>::v + T<A - 1, B * 2 + 1>::v; };
template <int B> struct T<0, B> { static const long v = B; };
int main() { return T<26, 0>::v; }
"""


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge() as judge:
        yield judge


def request(code: str = SUM, **fields: Any) -> dict[str, Any]:
    return {"code": code, "language": "cpp", "tests": TESTS, "memory_limit_mb": 256, **fields}


def fault(judge: Judge, **fields: Any) -> JudgeError:
    with pytest.raises(JudgeError) as caught:
        judge.verify(request(**fields))
    return caught.value


@pytest.mark.parametrize("name", ["rust", "", "Python", 3, ["cpp"], {}])
def test_an_unknown_language_is_one_error_that_lists_the_known_ones(name: Any) -> None:
    with pytest.raises(JudgeError, match=r"^bad_request: language: is .*; give one of python, cpp$"):
        parse_request(request(language=name), None)


@pytest.mark.parametrize(
    ("given", "name"), [({}, "python"), ({"language": None}, "python"), ({"language": "cpp"}, "cpp")]
)
def test_no_language_is_python(given: dict[str, Any], name: str) -> None:
    assert parse_request({"code": "", "tests": TESTS} | given, None).language.name == name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fn_name": "f"}, "fn_name: is 'f' with language cpp; leave it out: its programs read standard input"),
        ({"semantics": "official"}, "semantics: is 'official' with language cpp; give process"),
    ],
)
def test_what_a_language_cannot_do_is_a_bad_request(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(JudgeError) as caught:
        parse_request(request(**fields), None)
    assert (caught.value.kind, caught.value.message) == ("bad_request", message)


def test_nothing_outside_the_languages_knows_one_of_them() -> None:
    root = Path(package.__file__).parent
    for path in root.rglob("*.py"):
        if "languages" in path.relative_to(root).parts:
            continue
        for node in ast.walk(parsed(path)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [name for name in names if "languages.python" in name or "languages.cpp" in name], path


@pytest.mark.parametrize("named", ["/nonexistent/g++", "no-such-compiler"])
def test_a_missing_compiler_is_no_verdict_and_names_the_fix(
    judge: Judge, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv("VERIFIER_CXX", named)
    error = fault(judge)
    assert error.kind == "language_missing"
    assert f"VERIFIER_CXX = {named!r} is no program; install g++ or set" in error.message
    (answer,) = judge_all([request()])
    assert (answer["error"]["kind"], "verdict" in answer) == ("language_missing", False)
    assert "On Modal: deploy with VERIFIER_LANGUAGES=python,cpp" in answer["error"]["message"]


@needs_compiler
async def test_a_pool_hands_the_language_on() -> None:
    async with JudgePool(workers=1) as pool:
        assert (await pool.verify(request()))["status"] == "accepted"
        assert (await pool.verify(request("print(3)")))["status"] == "compile_error"


@needs_compiler
def test_several_programs_against_one_stored_set(judge: Judge, tmp_path: Path) -> None:
    store = TestStore(tmp_path)
    found = judge.verify_many(store.put(TESTS), [SUM, "int main() {}", "x"], store, language="cpp")
    assert [one["status"] for one in found] == ["accepted", "wrong_answer", "compile_error"]


@needs_compiler
def test_a_checker_judges_what_a_cpp_program_prints(judge: Judge) -> None:
    code = '#include <cstdio>\nint main() { puts("b\\na"); }'
    tests = [{"input": "", "output": "a\nb\n"}]
    asked = request(code, tests=tests, checker={"name": "any_order_lines"})
    assert judge.verify(asked)["status"] == "accepted"


@needs_compiler
def test_a_program_is_compiled_once_however_many_sandboxes_it_needs(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    build = loading.ProgramLoader._build

    def counted(self: loading.ProgramLoader, compiler: Compiler) -> Any:
        compiled.append(self.request.code)
        return build(self, compiler)

    monkeypatch.setattr(loading.ProgramLoader, "_build", counted)
    verdict = judge.verify(request(MESSY))
    assert (verdict["status"], verdict["passed"], compiled) == ("accepted", 3, [MESSY])


@needs_compiler
@pytest.mark.parametrize(
    ("limits", "code", "message"),
    [
        (Compiler(0.3, 2048, 64 << 20), BOMB, "compiling: stopped after "),
        (Compiler(15.0, 64, 64 << 20), "#include <regex>\n" + SUM, ""),
        (Compiler(15.0, 2048, 1000), SUM, "compiling: more output than the judge reads"),
    ],
    ids=["time", "memory", "size"],
)
def test_the_compiler_has_limits_of_its_own(
    judge: Judge, monkeypatch: pytest.MonkeyPatch, limits: Compiler, code: str, message: str
) -> None:
    monkeypatch.setattr(cpp, "LIMITS", limits)
    verdict = judge.verify(request(code))
    assert (verdict["status"], verdict["ran"], verdict["failed_test"]) == ("compile_error", 0, None)
    assert verdict["message"].startswith(message)
    assert verdict["isolation"]["layers"]


@needs_compiler
def test_a_compiler_whose_sandbox_is_killed_runs_again_and_twice_is_a_fault(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = [False, True]

    def run(*given: Any, **named: Any) -> Ran | None:
        return None if killed.pop() else run_process(*given, **named)

    monkeypatch.setattr(loading, "run_process", run)
    assert judge.verify(request())["status"] == "accepted"
    killed[:] = [True, True]
    assert fault(judge).kind == "sandbox_failed"


@needs_compiler
@pytest.mark.parametrize("ended", [None, Ended(9, 0.0, 0, True, None)], ids=["no core", "killed"])
def test_a_compiler_that_gets_no_core_or_is_killed_again_never_passes(
    judge: Judge, monkeypatch: pytest.MonkeyPatch, ended: Ended | None
) -> None:
    watch: Any = SimpleNamespace(wall_s=150.0, starved_s=149.0, cpu_s=1.0, peak_bytes=0)
    reason = "host_overloaded" if ended is None else None
    monkeypatch.setattr(loading, "run_process", lambda *_, **__: Ran(reason, ended, watch))
    if ended is None:
        assert fault(judge).kind == "host_overloaded"
    else:
        verdict = judge.verify(request())
        assert (verdict["status"], verdict["message"]) == ("compile_error", "the compiler was killed by SIGKILL")


OWN_COMPILER = """#!/bin/sh
exec g++ -DOFFSET=1 "$@"
"""


def own_compiler(folder: Path, script: str, mode: int = 0o755) -> str:
    """A compiler of that text in a folder that only its own prefix opens to others."""
    path = folder / "own" / "bin" / "g++"
    path.parent.mkdir(parents=True)
    path.write_text(script, encoding="utf-8")
    path.chmod(mode)
    return str(path)


@needs_compiler
def test_a_compiler_outside_the_systems_folders_is_seen_in_the_private_root(
    judge: Judge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VERIFIER_CXX", own_compiler(tmp_path, OWN_COMPILER))
    verdict = judge.verify(request(SUM.replace("a + b", "a + b - 1 + OFFSET")))
    assert verdict["status"] == "accepted", verdict["message"]


@needs_compiler
@pytest.mark.skipif(os.geteuid() != 0, reason="without root a program's uid is the judge's own")
def test_a_compiler_that_the_sandbox_cannot_start_is_a_fault_and_no_verdict(
    judge: Judge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VERIFIER_CXX", own_compiler(tmp_path, OWN_COMPILER, 0o700))
    error = fault(judge)
    assert (error.kind, "the compiler does not start: PermissionError" in error.message) == ("sandbox_failed", True)


@pytest.mark.parametrize(
    ("errors", "interrupted"),
    [
        ("x.cpp: note\ng++: fatal error: Killed signal terminated program cc1plus\ncompilation terminated.\n", True),
        ("solution.cpp:1:2: error: #error g++: fatal error: Killed signal terminated program cc1plus\n", False),
        ("g++: fatal error: Killed signal terminated program cc1plus:1:2: error: #error x\n", False),
        ("g++: internal compiler error: Segmentation fault signal terminated program cc1plus\n", False),
    ],
)
def test_a_compiler_that_was_killed_says_so(errors: str, interrupted: bool) -> None:
    assert cpp.Cpp().interrupted(errors) is interrupted


@needs_compiler
def test_a_compiler_whose_process_was_killed_runs_once_more(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = [False, True]

    def interrupted(self: cpp.Cpp, errors: str) -> bool:
        return killed.pop()

    monkeypatch.setattr(cpp.Cpp, "interrupted", interrupted)
    assert judge.verify(request("no program"))["status"] == "compile_error"
    assert killed == [False]  # the second try decides, whatever it says


@needs_compiler
def test_a_built_file_that_cannot_be_started_is_a_fault_and_no_verdict(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "sealed_file", lambda data, name: sealed_file(b"no program", name))
    error = fault(judge)
    assert (error.kind, "the program does not start: OSError" in error.message) == ("sandbox_failed", True)


@needs_compiler
def test_the_first_complaint_of_the_compiler_is_the_message(judge: Judge) -> None:
    message = judge.verify(request("int main() {\n  return x;\n}"))["message"]
    assert message.startswith("solution.cpp:2:10: error: ")
    message = judge.verify(request("int f(); int main() { return f(); }"))["message"]
    assert "undefined reference to `f()'" in message


@needs_compiler
def test_a_failed_test_stops_and_the_given_order_is_kept(judge: Judge) -> None:
    verdict = judge.verify(request('#include <cstdio>\nint main() { puts("11"); }', order=[1, 2, 0]))
    assert [test["index"] for test in verdict["tests"]] == [1, 2]
    assert verdict["failed_test"] == 2


THREADS = """
#include <pthread.h>
#include <cstdio>
void* one(void* n) { return n; }
int main() { pthread_t t[64]; long made = 0; for (auto& each : t) made += !pthread_create(&each, nullptr, one, nullptr);
  for (auto& each : t) pthread_join(each, nullptr); printf("%ld", made); }
"""
LOW_STACK = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_STACK, (256 << 20, 256 << 20))
from verifier_app.judge import Judge
with Judge() as judge:
    print(judge.verify(json.load(sys.stdin))["status"])
"""


@needs_compiler
def test_sixty_four_threads_start_where_the_stack_has_a_hard_limit() -> None:
    given = json.dumps(request(THREADS, tests=[{"input": "", "output": "64"}], memory_limit_mb=64))
    root = Path(package.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", LOW_STACK], input=given, capture_output=True, text=True, cwd=root)
    assert done.stdout == "accepted\n", done.stderr


def test_the_lower_of_two_limits_is_the_one_that_there_is() -> None:
    none = resource.RLIM_INFINITY
    assert [lower(3, 5), lower(none, 5), lower(5, none), lower(none, none)] == [3, 5, 5, none]


def elf(segments: list[tuple[int, int]], size: int = 56) -> bytes:
    """The head of an ELF file with these (kind, bytes of memory) of segments."""
    head = b"\x7fELF\x02\x01" + bytes(26) + struct.pack("<Q", 64) + bytes(14) + struct.pack("<HH", size, len(segments))
    rows = b"".join(struct.pack("<IIQQQQQQ", kind, 0, 0, 0, 0, 0, memory, 0) for kind, memory in segments)
    return head.ljust(64, b"\0") + rows


def test_what_a_file_takes_when_it_is_started_is_read_from_its_segments() -> None:
    assert loaded_bytes(elf([(1, 1000), (6, 77), (1, 8 << 30)])) == 1000 + (8 << 30)
    assert loaded_bytes(elf([])) == 0


@pytest.mark.parametrize(
    "head", [b"", b"#!/bin/sh", b"\x7fELF\x02\x01", elf([(1, 5)])[:80], b"\x7fELF\x01\x01" + bytes(99)]
)
def test_a_head_that_is_none_or_cut_short_counts_nothing(head: bytes) -> None:
    assert loaded_bytes(head) == 0
