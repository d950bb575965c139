"""Servers that are busy, gateways that answer for them, and proxies on the way: no rollout and no run is lost."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from environments.common.http_clients import LONGEST_WAIT_S, pause_s, remote_client, whole
from environments.common.settings import ConfigError
from environments.livecode.atropos_compat import AtroposError, CompatBaseEnv
from environments.livecode.generation.chat_client import ChatClient
from environments.livecode.generation.completions import CompletionClient, SamplingParams
from environments.livecode.generation.vllm_servers import ServerRefused
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.problems.prompts import PromptBuilder
from environments.livecode.records.group_records import append_jsonl
from environments.livecode.verification.http import HttpVerifier
from tests.livecode.conftest import Generation
from tests.served import Served

SAMPLING = SamplingParams(max_new_tokens=50, temperature=0.7)
PROBLEM = Problem(id="s", source="t", kind="stdin", statement="Add.", tests=[TestCase(input="1\n", output="2\n")])
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


def message(text: Any = "fine", **fields: Any) -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        **fields,
    }


class Gateway:
    """Gives each of `replies` once, by whatever route, then hands on to `app`."""

    def __init__(self, app: Any = None) -> None:
        self.app = app
        self.replies: list[Response] = []
        self.asked: list[tuple[str, float]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.asked.append((scope["path"], time.monotonic()))
            if self.replies:
                await self.replies.pop(0)(scope, receive, send)
                return
        await self.app(scope, receive, send)


@pytest.fixture
def gateway() -> Iterator[Any]:
    async def chat(_: Request) -> Response:
        return JSONResponse(message())

    stand_in: Any = Gateway(Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])]))
    served = Served(stand_in)
    stand_in.url = served.url
    yield stand_in
    served.stop()


@pytest.fixture
def before_vllm(tokenizer: Any) -> Iterator[Any]:
    stand_in: Any = Gateway(Generation(tokenizer).app())
    served = Served(stand_in)
    stand_in.url = served.url
    yield stand_in
    served.stop()


def status(code: int, **headers: str) -> Response:
    return JSONResponse(
        {"error": {"message": "slow down"}}, code, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


@pytest.mark.parametrize("code", [408, 409, 425, 429, 503])
async def test_a_token_server_that_is_busy_is_asked_again(before_vllm: Any, code: int) -> None:
    before_vllm.replies = [status(code), status(code)]
    async with CompletionClient([before_vllm.url]) as client:
        assert (await client.generate([1], SAMPLING)).finish_reason == "stop"
        assert client.counters.resubmitted_failure == 2


async def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(before_vllm: Any) -> None:
    before_vllm.replies = [status(429, Retry_After="1")]
    async with CompletionClient([before_vllm.url]) as client:
        await client.generate([1], SAMPLING)
    (_, first), (_, second) = before_vllm.asked
    assert second - first >= 1.0


async def test_the_checks_before_a_run_wait_for_a_busy_server(before_vllm: Any) -> None:
    before_vllm.replies = [status(429)] * 2
    async with CompletionClient([before_vllm.url]) as client:
        await client.check(context=100)
        before_vllm.replies = [status(200), status(200), status(429), status(408)]  # the last two: /weight_info
        before_vllm.replies[1] = JSONResponse({"data": [{"id": "m"}]})
        await client.check(context=100)


@pytest.mark.parametrize(
    "reply",
    [
        {"error": {"message": "upstream is gone", "code": 502}},
        {"error": "overloaded", "choices": None},
        {"choices": []},
        {"error": {"code": 429, "message": "slow down"}, "choices": []},
    ],
)
async def test_an_answer_without_a_choice_is_asked_for_again(
    gateway: Any, before_vllm: Any, tokenizer: Any, reply: Any
) -> None:
    prompt = PromptBuilder(tokenizer, limit=4000)(PROBLEM)
    gateway.replies, before_vllm.replies = [JSONResponse(reply)], [JSONResponse(reply)]
    async with ChatClient(gateway.url, "gpt", deadline_s=30) as client:
        assert (await client.answer(prompt, SAMPLING)).text == "fine"
    async with CompletionClient([before_vllm.url]) as client:
        assert (await client.generate([1], SAMPLING)).finish_reason == "stop"


@pytest.mark.parametrize(
    "reply",
    [
        {"choices": [None]},
        {"choices": [{"message": None, "finish_reason": "error"}]},
        {"choices": [{"error": {"code": 502, "message": "cut off"}, "message": {"content": "par"}}]},
        {"choices": None, "usage": None},
    ],
)
async def test_a_choice_that_holds_no_answer_is_asked_for_again(gateway: Any, tokenizer: Any, reply: Any) -> None:
    gateway.replies = [JSONResponse(reply), Response('{"choices": [{"mess')]
    async with ChatClient(gateway.url, "gpt", deadline_s=30) as client:
        assert (await client.answer(PromptBuilder(tokenizer, limit=4000)(PROBLEM), SAMPLING)).text == "fine"


async def test_an_error_that_no_try_can_mend_ends_at_once(gateway: Any, before_vllm: Any, tokenizer: Any) -> None:
    refusal = {"error": {"code": 401, "message": "no such key"}}
    gateway.replies, before_vllm.replies = [JSONResponse(refusal)], [JSONResponse(refusal)]
    async with ChatClient(gateway.url, "gpt", deadline_s=30) as client:
        with pytest.raises(ServerRefused, match="no such key"):
            await client.answer(PromptBuilder(tokenizer, limit=4000)(PROBLEM), SAMPLING)
    async with CompletionClient([before_vllm.url]) as client:
        with pytest.raises(ServerRefused, match="no such key"):
            await client.generate([1], SAMPLING)


async def test_a_server_of_another_kind_is_told_after_a_few_answers(
    gateway: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("environments.livecode.generation.chat_client._LONGEST_PAUSE_S", 0.01)
    gateway.replies = [Response("<html>welcome</html>")] * 9
    async with ChatClient(gateway.url, "gpt", deadline_s=60) as client:
        with pytest.raises(ServerRefused, match=r"needs a server with OpenAI's routes"):
            await client.answer(PromptBuilder(tokenizer, limit=4000)(PROBLEM), SAMPLING)
    assert len(gateway.asked) == 5


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (r"a\ud83d", "a�"),
        (r"\ude00b", "�b"),
        (r"\ud83d\ude00", "😀"),
        (r"\ude00\ud83d", "��"),
    ],
)
async def test_half_an_emoji_in_an_answer_can_be_written(
    gateway: Any, tokenizer: Any, tmp_path: Any, text: str, wanted: str
) -> None:
    body = '{"choices": [{"message": {"content": "%s"}, "finish_reason": "stop"}]}' % text  # noqa: UP031
    gateway.replies = [Response(body, media_type="application/json")]
    async with ChatClient(gateway.url, "gpt", deadline_s=30) as client:
        sample = await client.answer(PromptBuilder(tokenizer, limit=4000)(PROBLEM), SAMPLING)
    assert sample.text == whole(wanted) == wanted
    append_jsonl(tmp_path / "lines.jsonl", {"message": "\ud83d of anybody"})
    assert (tmp_path / "lines.jsonl").read_text(encoding="utf-8") == '{"message":"� of anybody"}\n'


async def test_content_in_parts_is_joined(gateway: Any, tokenizer: Any) -> None:
    gateway.replies = [JSONResponse(message([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]))]
    async with ChatClient(gateway.url, "gpt", deadline_s=30) as client:
        assert (await client.answer(PromptBuilder(tokenizer, limit=4000)(PROBLEM), SAMPLING)).text == "ab"


class _Env(CompatBaseEnv):
    def __init__(self, url: str) -> None:
        self.config = type("Config", (), {"rollout_server_url": url})()

    async def evaluate(self, *_: Any, **__: Any) -> None: ...

    async def get_next_item(self) -> None: ...


async def test_a_busy_api_is_asked_again_and_a_conflict_ends() -> None:
    async def fine(_: Request) -> Response:
        return JSONResponse({"fine": True})

    stand_in = Gateway(Starlette(routes=[Route("/status", fine)]))
    served = Served(stand_in)
    try:
        env = _Env(served.url)
        async with env.open_api():
            stand_in.replies = [status(code) for code in (408, 425, 429)] + [status(429, Retry_After="0.4")]
            assert await env.call_api("GET", "/status") == {"fine": True}
            assert stand_in.asked[4][1] - stand_in.asked[3][1] >= 0.4
            stand_in.replies = [status(409)]
            with pytest.raises(AtroposError, match="409"):
                await env.call_api("GET", "/status")
    finally:
        served.stop()


async def test_a_gateway_before_a_judge_is_waited_for() -> None:
    async def fine(_: Request) -> Response:
        return JSONResponse({"verdict": {"status": "accepted", "passed": 1, "total": 1}, "request": None})

    stand_in = Gateway(Starlette(routes=[Route("/verify", fine, methods=["POST"])]))
    served = Served(stand_in)
    stand_in.replies = [Response(status_code=200)] * 2  # the checks at its start
    try:
        async with HttpVerifier([served.url], deadline_s=3) as verifier:
            stand_in.replies = [status(429, Retry_After="1"), Response("<html>", 503, headers={"Retry-After": "1"})]
            with pytest.raises(Exception, match="verdict on another request"):
                await verifier.verify({"code": "x"})
        first, second, third = [when for path, when in stand_in.asked if path == "/verify"][:3]
        assert second - first >= 1.0
        assert third - second >= 1.0
    finally:
        served.stop()


def test_retry_after_is_seconds_or_a_date_within_bounds() -> None:
    soon = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    past = email.utils.format_datetime(datetime.now(UTC) - timedelta(seconds=20), usegmt=True)
    assert pause_s({}, 0.5) == 0.5
    assert pause_s({"retry-after": "3"}, 0.5) == 3
    assert pause_s({"retry-after": "0"}, 0.5) == 0.5
    assert pause_s({"retry-after": "999999"}, 0.5) == LONGEST_WAIT_S
    assert 15 < pause_s({"retry-after": soon}, 0.5) <= 20
    assert [pause_s({"retry-after": told}, 0.5) for told in (past, "soon", "nan", "-4", "")] == [0.5] * 5


@pytest.fixture
def dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("dead_proxy")
async def test_a_proxy_in_the_variables_stands_between_no_parts_of_the_loop(
    gateway: Any, before_vllm: Any, tokenizer: Any
) -> None:
    async with CompletionClient([before_vllm.url]) as client:
        await client.check(context=100)
    async with ChatClient(gateway.url, "gpt", deadline_s=10) as text:
        assert (await text.answer(PromptBuilder(tokenizer, limit=4000)(PROBLEM), SAMPLING)).text == "fine"
    env = _Env(gateway.url)
    async with env.open_api():
        gateway.replies = [JSONResponse({"fine": True})]
        assert await env.call_api("GET", "/status") == {"fine": True}
    gateway.replies = [Response(), Response()]
    async with HttpVerifier([gateway.url]):
        pass


def goes_by_proxy(client: httpx.AsyncClient, url: str) -> bool:
    return client._transport_for_url(httpx.URL(url)) is not client._transport


@pytest.mark.usefixtures("dead_proxy")
async def test_servers_far_away_are_asked_by_the_proxy_unless_no_proxy_names_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    urls = ["http://judge.example.org:8010", "http://10.1.2.3:8010", "http://judge.inside:80", "http://[::1]:8010",
            "http://localhost:8010", "http://[fd00::7]:8010"]  # fmt: skip
    async with remote_client("f", urls) as client:
        assert [goes_by_proxy(client, url) for url in urls] == [True, True, True, False, False, True]
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8,.inside,fd00::7")
    monkeypatch.setenv("no_proxy", "10.0.0.0/8,.inside,fd00::7")
    async with remote_client("f", urls) as client:
        assert [goes_by_proxy(client, url) for url in urls][:5] == [True, False, False, False, False]
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    async with remote_client("f", urls) as client:
        assert not any(goes_by_proxy(client, url) for url in urls)


@pytest.mark.parametrize("value", ["socks5://proxy.example.org:1080", "127.0.0.1:x", "gopher://proxy"])
async def test_a_proxy_that_cannot_be_used_is_one_error(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", value)
    monkeypatch.setenv("http_proxy", value)
    monkeypatch.setenv("ALL_PROXY", value)
    monkeypatch.setenv("all_proxy", value)
    with pytest.raises(ConfigError, match=r"env\.verifier_urls = http://far\.example\.org: the proxy in HTTP_PROXY"):
        remote_client("env.verifier_urls", ["http://far.example.org"])
    async with remote_client("env.verifier_urls", ["http://127.0.0.1:1"]):  # it needs none
        pass
