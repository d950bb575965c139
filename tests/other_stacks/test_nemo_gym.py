"""The forty programs through the server of NeMo-Gym's protocol, as its simple agent speaks it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml
from starlette.testclient import TestClient

from environments.common.errors import ConfigError
from environments.livecode.problems.load import save_problems
from environments.livecode.problems.prompts import messages
from integrations.grading import Judging
from integrations.nemo_gym_server import AGENT, application, main, output_text, row, serve_in_gym
from tests.other_stacks.programs import ANSWERS, FAULT, FAULTY, PROBLEMS, Answer

ALL = [*PROBLEMS, FAULT]


def response(text: str) -> dict[str, Any]:
    """An object of the Responses API as vLLM's server of NeMo-Gym gives it: reasoning, then a message."""
    return {
        "id": "resp_1",
        "object": "response",
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "```python\nprint(0)\n```"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]},
        ],
    }


def body(answer: Answer) -> dict[str, Any]:
    """What the simple agent posts: the row, fields of its own, and the response."""
    problem = next(problem for problem in ALL if problem.id == answer.problem)
    return {**row(problem), "_ng_task_index": 3, "response": response(answer.text)}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(application(ALL, Judging(time_limit_s=2.0, memory_limit_mb=512))) as client:
        yield client


def test_every_answer_gets_its_verdict_and_a_fault_of_ours_is_masked(client: TestClient) -> None:
    assert client.post("/seed_session", json=row(PROBLEMS[0])).json() == {}
    for answer in ANSWERS:
        found = client.post("/verify", json=body(answer)).json()
        reward = 1.0 if answer.status == "accepted" else -1.0
        assert found == {**body(answer), "reward": reward, "mask_sample": False, "status": answer.status}
    masked = client.post("/verify", json=body(FAULTY)).json()
    assert (masked["reward"], masked["mask_sample"], masked["failure_kind"]) == (0.0, True, "verifier_error")
    assert "no verdict" in masked["failure_reason"]
    assert masked["response"] == body(FAULTY)["response"]


def test_a_traced_rollout_reaches_the_same_routes(client: TestClient) -> None:
    found = client.post("/ng-rollout/abc-1/verify", json=body(ANSWERS[0])).json()
    assert found["reward"] == 1.0


def test_a_body_that_is_no_row_is_refused_and_never_scored(client: TestClient) -> None:
    right = body(ANSWERS[0])
    for wrong, said in (
        ([], "the body is a list"),
        ({**right, "problem": "other"}, "problem = 'other': no such id among the 7 served"),
        ({**right, "problem": ["sum"]}, "unhashable"),
        ({**right, "response": {"text": "print(1)"}}, "need an object of the Responses API"),
    ):
        answer = client.post("/verify", json=wrong)
        assert (answer.status_code, said in answer.json()["detail"]) == (422, True), answer.json()
        assert "reward" not in answer.json()
    assert client.post("/verify", content=b"{").status_code == 422


def test_only_the_text_of_messages_is_the_answer() -> None:
    assert output_text(response("a")) == "a"
    parts = [{"type": "output_text", "text": "b"}, {"type": "refusal", "refusal": "no"}]
    call = {"type": "function_call", "name": "verify", "arguments": "{}"}
    assert output_text({"output": [call, {"type": "message", "content": parts}]}) == "b"
    assert output_text({"output": []}) == ""


def test_metrics_leave_masked_samples_out(client: TestClient) -> None:
    samples = [{"reward": 1.0}, {"reward": -1.0}, {"reward": 1.0}, {"reward": 0.0, "mask_sample": True}]
    found = client.post("/aggregate_metrics", json={"verify_responses": samples}).json()
    assert found["key_metrics"] == {"no_verdict": 0.25, "pass@1": pytest.approx(2 / 3)}
    assert client.post("/aggregate_metrics", json={"verify_responses": []}).json()["key_metrics"] == {}


def test_sessions_are_confirmed_and_keep_nothing(client: TestClient) -> None:
    assert client.post("/close_session", json={"resources_session_id": "s", "episode_id": "e"}).json() == {
        "resources_session_id": "s"
    }
    assert client.get("/").json() == {"status": "ok"}
    assert client.get("/reverify_mode").json() == "stateless"


def test_rows_hold_the_chat_and_no_test(tmp_path: Path) -> None:
    save_problems(PROBLEMS, tmp_path / "problems.jsonl")
    assert main(["rows", str(tmp_path / "problems.jsonl"), str(tmp_path / "rows.jsonl"), "coder"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [one["responses_create_params"]["input"] for one in rows] == [messages(problem) for problem in PROBLEMS]
    assert {one["agent_ref"]["name"] for one in rows} == {"coder"}
    assert row(PROBLEMS[0])["agent_ref"] == {"type": "responses_api_agents", "name": AGENT}
    assert all(set(one) == {"responses_create_params", "problem", "agent_ref"} for one in rows)


def test_it_serves_where_nemo_gym_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_problems(PROBLEMS, tmp_path / "problems.jsonl")
    served: dict[str, Any] = {}
    monkeypatch.setattr(uvicorn, "run", lambda app, **where: served.update(where, app=app))
    server = {"entrypoint": "app.py", "host": "10.0.0.1", "port": 7007, "problems": str(tmp_path / "problems.jsonl")}
    whole = {"livecode": {"resources_servers": {"atropos_livecode": server}}, "head_server": {"port": 11000}}
    with pytest.raises(ConfigError, match="are not set"):
        serve_in_gym()
    monkeypatch.setenv("NEMO_GYM_CONFIG_DICT", yaml.safe_dump(whole))
    monkeypatch.setenv("NEMO_GYM_CONFIG_PATH", "livecode")
    serve_in_gym()
    assert (served["host"], served["port"]) == ("10.0.0.1", 7007)
    del server["problems"]
    monkeypatch.setenv("NEMO_GYM_CONFIG_DICT", yaml.safe_dump(whole))
    with pytest.raises(ConfigError, match="needs a server with host, port and problems"):
        serve_in_gym()
    assert main(["serve"]) == 2
