"""The judge alone inside gVisor: every layer that a container's capabilities allow, and the verdicts of this kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gvisor.programs import FORK_BOMB, PROGRAMS
from tests.support.gvisor import judged, needs_gvisor
from verifier_app.judge import Judge

pytestmark = needs_gvisor
NAMESPACES = {
    "pid_namespace",
    "net_namespace",
    "ipc_namespace",
    "private_root",
    "seccomp",
    "rlimits",
    "no_new_privs",
    "cgroup",
}
LAYERS = {  # root without CAP_SYS_ADMIN makes its namespaces in a user namespace
    "all": NAMESPACES | {"uid"},
    "docker": NAMESPACES | {"uid", "user_namespace"},
    "none": NAMESPACES | {"user_namespace"},
}


@pytest.fixture(scope="module")
def here() -> dict[str, str]:
    with Judge() as judge:
        return {name: judge.verify(request)["status"] for name, request in PROGRAMS.items()}


@pytest.mark.parametrize("capabilities", LAYERS)
def test_programs_get_this_kernels_verdict_behind_every_layer(
    tmp_path: Path, capabilities: str, here: dict[str, str]
) -> None:
    found = judged(tmp_path, capabilities, PROGRAMS)
    assert {name: verdict["status"] for name, verdict in found["verdicts"].items()} == here, found
    isolation = found["verdicts"]["right"]["isolation"]
    assert (isolation["level"], set(isolation["layers"])) == ("strong", LAYERS[capabilities])
    assert isolation["missing"].keys() == {"landlock", "RLIMIT_MSGQUEUE", *({"uid"} - LAYERS[capabilities])}
    assert (found["visitors"], found["left"]) == (0, 0)


@pytest.mark.slow(reason="a fork costs tens of milliseconds in gVisor, and a bomb forks for seconds")
def test_a_fork_bomb_fails_and_the_next_program_is_judged_as_ever(tmp_path: Path) -> None:
    right = PROGRAMS["right"] | {"time_limit_s": 30.0}
    bombs = {"bomb": FORK_BOMB, "right": right, "bomb_again": FORK_BOMB, "right_again": right}
    answers = judged(tmp_path, "docker", bombs)
    assert answers["left"] == 0
    found = answers["verdicts"]
    for name in ("bomb", "bomb_again"):
        assert found[name]["status"] in ("runtime_error", "time_limit_exceeded", "memory_limit_exceeded")
    for name in ("right", "right_again"):
        assert found[name]["status"] == "accepted"
