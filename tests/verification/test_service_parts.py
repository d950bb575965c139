"""The service's and Modal's commands by value, in this process: usage, what routes refuse, faults in a container."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import httpx
import modal
import pytest

import verifier_app
from verifier_app import container, modal_app, server
from verifier_app.__main__ import main
from verifier_app.deploy import deploy
from verifier_app.judge import Judge
from verifier_app.judge.store import encode_tests
from verifier_app.server import Service
from verifier_app.settings import ServerSettings
from verifier_app.smoke import smoke

TESTS = [{"input": "1 2\n", "output": "3\n"}]
RIGHT = {"code": "print(sum(map(int, input().split())))", "tests": TESTS}


@pytest.mark.parametrize(("argv", "code"), [([], 2), (["server"], 2), (["deploy", "--env"], 2), (["--help"], 0)])
def test_without_a_command_the_usage_is_shown(capsys: pytest.CaptureFixture[str], argv: list[str], code: int) -> None:
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert (out if code == 0 else err).startswith("usage: atropos verifier serve")
    assert (err if code == 0 else out) == ""


def test_options_may_be_spelled_with_underscores(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[ServerSettings] = []
    monkeypatch.setattr(server, "serve", served.append)
    assert main(["serve", "--require_isolation=strong", "--max_body_mb", "7", "--drain-s=3"]) == 0
    [settings] = served
    assert (settings.require_isolation, settings.max_body_mb, settings.drain_s) == ("strong", 7, 3.0)
    assert (settings.loopback, ServerSettings(host="localhost").loopback) == (True, True)


def test_a_flag_that_is_none_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--no-such-flag", "1"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


async def asked(service: Service, method: str, path: str, **given: Any) -> tuple[int, str, str]:
    """(status, kind, message) of an answer."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service.app()), base_url="http://judge") as client:
        answer = await client.request(method, path, **given)
    error = answer.json()["error"]
    return answer.status_code, error["kind"], error["message"]


async def test_a_service_that_is_stopping_or_full_says_so_before_the_body_is_read() -> None:
    service = Service(ServerSettings(workers=1, queue=1))
    service.taken = 2
    assert await asked(service, "POST", "/verify", content=b"{") == (
        429, "busy", "2 rollouts are running or waiting: try again",
    )  # fmt: skip
    service.draining = True
    assert await asked(service, "POST", "/verify", content=b"{") == (
        503, "closed", "the service is stopping: ask another one",
    )  # fmt: skip


async def test_bodies_together_may_not_exceed_the_rooms_memory() -> None:
    service = Service(ServerSettings(workers=1, queue=0, max_body_mb=1))
    service.arriving = 1 << 20  # one that is being read
    status, kind, message = await asked(service, "POST", "/verify", content=b"{}")
    assert (status, kind) == (429, "busy")
    assert "more bodies are arriving" in message
    assert service.arriving == 1 << 20


async def test_a_set_needs_a_store_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VERIFIER_TESTS_DIR", raising=False)
    data = encode_tests(TESTS)
    sha = hashlib.sha256(data).hexdigest()
    assert await asked(Service(ServerSettings(workers=1)), "PUT", f"/tests/{sha}", content=data) == (
        400, "bad_request", "tests: this service has no store: start it with VERIFIER_TESTS_DIR",
    )  # fmt: skip
    (tmp_path / "file").write_text("no folder")
    service = Service(ServerSettings(workers=1, tests_dir=tmp_path / "file"))
    status, kind, message = await asked(service, "PUT", f"/tests/{sha}", content=data)
    assert (status, kind) == (503, "sandbox_failed")
    assert message == f"{tmp_path / 'file'}: cannot be written (File exists)"


# -- Modal -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The container's store, here in a folder of the test's."""
    monkeypatch.setenv("VERIFIER_TESTS_DIR", str(tmp_path / "kept" / "tests"))
    return tmp_path / "kept"


def _locally(function: Any, *arguments: Any) -> Any:
    with pytest.warns(UserWarning, match="executing locally and will not have access to the mounted Volume"):
        return function.local(*arguments)


def test_the_functions_judge_as_the_judge_does(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    [answer] = _locally(modal_app.verify_many, {"tests": TESTS}, [{"code": RIGHT["code"]}])
    wrong = _locally(modal_app.verify, RIGHT | {"code": "print(4)"})
    assert [one["verdict"]["status"] for one in (answer, wrong)] == ["accepted", "wrong_answer"]
    assert wrong["timeout_s"] is None
    assert os.stat(folder).st_mode & 0o777 == 0o700  # no program under another uid reads the tests


@pytest.mark.usefixtures("folder")
def test_a_container_that_cannot_judge_answers_for_every_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def weak(*_: Any) -> Judge:
        raise OSError("no namespaces")

    monkeypatch.setattr(container, "Judge", weak)
    monkeypatch.setenv("VERIFIER_TIMEOUT_S", "90")
    message = "the container cannot judge: OSError: no namespaces"
    fault = {"error": {"kind": "sandbox_failed", "message": message}, "timeout_s": 90.0}
    assert container.judge_all([RIGHT, RIGHT]) == [fault, fault]


@pytest.mark.usefixtures("folder")
def test_a_fault_that_nobody_foresaw_costs_its_own_program_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge.verify

    def failing(self: Judge, request: dict[str, Any], store: Any = None) -> Any:
        if request["code"] == "bad":
            raise ZeroDivisionError("ours")
        return judge(self, request, store)

    monkeypatch.setattr(Judge, "verify", failing)
    first, second = container.judge_all([RIGHT | {"code": "bad"}, RIGHT])
    assert "ZeroDivisionError" in first["error"]["message"]
    assert second["verdict"]["status"] == "accepted"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (modal.exception.AuthError("token expired"), 2, "no valid account (token expired). Run: modal token new"),
        (modal.exception.NotFoundError("no environment dev"), 2, "error: no environment dev"),
        (modal.exception.InvalidError("too large"), 1, "(InvalidError: too large)"),
    ],
)
def test_what_modal_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int, line: str
) -> None:
    def refuse(**_: Any) -> None:
        raise error

    monkeypatch.setattr(modal_app.app, "deploy", refuse)
    assert deploy("dev") == code
    shown = capsys.readouterr().err.strip()
    assert line in shown
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize("command", [deploy, smoke])
def test_without_modals_package_its_commands_name_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: Any
) -> None:
    monkeypatch.setitem(sys.modules, "modal", None)
    assert command() == 2
    assert capsys.readouterr().err == "error: the package modal is missing. Run: pip install modal\n"


def test_the_package_has_its_app_and_no_other_name() -> None:
    assert verifier_app.app is modal_app.app
    with pytest.raises(AttributeError, match="has no attribute 'apps'"):
        verifier_app.apps  # noqa: B018
