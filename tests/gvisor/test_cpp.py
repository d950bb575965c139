"""C++ inside gVisor: the compiler and what it built, honest and hostile, behind the same layers as Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adversarial.cases import SECRET, Case
from adversarial.cpp_programs import AT_COMPILE_TIME, ATTACKS, HONEST

from tests.gvisor.test_judge import LAYERS
from tests.support.compiler import needs_compiler
from tests.support.gvisor import judged, needs_gvisor
from verifier_app.judge import judging

pytestmark = [needs_gvisor, needs_compiler]
EVERY = {case.name: case for case in [*HONEST, *AT_COMPILE_TIME, *ATTACKS]}
OF_EACH_KIND = [
    *("sum", "a_million_frames", "sixty_four_threads", "socket", "no_program", "segmentation_fault", "busy"),
    *("malloc_and_touch", "static_data", "an_orphan_that_stays"),
]
OWN_ENDS = {  # what this kernel makes of a program otherwise
    # its stack is mapped when a program starts, and has 128 MB at most
    "cpp_a_stack_as_large_as_the_limit": {"runtime_error"},
    # a file of /proc has no size, so the compiler includes nothing
    "cpp_include_of_other_processes": {"wrong_answer", "compile_error"},
    # a fork or a thread costs it tens of milliseconds: time may run out first
    "cpp_fork_bomb": {"runtime_error", "memory_limit_exceeded", "time_limit_exceeded"},
    "cpp_threads_without_end": {"runtime_error", "memory_limit_exceeded", "time_limit_exceeded"},
}


def found(folder: Path, capabilities: str, cases: list[Case]) -> dict[str, Any]:
    """name -> verdict of each case, after a check of its status."""
    requests = {
        case.name: {"code": case.code.replace("JUDGE", judging.__file__), "tests": case.tests, **case.fields}
        for case in cases
    }
    answers = judged(folder, capabilities, requests)
    assert answers["left"] == 0
    verdicts: dict[str, Any] = answers["verdicts"]
    for case in cases:
        verdict = verdicts[case.name]
        assert verdict["status"] in OWN_ENDS.get(case.name, case.statuses), (case.name, verdict)
        assert SECRET not in verdict["message"].partition("expected")[0]
    return verdicts


def test_a_program_of_each_kind_gets_its_verdict_behind_every_layer(tmp_path: Path) -> None:
    verdicts = found(tmp_path, "docker", [EVERY[f"cpp_{name}"] for name in OF_EACH_KIND])
    for verdict in verdicts.values():
        assert (verdict["isolation"]["level"], set(verdict["isolation"]["layers"])) == ("strong", LAYERS["docker"])


@pytest.mark.slow(reason="fifty-six compilers in gVisor take one and a half minutes")
@pytest.mark.parametrize("capabilities", LAYERS)
def test_every_attack_fails_every_honest_program_passes_and_the_judge_is_unharmed(
    tmp_path: Path, capabilities: str
) -> None:
    last = replace(EVERY["cpp_sum"], name="last")
    assert list(found(tmp_path, capabilities, [*EVERY.values(), last])) == [*EVERY, "last"]
