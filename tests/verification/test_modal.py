"""Modal: its own client deploys and calls, its own entry point runs in each container; only the cloud is ours."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from environments.common.rate import Rate
from environments.livecode.config import LivecodeEnvConfig
from environments.livecode.problems.load import save_problems
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.verification import remote
from environments.livecode.verification.base import DeadlineExceeded, VerifierError, VerifierUnusable
from environments.livecode.verification.factory import build_verifier
from environments.livecode.verification.group import GroupVerifier
from environments.livecode.verification.http import HttpVerifier
from environments.livecode.verification.judge_requests import judge_request
from environments.livecode.verification.local import LocalVerifier
from environments.livecode.verification.modal import DEPLOY
from tests.support.modal_plane import RESCHEDULES, ControlPlane, control_plane
from tests.verification.conftest import TOKEN, Service
from verifier_app.container import TESTS_DIR
from verifier_app.judge.default_limits import MEMORY_LIMIT_MB
from verifier_app.judge.languages.python.packages import PACKAGES
from verifier_app.judge.store import encode_tests
from verifier_app.smoke import CASES, LIMITS

REPOSITORY = Path(__file__).parents[2]
REQUEST: dict[str, Any] = {
    "code": "print(int(input()) + 1)",
    "tests": [{"input": "1", "output": "2"}, {"input": "7", "output": "8"}],
}
VARIABLES = {"MODAL_TOKEN_ID": "ak-test", "MODAL_TOKEN_SECRET": "as-test", "MODAL_CONFIG_PATH": "/nonexistent"}


def run(plane: ControlPlane, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command of this environment, pointed at the control plane, in the repository's root."""
    direct = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment = direct | VARIABLES | {"MODAL_SERVER_URL": plane.url} | variables
    program = Path(sys.executable).with_name(command[0])
    return subprocess.run(
        [program, *command[1:]],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with the app deployed by the documented command."""
    with control_plane(tmp_path_factory.mktemp("modal")) as plane:
        done = run(plane, "modal", "deploy", "-m", "verifier_app")
        assert done.returncode == 0, done.stderr
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
                patch.delenv(name)
            for name, value in (VARIABLES | {"MODAL_SERVER_URL": plane.url}).items():
                patch.setenv(name, value)
            from modal.client import _Client

            _Client._set_env_client(None)  # this process may have one of another plane
            yield plane


@pytest.fixture(autouse=True)
def _clean(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BACKOFF_S", (0.01, 0.05))
    plane.faults.clear()
    plane.most_in_flight = 0


def modal_verifier(**options: Any) -> Any:
    config = LivecodeEnvConfig(verifier="modal", verifier_deadline_s=60, **options)
    return build_verifier(config)


def definition(plane: ControlPlane, name: str) -> Any:
    return plane.functions[plane.published[plane.apps["livecode-verifier"]][name]]


# -- What is deployed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["verify", "verify_many"])
def test_a_container_takes_one_call_is_walled_in_and_answers_in_cbor(plane: ControlPlane, name: str) -> None:
    from modal_proto import api_pb2

    function = definition(plane, name)
    assert function.single_use_containers
    assert function.max_concurrent_inputs in (0, 1)
    assert function.block_network
    assert function.untrusted  # restrict_modal_access
    assert list(function.supported_output_formats) == [api_pb2.DATA_FORMAT_CBOR]
    assert function.resources.memory_mb_max > MEMORY_LIMIT_MB
    assert function.resources.memory_mb < function.resources.memory_mb_max
    assert function.resources.milli_cpu_max > 0
    assert function.retry_policy.retries == 0  # the caller tries again, and counts
    (volume,) = function.volume_mounts
    assert (volume.mount_path, volume.read_only) == (TESTS_DIR, True)
    assert TESTS_DIR.startswith("/root/")


def test_the_containers_see_the_verifiers_sources_and_nothing_else_of_the_project(plane: ControlPlane) -> None:
    function = definition(plane, "verify")
    mounted = {file.filename for mount in function.mount_ids for file in plane.mounts[mount]}
    package = REPOSITORY / "verifier_app"
    needed = [
        *(package / "judge").rglob("*.py"),
        *(package / f"{name}.py" for name in ("__init__", "container", "modal_app")),
    ]
    assert mounted == {f"/root/{path.relative_to(REPOSITORY)}" for path in needed}
    lines = [line for image in plane.images.values() for line in image.dockerfile_commands]
    assert f"FROM python:{sys.version_info.major}.{sys.version_info.minor}-slim-bookworm" in lines
    assert not any("apt" in line or "gcc" in line for line in lines), lines  # no compiler for programs
    (installed,) = [line for line in lines if "==" in line]
    assert installed.split()[-len(PACKAGES) :] == [f"{name}=={metadata.version(name)}" for name in PACKAGES]


def test_the_deploying_commands_settings_become_the_definition(tmp_path: Path) -> None:
    with control_plane(tmp_path) as plane:
        done = run(
            plane, "modal", "deploy", "-m", "verifier_app",
            VERIFIER_APP="mine", VERIFIER_VOLUME="sets", VERIFIER_MAX_CONTAINERS="40", VERIFIER_BUFFER_CONTAINERS="4",
            VERIFIER_MIN_CONTAINERS="2", VERIFIER_MEMORY_LIMIT_MB="8192", VERIFIER_TIMEOUT_S="1200",
            VERIFIER_LANGUAGES="python, cpp",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        function = plane.functions[plane.published[plane.apps["mine"]]["verify"]]
    pool = function.autoscaler_settings
    assert (pool.min_containers, pool.max_containers, pool.buffer_containers) == (2, 40, 4)
    assert (function.resources.memory_mb_max, function.timeout_secs) == (8192, 1200)
    assert list(plane.volumes) == ["sets"]
    (installed,) = [
        line for image in plane.images.values() for line in image.dockerfile_commands if "apt-get in" in line
    ]
    assert installed.split()[-1] == "g++"


def test_the_command_without_a_flag_deploys_the_same_definition_by_the_same_settings(tmp_path: Path) -> None:
    found = []
    for number, command in enumerate((["modal", "deploy", "-m"], ["python", "-m"])):
        with control_plane(tmp_path / str(number)) as plane:
            words = [*command, "verifier_app", *(["deploy"] if number else [])]
            done = run(plane, *words, VERIFIER_APP="mine", VERIFIER_MAX_CONTAINERS="40")
            assert done.returncode == 0, done.stderr
            published = plane.published[plane.apps["mine"]]
            functions = {name: plane.functions[published[name]] for name in published}
            for function in functions.values():
                for numbered in ("mount_ids", "image_id", "object_dependencies", "volume_mounts"):
                    function.ClearField(numbered)
            found.append(functions)
            refused = run(plane, *words, VERIFIER_CPU="abc")
            assert refused.returncode != 0
            assert "VERIFIER_CPU = 'abc': " in refused.stderr
    assert found[0].keys() == found[1].keys() == {"verify", "verify_many"}
    assert found[0] == found[1]


def test_the_literal_command_is_answered_with_the_one_to_run(plane: ControlPlane) -> None:
    for words in (["modal", "deploy", "verifier_app"], ["modal", "deploy", "verifier_app/"]):
        done = run(plane, *words)
        assert done.returncode == 1
        assert "modal deploy -m" in re.sub(r"\s+", " ", done.stderr + done.stdout)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"VERIFIER_MEMORY_LIMIT_MB": "4096"}, "the container must hold more: give at least 5120"),
        ({"VERIFIER_MAX_CONTAINERS": "many"}, "VERIFIER_MAX_CONTAINERS = 'many': "),
        ({"VERIFIER_MIN_CONTAINERS": "9", "VERIFIER_MAX_CONTAINERS": "3"}, "min_containers 9: above max_containers 3"),
        ({"VERIFIER_APP": "a b"}, "VERIFIER_APP = 'a b': "),
        ({"VERIFIER_LANGUAGES": "python,sh"}, "VERIFIER_LANGUAGES = 'python,sh': 'sh': an image has python, cpp; give"),
        ({"VERIFIER_LANGUAGES": "cpp"}, "VERIFIER_LANGUAGES = 'cpp': without python, which checkers and"),
    ],
)
def test_a_wrong_setting_is_one_line_and_nothing_is_deployed(
    tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    with control_plane(tmp_path) as plane:
        done = run(plane, "modal", "deploy", "-m", "verifier_app", **settings)
        assert done.returncode != 0
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert not plane.functions


def test_neither_the_judge_nor_the_environment_needs_modal() -> None:
    code = (
        "import sys; sys.modules['modal'] = None\n"
        "import verifier_app.judge, environments.livecode.environment\n"
        "from environments.livecode.verification.factory import build_verifier\n"
        "from environments.livecode.config import LivecodeEnvConfig\n"
        "build_verifier(LivecodeEnvConfig())\n"
        "try: build_verifier(LivecodeEnvConfig(verifier='modal'))\n"
        "except Exception as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert "the package modal is missing. Run: pip install modal" in done.stdout, done.stderr


# -- Verdicts -----------------------------------------------------------------------------------------------


async def test_the_same_verdict_here_over_http_and_on_modal(plane: ControlPlane, service: Service) -> None:
    requests = [{"code": case.code, **LIMITS, "time_limit_s": 1.0} for case in CASES]
    found: dict[str, list[tuple[str, Any]]] = {}
    makers: dict[str, Callable[[], Any]] = {
        "local": lambda: LocalVerifier(workers=1),
        "http": lambda: HttpVerifier([service.url], token=TOKEN, concurrency=1, deadline_s=60),
        "modal": lambda: modal_verifier(verifier_concurrency=2),
    }
    for name, make in makers.items():
        async with make() as verifier:
            verdicts = await asyncio.gather(*(verifier.verify(request) for request in requests))
        found[name] = [(verdict["status"], verdict["failed_test"]) for verdict in verdicts]
    assert found["http"] == found["local"]
    assert found["modal"] == found["local"]
    for case, (status, _) in zip(CASES, found["local"], strict=True):
        assert status in case.statuses, case.name


async def test_every_rollout_has_a_container_of_its_own_and_never_more_than_allowed(plane: ControlPlane) -> None:
    before = plane.started
    async with modal_verifier(verifier_concurrency=2) as verifier:
        verdicts = await asyncio.gather(*(verifier.verify(REQUEST) for _ in range(5)))
    assert [verdict["status"] for verdict in verdicts] == ["accepted"] * 5
    assert plane.started - before == 5 + verifier.causes.total(), (verifier.causes, plane.died)
    assert plane.most_in_flight == 2


async def test_the_rollouts_of_a_group_share_one_container_when_it_is_asked_for(plane: ControlPlane) -> None:
    problem = Problem(
        id="p",
        source="t",
        kind="stdin",
        statement="s",
        tests=[TestCase(input="1", output="2"), TestCase(input="7", output="8")],
    )
    codes = ["print(int(input()) + 1)", "print(2)", "def", "print(int(input()) + 1)"]
    before = plane.started
    async with modal_verifier(verifier_strategy="problem") as verifier:
        group = GroupVerifier(verifier.verify_many, len(codes))
        verdicts = await asyncio.gather(
            *(
                group.verify(judge_request(problem, code, time_limit_s=5, memory_limit_mb=512, order=[1, 0]))
                for code in codes
            )
        )
    assert [verdict["status"] for verdict in verdicts] == ["accepted", "wrong_answer", "compile_error", "accepted"]
    assert verdicts[1]["failed_test"] == 1
    assert plane.started - before == 1 + verifier.causes.total(), (verifier.causes, plane.died)


# -- Large test sets ----------------------------------------------------------------------------------------


def large_problem(seed: str) -> Problem:
    tests = [TestCase(input=f"{number}\n" + seed * 400_000, output=str(number + 1)) for number in range(3)]
    return Problem(id=f"large-{seed}", source="t", kind="stdin", statement="s", tests=tests)


async def test_a_large_set_travels_once_whoever_needs_it_first(plane: ControlPlane) -> None:
    request = judge_request(large_problem("#"), REQUEST["code"], time_limit_s=5, memory_limit_mb=512)
    before = plane.received_bytes
    async with modal_verifier() as verifier:
        verdicts = await asyncio.gather(*(verifier.verify(request) for _ in range(3)))
        again = await verifier.verify(request)
    assert [verdict["passed"] for verdict in [*verdicts, again]] == [3] * 4
    size = len(encode_tests(request["tests"]))
    assert size <= plane.received_bytes - before < size + 100_000


async def test_no_input_travels_as_a_blob_which_a_container_without_a_network_cannot_fetch(plane: ControlPlane) -> None:
    tests = [TestCase(input=f"{number}\n" + "#" * 300_000, output=str(number + 1)) for number in range(3)]
    middling = Problem(id="middling", source="t", kind="stdin", statement="s", tests=tests)  # below the bound alone
    codes = [f"print(int(input()) + 1) #{'x' * 700_000}{number}" for number in range(4)]
    codes += ["print(0)", "#" * 2_000_000]
    requests = [judge_request(middling, code, time_limit_s=5, memory_limit_mb=512) for code in codes]
    before, started = plane.seen["BlobGet"], plane.started
    async with modal_verifier(verifier_strategy="problem") as verifier:
        *verdicts, oversized = await verifier.verify_many(requests)
        alone = await verifier.verify(
            judge_request(middling, codes[0] + "\u4e00" * 200_000, time_limit_s=5, memory_limit_mb=512)
        )
        with pytest.raises(VerifierError, match="2000009 bytes; a call to Modal takes"):
            await verifier.verify(requests[-1])
    assert [verdict["status"] for verdict in verdicts] == ["accepted"] * 4 + ["wrong_answer"]
    assert isinstance(oversized, VerifierError)
    assert alone["status"] == "accepted"
    assert plane.seen["BlobGet"] == before
    assert plane.started - started > 3  # two programs a call, the first calls once more with the set


def test_data_push_uploads_each_large_set_once(plane: ControlPlane, tmp_path: Path) -> None:
    problems = [large_problem("a"), large_problem("b"), large_problem("a").model_copy(update={"id": "twin"})]
    small = Problem(id="s", source="t", kind="stdin", statement="s", tests=[TestCase(input="1", output="2")])
    path = tmp_path / "problems.jsonl"
    save_problems([*problems, small], path)
    first = run(plane, "atropos", "data", "push", "--problems", str(path))
    assert first.returncode == 0, first.stderr
    assert "2 test sets above 1 MiB, 0 were there, 2 sent" in first.stdout
    second = run(plane, "atropos", "data", "push", "--problems", str(path))
    assert "2 test sets above 1 MiB, 2 were there, 0 sent" in second.stdout
    (data, _) = (encode_tests([test.model_dump() for test in problem.tests]) for problem in problems[:2])
    sha = hashlib.sha256(data).hexdigest()
    assert (plane.volume_path(plane.volumes["livecode-tests"]) / sha[:2] / sha).read_bytes() == data
    third = run(plane, "atropos", "data", "push", "--problems", str(path), "--to", str(tmp_path / "sets"))
    assert "0 were there, 2 sent" in third.stdout
    assert (tmp_path / "sets" / sha[:2] / sha).read_bytes() == data
    refused = run(plane, "atropos", "data", "push", "--problems", str(path), MODAL_TOKEN_SECRET="wrong")
    assert refused.returncode == 2
    assert "Run: modal token new" in refused.stderr.replace("\n", " ")


async def test_a_damaged_set_is_an_error_with_its_name_and_no_verdict(plane: ControlPlane) -> None:
    request = judge_request(large_problem("%"), REQUEST["code"], time_limit_s=5, memory_limit_mb=512)
    async with modal_verifier() as verifier:
        assert (await verifier.verify(request))["passed"] == 3
        sha = hashlib.sha256(encode_tests(request["tests"])).hexdigest()
        (plane.volume_path(plane.volumes["livecode-tests"]) / sha[:2] / sha).write_bytes(b"[]")
        with pytest.raises(VerifierError, match=f"test_set_corrupt.*{sha}"):
            await verifier.verify(request)


# -- Faults -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "cause"),
    [("resource_exhausted", "ResourceExhaustedError"), ("timeout", "FunctionTimeoutError"),
     ("internal", "InternalFailure"), ("lost", "RemoteError"), ("aborted", "ConflictError")],
)  # fmt: skip
async def test_what_modal_refuses_or_loses_is_asked_again_and_counted_by_cause(
    plane: ControlPlane, fault: str, cause: str
) -> None:
    plane.faults.append(fault)
    async with modal_verifier() as verifier:
        assert (await verifier.verify(REQUEST))["status"] == "accepted"
    assert verifier.causes == {cause: 1}


async def test_every_try_waits_for_a_turn_to_start_a_container_and_shards_share_the_rate(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    rates: list[float] = []

    async def turn(rate: Rate) -> None:
        waited.append(plane.seen["calls"])

    def made(rate: Rate, per_s: float) -> None:
        rates.append(per_s)

    monkeypatch.setattr(Rate, "__init__", made)
    monkeypatch.setattr(Rate, "turn", turn)
    before = plane.seen["calls"]
    plane.faults.extend(["lost", "timeout"])
    async with modal_verifier(verifier_starts_per_s=12.0, shard="1/3") as verifier:
        assert (await verifier.verify(REQUEST))["status"] == "accepted"
        plane.faults.append("internal")
        await verifier.verify_many([REQUEST, REQUEST])
    assert waited == [before + number for number in range(5)]  # one before each call, none twice
    assert plane.seen["calls"] == before + 5
    assert rates == [4.0]


@pytest.mark.parametrize(
    ("fault", "command"),
    [("not_found", DEPLOY), ("unauthenticated", "modal token new"), ("unimplemented", "pip install -U modal")],
)
async def test_what_every_call_would_meet_ends_the_run_with_the_command_to_run(
    plane: ControlPlane, fault: str, command: str
) -> None:
    plane.faults.append(fault)
    async with modal_verifier() as verifier:
        with pytest.raises(VerifierUnusable, match=f"Run: {command}|: {command}"):
            await verifier.verify(REQUEST)
    assert not verifier.causes


async def test_a_container_passes_the_self_test_and_says_when_calls_end(plane: ControlPlane) -> None:
    async with modal_verifier() as verifier:
        await verifier.self_test()
    assert verifier.call_s == definition(plane, "verify").timeout_secs


async def test_a_host_without_strong_isolation_ends_the_run_with_the_reason(plane: ControlPlane) -> None:
    plane.denied = ("unshare", "setuid", "landlock")
    try:
        async with modal_verifier() as verifier:
            with pytest.raises(VerifierUnusable, match=r"weak_isolation: .*strong isolation is required.*signal"):
                await verifier.self_test()
    finally:
        plane.denied = ()


async def test_a_language_that_the_image_lacks_ends_the_run_with_the_command_at_its_first_program(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plane.variables, "VERIFIER_CXX", "no-compiler")
    before = plane.started
    async with modal_verifier() as verifier:
        await verifier.self_test()
        with pytest.raises(VerifierUnusable, match=r"language_missing: .* deploy with VERIFIER_LANGUAGES=python,cpp"):
            await verifier.verify(REQUEST | {"code": "int main() {}", "language": "cpp"})
    assert (plane.started - before, verifier.causes) == (3, {})


@pytest.mark.parametrize("fault", ["unavailable", "killed", "slow_start"])
async def test_what_modal_mends_itself_is_a_verdict(plane: ControlPlane, fault: str) -> None:
    plane.faults.append(fault)
    async with modal_verifier() as verifier:
        assert (await verifier.verify(REQUEST))["status"] == "accepted"
    assert not verifier.causes


async def test_a_result_that_is_no_verdict_is_never_a_score(plane: ControlPlane) -> None:
    plane.faults.append("garbage")
    async with modal_verifier() as verifier:
        with pytest.raises(VerifierError, match="an answer without a verdict"):
            await verifier.verify(REQUEST)


async def test_modal_away_is_no_verdict_in_time_and_no_score(plane: ControlPlane) -> None:
    plane.faults.extend(["resource_exhausted"] * 10_000)
    verifier = build_verifier(LivecodeEnvConfig(verifier="modal", verifier_deadline_s=0.5))
    async with verifier:
        with pytest.raises(DeadlineExceeded, match=r"no verdict within 0\.5 s: modal: ResourceExhaustedError"):
            await verifier.verify(REQUEST)


async def test_a_group_whose_container_dies_is_judged_again_and_only_what_has_no_verdict(plane: ControlPlane) -> None:
    plane.faults.extend(["lost", "timeout"])
    before = plane.started
    async with modal_verifier(verifier_strategy="problem") as verifier:
        verdicts = await verifier.verify_many([REQUEST, REQUEST | {"code": "print(0)"}])
    assert [verdict["status"] for verdict in verdicts] == ["accepted", "wrong_answer"]
    assert verifier.causes == {"RemoteError": 1, "FunctionTimeoutError": 1}
    assert plane.started == before + RESCHEDULES + 1 + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modal_app": "other"}, r"no such app. Run: VERIFIER_APP=other modal deploy -m verifier_app"),
        pytest.param(  # slow: ten seconds of the client's own retries
            {"modal_environment": "dev"},
            r"no such app in environment dev. Run: modal deploy -m verifier_app --env dev",
            marks=pytest.mark.slow,
        ),
    ],
)
async def test_an_unknown_app_or_environment_names_the_command_to_run(
    plane: ControlPlane, options: dict[str, str], message: str
) -> None:
    with pytest.raises(VerifierError, match=message):
        async with modal_verifier(**options):
            pass


def test_an_unknown_account_names_the_command_to_run(plane: ControlPlane) -> None:
    # in a process of its own: Modal's client of this one keeps its credentials
    code = (
        "import asyncio\n"
        "from environments.livecode.config import LivecodeEnvConfig\n"
        "from environments.livecode.verification.factory import build_verifier\n"
        "verifier = build_verifier(LivecodeEnvConfig(verifier='modal'))\n"
        "try: asyncio.run(verifier.__aenter__())\n"
        "except Exception as error: print(error)\n"
    )
    done = run(plane, "python", "-c", code, MODAL_TOKEN_SECRET="wrong")
    assert re.search(r"no valid account .*Run: modal token new", done.stdout), done.stdout + done.stderr


def test_the_smoke_test_judges_prints_and_removes_the_app(plane: ControlPlane) -> None:
    done = run(plane, "python", "-m", "verifier_app", "smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every program got what it deserves" in done.stdout
    assert "isolation: " in done.stdout
    assert "USD at 1.31e-05 a core-second" in done.stdout
    assert len(plane.stopped) == 1


def test_no_container_outlives_its_call(plane: ControlPlane) -> None:
    deadline = time.monotonic() + 20
    while plane.running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert plane.running == 0
