"""Modal's own entry point inside gVisor, called by Modal's own client: what a container does on Modal."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

import pytest

from environments.livecode.config import LivecodeEnvConfig
from environments.livecode.verification.factory import build_verifier
from tests.gvisor.programs import PROGRAMS
from tests.support.compiler import needs_compiler
from tests.support.gvisor import CAPABILITIES, needs_gvisor
from tests.support.modal_plane import ControlPlane
from tests.verification.test_modal import plane  # noqa: F401
from verifier_app.judge.verdict import Verdict

pytestmark = needs_gvisor


@pytest.fixture
def container(request: pytest.FixtureRequest, plane: ControlPlane) -> Iterator[ControlPlane]:  # noqa: F811
    plane.capabilities = request.param
    yield plane
    plane.capabilities = None


def statuses(verdicts: Iterable[Verdict]) -> list[str]:
    return [verdict["status"] for verdict in verdicts]


@pytest.mark.parametrize("container", CAPABILITIES, indirect=True)
async def test_a_container_passes_the_self_test_and_is_strong(container: ControlPlane) -> None:
    config = LivecodeEnvConfig(verifier="modal", verifier_deadline_s=250, verifier_concurrency=2)
    async with build_verifier(config) as verifier:
        await verifier.self_test()  # type: ignore[attr-defined]
        verdict = await verifier.verify(PROGRAMS["right"])
    assert verdict["isolation"]["level"] == "strong", container.died
    assert "private_root" in verdict["isolation"]["layers"]


@needs_compiler
@pytest.mark.parametrize("container", ["docker"], indirect=True)
async def test_a_container_whose_image_has_a_compiler_judges_cpp(container: ControlPlane) -> None:
    code = "#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b; }"
    config = LivecodeEnvConfig(verifier="modal", verifier_deadline_s=250, verifier_concurrency=2)
    programs = [PROGRAMS["right"] | {"language": "cpp", "code": text} for text in (code, "int main() {}", "print(3)")]
    async with build_verifier(config) as verifier:
        found = statuses(await asyncio.gather(*(verifier.verify(program) for program in programs)))
    assert found == ["accepted", "wrong_answer", "compile_error"], container.died


@pytest.mark.slow(reason="a container for each program")
@pytest.mark.parametrize("container", ["docker"], indirect=True)
async def test_every_program_gets_this_kernels_verdict_in_a_container_of_its_own(container: ControlPlane) -> None:
    async with build_verifier(LivecodeEnvConfig()) as here:
        local = statuses(await asyncio.gather(*(here.verify(program) for program in PROGRAMS.values())))
    config = LivecodeEnvConfig(verifier="modal", verifier_deadline_s=250, verifier_concurrency=2)
    async with build_verifier(config) as verifier:
        found = statuses(await asyncio.gather(*(verifier.verify(program) for program in PROGRAMS.values())))
    assert dict(zip(PROGRAMS, found, strict=True)) == dict(zip(PROGRAMS, local, strict=True)), container.died
