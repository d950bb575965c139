"""Both gradings of one set of generations, and answers from a server that gives text alone."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from environments.common.settings import ConfigError
from environments.livecode.command import run_evaluate
from environments.livecode.config import load_run_config
from environments.livecode.environment import LivecodeEnv
from environments.livecode.evaluation.drawing import Draws
from environments.livecode.evaluation.evaluate import evaluate
from environments.livecode.evaluation.profiles import GradingProfile, grading_profiles
from environments.livecode.evaluation.samples import SampleStore
from environments.livecode.generation.chat_client import ChatClient
from environments.livecode.generation.completions import CompletionClient, SamplingParams
from environments.livecode.generation.vllm_servers import RolloutDeadlineExceeded, ServerRefused
from environments.livecode.pipeline import Pipeline
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.problems.prompts import PromptBuilder
from environments.livecode.verification.local import LocalVerifier
from environments.livecode.verification.own_limits import NOT_THEIRS
from tests.served import Served

NEAR = "```python\nprint('0.33333')\n```"
SLOW = "```python\nimport time\ntime.sleep(1.5)\nprint('0.3333333333')\n```"
EXACT = "```python\nprint('0.3333333333')\n```"
THIRD = Problem(
    id="third",
    source="t",
    kind="stdin",
    statement="Print a third.",
    tests=[TestCase(input="", output="0.3333333333\n")],
)


def test_the_profiles_are_the_published_ones() -> None:
    both = grading_profiles(["livecodebench", "nouscoder"], time_limit_s=1, memory_limit_mb=64, no_memory_limit_mb=9000)
    assert both == [GradingProfile("livecodebench", 6.0, 9000, None), GradingProfile("nouscoder", 15.0, 4096, 1e-4)]
    (own,) = grading_profiles(["run"], time_limit_s=1, memory_limit_mb=64, no_memory_limit_mb=9000)
    assert own.limits == {
        "time_limit_s": 1,
        "memory_limit_mb": 64,
        "decimal_tolerance": None,
        "own_limits": NOT_THEIRS,
    }
    assert [str(one) for one in both] == [
        "livecodebench: 6 s, 9000 MB, exact decimals", "nouscoder: 15 s, 4096 MB, decimals to 0.0001",
    ]  # fmt: skip


def test_the_official_semantics_are_livecodebenchs_alone() -> None:
    names: list[Any] = ["livecodebench", "nouscoder", "run"]
    found = grading_profiles(names, time_limit_s=1, memory_limit_mb=64, no_memory_limit_mb=9000, semantics="official")
    assert [one.limits.get("semantics") for one in found] == ["official", None, None]
    assert str(found[0]) == "livecodebench: 6 s, 9000 MB, exact decimals, official semantics"


async def test_a_profile_with_the_official_semantics_grades_by_them(generation: Any, tokenizer: Any) -> None:
    generation.script = lambda prompt, number: {"text": "```python\nimport os\nos.write(1, b'0.333333')\n```"}
    grading = [
        GradingProfile("nouscoder", 15.0, 512, 1e-4),
        GradingProfile("livecodebench", 15.0, 512, semantics="official"),
    ]
    async with CompletionClient([generation.url]) as client, LocalVerifier(workers=1) as verifier:
        pipeline = Pipeline(
            client=client, verifier=verifier, prompts=PromptBuilder(tokenizer, limit=4000), max_concurrent=1,
            time_limit_s=9, memory_limit_mb=99,
        )  # fmt: skip
        record = await evaluate([THIRD], Draws(1, 0.7, False, 50), pipeline=pipeline, name="set", grading=grading)
    assert record["profiles"]["nouscoder"]["verdicts"] == {"accepted": 1}
    assert record["profiles"]["livecodebench"]["verdicts"] == {"wrong_answer": 1}


def official(folder: Path) -> list[bool]:
    (path,) = folder.glob("*.livecodebench.json")
    return list(json.loads(path.read_text())[0]["graded_list"])


async def test_one_generation_is_graded_by_each_profile(generation: Any, tokenizer: Any, tmp_path: Path) -> None:
    answers = [NEAR, SLOW, EXACT, "no program"]
    generation.script = lambda prompt, number: {"text": answers[number]}
    grading = [GradingProfile("nouscoder", 15.0, 512, 1e-4), GradingProfile("livecodebench", 0.5, 512)]
    async with CompletionClient([generation.url]) as client, LocalVerifier(workers=1) as verifier:
        pipeline = Pipeline(
            client=client, verifier=verifier, prompts=PromptBuilder(tokenizer, limit=4000), max_concurrent=1,
            time_limit_s=9, memory_limit_mb=99,
        )  # fmt: skip
        record = await evaluate(
            [THIRD], Draws(4, 0.7, False, 50), pipeline=pipeline, name="set",
            samples=SampleStore(tmp_path, "set", {}), grading=grading,
        )  # fmt: skip
    assert len(generation.requests) == 4
    assert (record["pass_at_1"], record["profile"]) == (0.75, str(grading[0]))
    lax, strict = record["profiles"]["nouscoder"], record["profiles"]["livecodebench"]
    assert lax["verdicts"] == {"accepted": 3, "no_code": 1}
    assert strict["verdicts"] == {"wrong_answer": 1, "time_limit_exceeded": 1, "accepted": 1, "no_code": 1}
    assert (lax["pass_at_1"], strict["pass_at_1"]) == (0.75, 0.25)
    assert strict["pass_at_k"] == pytest.approx({"1": 0.25, "2": 0.5, "3": 0.75, "4": 1.0})
    assert sum(official(tmp_path)) == 1  # the official grader's


class Chat:
    """OpenAI's chat route as a server without token ids has it."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[str | None] = []
        self.replies: list[tuple[int, Any]] = []
        self.text, self.reason = EXACT, "stop"
        self.models: list[dict[str, Any]] = [{"id": "gpt", "max_model_len": None}]

    async def chat(self, request: Request) -> Response:
        self.requests.append(await request.json())
        self.headers.append(request.headers.get("authorization"))
        if self.replies:
            status, body = self.replies.pop(0)
            return JSONResponse(body, status)
        message = {"role": "assistant", "content": self.text}
        choice = {"index": 0, "message": message, "finish_reason": self.reason}
        return JSONResponse({"choices": [choice], "usage": {"completion_tokens": 17}})

    async def list(self, request: Request) -> Response:
        return JSONResponse({"data": self.models})


@pytest.fixture
def chat() -> Iterator[tuple[Chat, str]]:
    answering = Chat()
    routes = [Route("/v1/chat/completions", answering.chat, methods=["POST"]), Route("/v1/models", answering.list)]
    served = Served(Starlette(routes=routes))
    yield answering, served.url
    served.stop()


async def test_a_server_that_gives_text_alone_is_evaluated(
    chat: tuple[Chat, str], model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, url = chat
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    problems = tmp_path / "problems.jsonl"
    problems.write_text(
        json.dumps(
            {"question_id": "third", "question_content": "Print a third.", "starter_code": "", "metadata": "{}",
             "public_test_cases": json.dumps([{"input": "", "output": "0.3333333333", "testtype": "stdin"}]),
             "private_test_cases": "[]", "platform": "atcoder", "difficulty": "easy",
             "contest_date": "2025-01-01T00:00:00", "question_title": "t", "contest_id": "c"}
        )
    )  # fmt: skip
    config = load_run_config(
        None,
        ["--model", str(model_dir), "--servers", url, "--env.run_dir", str(tmp_path / "run"),
         "--evaluation.problems", str(problems), "--evaluation.n", "2", "--evaluation.greedy", "false",
         "--evaluation.route", "chat", "--evaluation.served_model", "gpt", "--env.verifier_workers", "1",
         "--evaluation.temperature", "0.6", "--evaluation.top_p", "0.95"],
    )  # fmt: skip
    (record,) = await run_evaluate(LivecodeEnv, config)
    assert (record["pass_at_1"], record["total"], record["mean_length"]) == (1.0, 2, 17)
    first = server.requests[0]
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert "### Question:\nPrint a third." in first["messages"][1]["content"]
    assert (first["model"], first["temperature"], first["top_p"], first["max_tokens"]) == ("gpt", 0.6, 0.95, 2048)
    assert first["seed"] != server.requests[1]["seed"]
    assert set(server.headers) == {"Bearer sk-secret"}
    written = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert b"sk-secret" not in written


async def test_a_busy_server_is_asked_again_and_a_refusal_ends(chat: tuple[Chat, str], tokenizer: Any) -> None:
    server, url = chat
    prompt = PromptBuilder(tokenizer, limit=4000)(THIRD)
    async with ChatClient(url + "/v1", "gpt", deadline_s=20) as client:
        server.replies = [(429, {}), (503, {})]
        assert (await client.answer(prompt, SamplingParams(9, 0.5))).text == EXACT
        assert client.counters.resubmitted_failure == 2
        server.replies = [(400, {"error": "bad temperature"})]
        with pytest.raises(ServerRefused, match=r"status 400: .*bad temperature"):
            await client.answer(prompt, SamplingParams(9, 0.5))
    async with ChatClient(url, "gpt", deadline_s=0.3) as client:
        server.replies = [(503, {})] * 9
        with pytest.raises(RolloutDeadlineExceeded, match=r"within 0\.3 s: status 503"):
            await client.answer(prompt, SamplingParams(9, 0.5))


async def test_a_chat_server_that_cannot_serve_the_run_is_told_before_it_begins(chat: tuple[Chat, str]) -> None:
    server, url = chat
    async with ChatClient(url.replace("//", "//user:hidden@"), "other") as client:
        with pytest.raises(ServerRefused, match=r"served_model other: .* serves gpt") as refused:
            await client.check(context=100)
        assert "hidden" not in str(refused.value)
    server.models = [{"id": "gpt", "max_model_len": 50}]
    async with ChatClient(url, "gpt") as client:
        with pytest.raises(ServerRefused, match=r"at most 50 tokens, env\.context is 100"):
            await client.check(context=100)


async def test_reasoning_in_the_text_is_left_out_of_the_program(generation: Any, tokenizer: Any) -> None:
    class Answers:
        text = ""

        async def answer(self, prompt: Any, sampling: SamplingParams) -> Any:
            from environments.livecode.generation.completions import Completion

            return Completion(array("i"), array("d"), "stop", [], 0.0, text=self.text, tokens=3)

    answers = Answers()
    async with LocalVerifier(workers=1) as verifier:
        pipeline = Pipeline(
            client=answers, verifier=verifier, prompts=PromptBuilder(tokenizer, limit=4000), max_concurrent=1,
            time_limit_s=5, memory_limit_mb=512,
        )  # fmt: skip
        for text in (EXACT, f"a try\n{NEAR}\n</think>\n{EXACT}", f"<think>\n{NEAR}\n</think>\n{EXACT}"):
            answers.text = text
            assert (await pipeline.run(THIRD, SamplingParams(9, 0.0))).status == "accepted"
        answers.text = f"{EXACT}\n</think>\nno program"
        assert (await pipeline.run(THIRD, SamplingParams(9, 0.0))).status == "no_code"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--evaluation.profiles", "run,run"], "one of them twice"),
        (["--evaluation.profiles", "strict"], "evaluation.profiles"),
        (["--evaluation.route", "chat", "--servers", "http://a:1,http://b:1"], "takes one"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(model_dir: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run_config(None, ["--model", str(model_dir), *words])
