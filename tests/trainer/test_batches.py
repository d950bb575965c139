"""Groups from the wire, and the client against the real Atropos API server."""

from __future__ import annotations

import copy
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import atroposlib.api.server as atropos
import httpx
import pytest
import uvicorn
from starlette.responses import PlainTextResponse

from environments.api_server.journal import Journal
from environments.api_server.server import build
from environments.api_server.store import Store
from trainer.data.api_client import (
    ApiRefused,
    ApiUnreachable,
    AtroposClient,
    BatchTimeout,
    StopWaiting,
    broadcast_groups,
)
from trainer.data.scored_groups import BatchError, parse_group, staleness

PROMPT = [11, 12, 13]


def wire(group_id: str = "g-1") -> dict[str, Any]:
    """A group of two rollouts as the environment sends it; 2 and 3 are end-of-sequence ids."""
    completions, logprobs = [[21, 22, 2], [31, 3]], [[-0.5, -0.25, -0.125], [-1.0, 0.0]]
    return {
        "tokens": [PROMPT + row for row in completions],
        "masks": [[-100] * 3 + row for row in completions],
        "scores": [1.0, -1.0],
        "inference_logprobs": [[1.0] * 3 + row for row in logprobs],
        "overrides": [
            {"set_advantage_to_zero": False, "finish_reason": "stop", "versions": [[4, 0, 2], [5, 2, 3]]},
            {"set_advantage_to_zero": True, "finish_reason": "length", "versions": [[5, 0, 2]]},
        ],
        "group_overrides": {"group_id": group_id, "problem_id": "p-1", "temperature": 0.7, "context": 64},
    }


def changed(path: str, value: object) -> dict[str, Any]:
    """`wire()` with one value replaced; path as in "overrides.0.versions"."""
    group = wire()
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    target: Any = group
    for part in way:
        target = target[part]
    target[last] = value
    return group


# --- parsing ---


def test_prompt_and_completions_are_told_apart_by_the_mask() -> None:
    group = parse_group(wire())
    assert group.prompt == PROMPT
    assert [rollout.completion for rollout in group.rollouts] == [[21, 22, 2], [31, 3]]


def test_log_probabilities_belong_to_their_own_token() -> None:
    # known fault: the shift off by one
    assert parse_group(wire()).rollouts[0].logprobs == [-0.5, -0.25, -0.125]


def test_what_travels_with_the_group_arrives() -> None:
    group = parse_group(wire())
    assert (group.group_id, group.problem_id, group.temperature, group.context) == ("g-1", "p-1", 0.7, 64)
    first, second = group.rollouts
    assert (first.score, first.overlong, first.finish_reason) == (1.0, False, "stop")
    assert (second.score, second.overlong, second.finish_reason) == (-1.0, True, "length")
    assert first.versions == [(4, 0, 2), (5, 2, 3)]


def test_the_group_survives_json() -> None:
    assert parse_group(json.loads(json.dumps(wire()))) == parse_group(wire())


def test_every_sampled_token_is_kept_whatever_end_ids_it_holds() -> None:
    # known fault: several EOS ids, and a completion cut at the first of them
    group = wire()
    tail = [2, 21, 3, 2]
    group["tokens"][0], group["masks"][0] = PROMPT + tail, [-100] * 3 + tail
    group["inference_logprobs"][0] = [1.0] * 3 + [-0.5] * 4
    group["overrides"][0]["versions"] = [[4, 0, 4]]
    assert parse_group(group).rollouts[0].completion == tail


def test_a_prompt_that_repeats_the_completion_is_still_cut_by_the_mask() -> None:
    group = wire()
    for row in (0, 1):
        group["tokens"][row] = [21, 22, 2, *group["tokens"][row][3:]]
    assert parse_group(group).prompt == [21, 22, 2]


def test_a_fully_masked_rollout_has_no_trained_token() -> None:
    group = wire()
    group["tokens"][1], group["masks"][1], group["inference_logprobs"][1] = PROMPT, [-100] * 3, [1.0] * 3
    group["overrides"][1]["versions"] = []
    assert parse_group(group).rollouts[1].completion == []


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("group_overrides", None, r"group_overrides is 'None'"),
        ("group_overrides.group_id", 7, r"group_overrides.group_id is 7: .*UUID"),
        ("group_overrides.problem_id", "", r"group g-1: group_overrides.problem_id is ''"),
        ("group_overrides.temperature", None, r"temperature is None: send the sampling temperature"),
        ("group_overrides.temperature", 0, r"temperature is 0: .*above 0"),
        ("group_overrides.temperature", NAN, r"temperature is nan"),
        ("group_overrides.context", 0, r"context is 0"),
        ("tokens", [], r"tokens is '0 entries'"),
        ("scores", [1.0], r"scores is '1 entries': send one per rollout; tokens has 2"),
        ("overrides", None, r"overrides is 'None': send a list"),
        ("tokens.1", [11, 12, 13, 31, 3.5], r"tokens\[1\].*integers"),
        ("tokens.1", [11, 12, 13, 31, -3], r"tokens\[1\].*0 or more"),
        ("tokens.1", [11, 12, 13, [31], 3], r"tokens\[1\].*flat list"),
        ("tokens.1", [11, 12, 14, 31, 3], r"tokens\[1\] is 'a prompt of 3 tokens': .*rollout 0's"),
        ("masks.0", [-100, -100, -100, 21, 22], r"masks\[0\] is '5 entries': send one per token, 6"),
        ("masks.0", [-100, -100, -100, 21, -100, 2], r"masks\[0\]\[4\] is -100: .*here 22"),
        ("masks.0", [-100, -100, -100, 1, 1, 1], r"masks\[0\]\[3\] is 1: .*token ids.*here 21"),
        ("masks.0", [11, 12, 13, 21, 22, 2], r"masks\[0\].*no predecessor"),
        ("masks.0", [-100, -100, 13, 21, 22, 2], r"inference_logprobs\[0\]\[2\] is 1.0: .*filler"),
        ("inference_logprobs.0.3", 1.0, r"inference_logprobs\[0\]\[3\] is 1.0: .*filler"),
        ("inference_logprobs.0.4", 1e-3, r"inference_logprobs\[0\]\[4\] is 0.001: .*<= 0"),
        ("inference_logprobs.0.5", NAN, r"inference_logprobs\[0\]\[5\] is nan: .*finite"),
        ("inference_logprobs.0.5", -INF, r"inference_logprobs\[0\]\[5\] is -inf: .*finite"),
        ("inference_logprobs.0", [-0.5, -0.25, -0.125], r"inference_logprobs\[0\] is '3 entries'"),
        ("inference_logprobs.0.3", None, r"inference_logprobs\[0\].*flat list of numbers"),
        ("scores.0", 0.5, r"scores\[0\] is 0.5: send \+1.0 or -1.0"),
        ("scores.0", NAN, r"scores\[0\] is nan"),
        ("scores.0", True, r"scores\[0\] is True"),
        ("overrides.0.set_advantage_to_zero", None, r"overrides\[0\].set_advantage_to_zero is None"),
        ("overrides.0.finish_reason", "abort", r"finish_reason is 'abort': .*unfinished"),
        ("overrides.0.versions", [], r"versions is '\[\]': the spans must end at 3"),
        ("overrides.0.versions", [[4, 0, 2]], r"the spans must end at 3"),
        ("overrides.0.versions", [[4, 0, 1], [5, 2, 3]], r"without gaps"),
        ("overrides.0.versions", [["4", 0, 3]], r"send \[version, start, end\] spans"),
        ("overrides.0.versions", [[-1, 0, 3]], r"send \[version, start, end\] spans"),
    ],
)
def test_a_bad_group_names_field_value_and_fix(path: str, value: object, message: str) -> None:
    with pytest.raises(BatchError, match=message):
        parse_group(changed(path, value))


@pytest.mark.parametrize("name", list(wire()))
def test_a_missing_field_is_named(name: str) -> None:
    group = wire()
    del group[name]
    with pytest.raises(BatchError, match=name):
        parse_group(group)


def test_staleness_counts_from_the_oldest_token_of_any_rollout() -> None:
    assert staleness(parse_group(wire()), 7) == 3


def test_a_group_without_a_trained_token_has_no_version_and_is_not_stale() -> None:
    group = wire()
    for row in (0, 1):
        group["tokens"][row], group["masks"][row], group["inference_logprobs"][row] = PROMPT, [-100] * 3, [1.0] * 3
        group["overrides"][row]["versions"] = []
    parsed = parse_group(group)
    assert (parsed.oldest_version, staleness(parsed, 7)) == (None, 0)


# --- the client against the real server ---


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Faulty:
    """The app with answers to /lease replaced by a 500 *after* the server has done its work."""

    def __init__(self, app: Any, faults: int) -> None:
        self.app, self.faults = app, faults

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/lease" or not self.faults:
            await self.app(scope, receive, send)
            return
        self.faults -= 1

        async def swallow(message: Any) -> None:
            pass

        await self.app(scope, receive, swallow)
        await PlainTextResponse("a fault", 500)(scope, receive, send)


@contextmanager
def serving(port: int, journal: Path | None = None, faults: int = 0) -> Iterator[str]:
    """The project's API server on this port."""
    app = Faulty(build(Store(Journal(journal) if journal else None)), faults)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, ws="none", log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def url() -> Iterator[str]:
    with serving(free_port()) as address:
        yield address


def client_of(url: str, **options: Any) -> AtroposClient:
    return AtroposClient(url, pause_s=0.02, poll_s=0.02, **options)


def register(client: AtroposClient, rollouts: int = 4) -> int:
    return client.register(batch_size=rollouts, max_token_len=-1, starting_step=0, num_steps=10)


def send(url: str, *groups: dict[str, Any]) -> None:
    for group in groups:
        body = json.dumps(group)  # writes NaN, as Python clients do
        httpx.post(f"{url}/scored_data", content=body, headers={"Content-Type": "application/json"}).raise_for_status()


def ids(groups: list[Any]) -> list[str]:
    return [group.group_id for group in groups]


def test_a_batch_of_groups_comes_back_as_it_was_sent(url: str) -> None:
    with client_of(url) as client:
        register(client)
        send(url, wire("a"), wire("b"))
        assert client.lease(0, 20) == [parse_group(wire("a")), parse_group(wire("b"))]


def test_registration_carries_the_servers_fields(url: str) -> None:
    with client_of(url) as client:
        client.register(
            batch_size=96,
            max_token_len=1025,
            starting_step=7,
            num_steps=20,
            checkpoint_dir="c",
            save_checkpoint_interval=5,
            wandb_group="g",
            wandb_project="p",
        )
        assert client.status() == {"current_step": 7, "queue_size": 0}
    state = atropos.app.state
    assert (state.batchsize, state.max_token_len, state.num_steps, state.checkpoint_dir) == (96, 1025, 20, "c")
    assert (state.save_checkpoint_interval, state.group, state.project) == (5, "g", "p")


def test_it_waits_until_the_batch_is_full(url: str) -> None:
    with client_of(url) as client:
        register(client)
        send(url, wire("a"))
        later = threading.Timer(0.3, send, (url, wire("b")))
        later.start()
        waits: list[float] = []
        groups = client.lease(0, 20, on_wait=waits.append)
        later.join()
    assert ids(groups) == ["a", "b"]
    assert waits == sorted(waits)
    assert waits


def test_no_batch_in_time_says_what_is_queued(url: str) -> None:
    with client_of(url) as client:
        register(client)
        send(url, wire("a"))
        with pytest.raises(BatchTimeout, match=r"within 0.2 s: 1 groups are queued and a batch takes 4 rollouts"):
            client.lease(0, 0.2)


def test_a_wait_in_which_groups_are_kept_back_has_no_deadline_and_any_other_has(url: str) -> None:
    def hold(seconds: float) -> None:
        httpx.post(f"{url}/hold", json={"reason": "an evaluation", "seconds": seconds}).raise_for_status()

    with client_of(url) as client:
        register(client)
        hold(600)
        later = threading.Timer(0.6, send, (url, wire("a"), wire("b")))
        later.start()
        reasons: list[str] = []
        assert ids(client.lease(0, 0.2, lambda _: reasons.append(client.why_no_batch()))) == ["a", "b"]
        later.join()
        assert client.held_s >= 0.2
        assert "the environment keeps groups back: an evaluation" in reasons
        held = client.held_s
        hold(0.3)
        with pytest.raises(BatchTimeout):
            client.lease(1, 0.2)
        assert client.held_s > held


def test_asking_before_registering_is_refused(url: str) -> None:
    with client_of(url) as client, pytest.raises(ApiRefused, match=r"call register\(\) before lease"):
        client.lease(0, 1)


def test_an_invalid_group_stops_the_batch(url: str) -> None:
    with client_of(url) as client:
        register(client, rollouts=2)
        send(url, changed("inference_logprobs.0.3", 1.0))
        with pytest.raises(BatchError, match=r"group g-1: inference_logprobs\[0\]\[3\]"):
            client.lease(0, 20)


def test_a_batch_whose_answer_got_lost_comes_when_it_is_asked_for_again(caplog: pytest.LogCaptureFixture) -> None:
    with serving(free_port(), faults=2) as url, client_of(url) as client:
        register(client)
        send(url, wire("a"), wire("b"), wire("c"), wire("d"))
        assert ids(client.lease(0, 20)) == ["a", "b"]
        assert ids(client.lease(1, 20)) == ["c", "d"]
    assert "HTTP 500 a fault; again in" in caplog.text


def test_server_errors_without_end_are_an_error() -> None:
    with serving(free_port(), faults=10**9) as url, client_of(url, attempts=3, away_s=0.0) as client:
        register(client)
        with pytest.raises(ApiUnreachable, match=r"/lease failed 3 times, at last with HTTP 500"):
            client.lease(0, 20)


def test_after_a_rollback_the_batches_come_again_and_after_an_acknowledgement_they_do_not(url: str) -> None:
    with client_of(url) as client:
        register(client)
        send(url, *(wire(name) for name in "abcdef"))
        assert [ids(client.lease(step, 20)) for step in range(3)] == [["a", "b"], ["c", "d"], ["e", "f"]]
        client.acknowledge(1)
        assert client.rollback(1) == 2
        assert [ids(client.lease(step, 20)) for step in (1, 2)] == [["c", "d"], ["e", "f"]]
        with pytest.raises(ApiRefused, match=r"refuses: step 0 is before the acknowledged checkpoint of step 1"):
            client.rollback(0)


def test_what_the_environment_assumes_otherwise_is_named(url: str) -> None:
    theirs = {"context": 640, "group_size": 8, "temperature": 0.7}
    httpx.post(f"{url}/contract", json={"side": "environment", "terms": theirs}).raise_for_status()
    with client_of(url) as client:
        register(client)
        with pytest.raises(ApiRefused, match=r"differ in context: the trainer's batch.context is 512"):
            client.agree({"context": 512, "group_size": 8})
        with pytest.raises(ApiRefused, match=r"differ in context"):
            client.lease(0, 20)
        client.agree({"context": 640, "group_size": 8})


def test_a_client_error_is_not_tried_again(url: str) -> None:
    with client_of(f"{url}/elsewhere", attempts=1000) as client, pytest.raises(ApiRefused, match="HTTP 404"):
        register(client)


def test_nobody_at_the_address_is_unreachable() -> None:
    with client_of(f"http://127.0.0.1:{free_port()}", attempts=2) as client:
        with pytest.raises(ApiUnreachable, match=r"/register failed 2 times, at last with ConnectError"):
            register(client)


def test_a_server_that_comes_up_late_is_found() -> None:
    port = free_port()
    with client_of(f"http://127.0.0.1:{port}", attempts=400) as client:
        found: list[int] = []
        asking = threading.Thread(target=lambda: found.append(register(client)))
        asking.start()
        with serving(port):
            asking.join(30)
    assert len(found) == 1


def test_a_server_that_was_reached_may_be_away_for_longer_than_one_that_never_was() -> None:
    port = free_port()
    with client_of(f"http://127.0.0.1:{port}", attempts=2) as client:
        with serving(port):
            register(client)
        found: list[str] = []
        asking = threading.Thread(target=lambda: found.extend(ids(client.lease(0, 30))))
        asking.start()
        time.sleep(0.5)  # many times the two attempts
        with serving(port) as url:
            send(url, wire("a"), wire("b"))
            asking.join(30)
    assert found == ["a", "b"]


def test_waiting_for_a_server_that_is_away_can_be_stopped() -> None:
    def stop(seconds: float) -> None:
        raise StopWaiting("asked to end")

    port = free_port()
    with client_of(f"http://127.0.0.1:{port}") as client:
        with serving(port):
            register(client)
        with pytest.raises(StopWaiting):
            client.lease(0, 30, stop)


def test_a_restarted_server_gets_the_registration_again() -> None:
    port = free_port()
    with client_of(f"http://127.0.0.1:{port}", attempts=100) as client:
        with serving(port):
            register(client)
        with serving(port) as url:
            asking = threading.Timer(0.3, send, (url, wire("a"), wire("b")))
            asking.start()
            try:
                assert ids(client.lease(0, 20)) == ["a", "b"]
            finally:
                asking.join()


def test_a_server_that_never_answers_meets_a_deadline() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with client_of(url, request_timeout_s=0.1, attempts=2) as client:
            with pytest.raises(ApiUnreachable, match="ReadTimeout"):
                register(client)


# --- one rank; several are in test_ranks.py ---


def test_one_process_keeps_its_groups() -> None:
    groups = [parse_group(wire())]
    assert broadcast_groups(groups) == groups


def test_nothing_to_broadcast_is_an_error() -> None:
    with pytest.raises(BatchError, match="rank 0 passed no groups"):
        broadcast_groups(None)


def test_parsing_leaves_the_wire_untouched() -> None:
    group = wire()
    before = copy.deepcopy(group)
    parse_group(group)
    assert group == before
