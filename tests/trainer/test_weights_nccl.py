"""The `nccl` publisher against stand-in servers whose workers are vLLM's real engines, over gloo in place of NCCL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from environments.common.server_list import ServerList, WatchedServers
from tests.support import gloo_nccl
from tests.support.weight_receivers import Receiver, digest
from trainer.model.policy import Policy
from trainer.parallel import Parallel
from trainer.weight_sync import nccl as weights_nccl
from trainer.weight_sync.nccl import NcclPublisher
from trainer.weight_sync.nccl_group import NcclUnavailable, check_machine
from trainer.weight_sync.vllm_routes import PublishStats, WeightSyncError

AFTER_A_TRANSFER = [
    "/finish_weight_update",
    "/reset_prefix_cache",
    "/update_weight_version",
    "/resume",
]
BUFFER = 4096  # a tiny model comes in several chunks


class Publisher(NcclPublisher):
    """It notes what would end the process."""

    ended: list[str]

    def publish(self, weights: Policy, version: int, prompt: Sequence[int] | None = None) -> PublishStats:
        stats = super().publish(weights, version, prompt)
        assert stats is not None
        return stats


@pytest.fixture
def receivers() -> Iterator[Callable[..., Receiver]]:
    """Starts stand-in servers, which end with the test."""
    started: list[Receiver] = []

    def start(*args: Any, **options: Any) -> Receiver:
        started.append(Receiver(*args, **options))
        return started[-1]

    yield start
    for receiver in started:
        receiver.kill()


@pytest.fixture
def publisher(alone: Parallel, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Publisher]:
    """Makes a publisher of this process alone; what would end the process is noted in its `ended`."""
    gloo_nccl.install(monkeypatch.setattr)
    monkeypatch.setattr(weights_nccl, "check_machine", lambda device: None)

    def make(
        *servers: Receiver, deadline_s: float = 60.0, watched: WatchedServers | None = None, **options: Any
    ) -> Publisher:
        ended: list[str] = []
        made = Publisher(
            watched or [server.url for server in servers],
            alone,
            deadline_s=deadline_s,
            buffer_bytes=BUFFER,
            end_in=lambda seconds, message: ended.append(message),
            **options,
        )
        made.ended = ended
        return made

    return make


@pytest.fixture
def policy(alone: Parallel, models: dict[str, Path]) -> Policy:
    """The tiny Llama, whose head is tied."""
    return Policy(models["llama"], alone)


def expected(policy: Policy, dtype: torch.dtype = torch.bfloat16) -> dict[str, list[Any]]:
    return {name: digest(tensor) for name, tensor in policy.state_dict_full(dtype).items()}


def change(policy: Policy) -> None:
    with torch.no_grad():
        for tensor in policy.model.state_dict().values():
            tensor.mul_(1.5)


def test_every_worker_of_every_server_gets_exactly_the_served_tensors(
    receivers: Callable[..., Receiver], publisher: Callable[..., Publisher], policy: Policy
) -> None:
    servers = [receivers(workers) for workers in (1, 2, 4)]
    sends = publisher(*servers)
    stats = sends.publish(policy, 3)
    whole = expected(policy)
    assert "lm_head.weight" not in whole
    assert (stats.missing, stats.changed_share) == ((), None)
    assert stats.bytes == sum(2 * torch.Size(shape).numel() for _, shape, _ in whole.values())
    states = [server.state() for server in servers]
    inits = [state["inits"][0] for state in states]
    assert [init["rank_offset"] for init in inits] == [1, 2, 4]
    assert {init["world_size"] for init in inits} == {8}
    assert all(init["packed"] for init in inits)
    for server, workers in zip(servers, (1, 2, 4), strict=True):
        assert server.received() == [whole] * workers
    layouts = [[list(chunk) for chunk in chunks] for state in states for chunks in state["workers"]]
    assert all(layout == layouts[0] for layout in layouts)
    assert 1 < len(layouts[0]) < len(whole)
    for state in states:
        assert state["calls"][-5:] == ["/update_weights", *AFTER_A_TRANSFER]


def test_the_group_is_kept_and_the_next_weights_come_through_it(
    receivers: Callable[..., Receiver], publisher: Callable[..., Publisher], policy: Policy
) -> None:
    servers = [receivers(1), receivers(2)]
    sends = publisher(*servers, dtype="float32")
    sends.publish(policy, 1)
    change(policy)
    assert (sends.publish(policy, 2).changed_share or 0.0) > 0.99
    for server in servers:
        assert len(server.state()["inits"]) == 1
        assert all(found == expected(policy, torch.float32) for found in server.received())
    assert sends.publish(policy, 3).changed_share == 0.0


def test_an_update_that_bf16_rounds_away_changes_nothing(
    receivers: Callable[..., Receiver], publisher: Callable[..., Publisher], policy: Policy
) -> None:
    sends = publisher(receivers())
    sends.publish(policy, 1)
    with torch.no_grad():
        for tensor in policy.model.state_dict().values():
            tensor.copy_(tensor.bfloat16() * (1 + 2**-12))
    assert sends.publish(policy, 2).changed_share == 0.0


@pytest.mark.parametrize(
    ("route", "phase"),
    [
        ("/get_world_size", "init"),
        ("/init_weight_transfer_engine", "init"),
        ("/start_weight_update", "start"),
        ("/update_weights", "update"),
        ("/finish_weight_update", "finish"),
        ("/reset_prefix_cache", "reset_cache"),
        ("/update_weight_version", "version"),
        ("/resume", "resume"),
    ],
)
def test_a_server_that_hangs_is_named_with_the_phase(
    receivers: Callable[..., Receiver],
    publisher: Callable[..., Publisher],
    policy: Policy,
    monkeypatch: pytest.MonkeyPatch,
    route: str,
    phase: str,
) -> None:
    well, hangs = receivers(), receivers(2, hang_at=route)
    sends = publisher(well, hangs)
    _one_second_for(route, hangs, monkeypatch)
    with pytest.raises(WeightSyncError, match=f"weights to {hangs.url}, phase {phase}: no answer within ") as raised:
        sends.publish(policy, 1)
    assert raised.value.paused == (phase not in ("init", "resume"))
    # A collective that waits for a peer cannot be woken: the process has to end, and says so. Where a worker has not
    # come to the group yet, there is none.
    assert raised.value.stuck == (route == "/update_weights")
    assert sends.ended == ([str(raised.value)] if raised.value.stuck else [])


@pytest.mark.parametrize("route", ["/weight_info", "/pause"])
def test_a_server_that_hangs_before_anything_was_changed_is_left_out(
    receivers: Callable[..., Receiver],
    publisher: Callable[..., Publisher],
    policy: Policy,
    monkeypatch: pytest.MonkeyPatch,
    route: str,
) -> None:
    well, hangs = receivers(), receivers(2, hang_at=route)
    sends = publisher(well, hangs, dtype="float32")
    _one_second_for(route, hangs, monkeypatch)
    assert sends.publish(policy, 1).missing == (hangs.url,)
    assert well.received() == [expected(policy, torch.float32)]
    assert sends.ended == []


def _one_second_for(route: str, server: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls that never end get a short deadline: a busy machine must not end the others."""
    request = httpx.Client.request

    def shortened(self: httpx.Client, method: str, url: str, **options: Any) -> httpx.Response:
        if url.startswith(route) and str(self.base_url).startswith(server.url):
            options["timeout"] = 1.0
        return request(self, method, url, **options)

    monkeypatch.setattr(httpx.Client, "request", shortened)


def test_a_transfer_that_hangs_ends_by_its_deadline(
    receivers: Callable[..., Receiver],
    publisher: Callable[..., Publisher],
    policy: Policy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = receivers()
    sends = publisher(server)
    sends.publish(policy, 1)
    never = threading.Event()
    monkeypatch.setattr(gloo_nccl.GlooCommunicator, "broadcast", lambda *_, **__: never.wait())
    sends.deadline_s = 1.0  # of the transfer; the calls' own is longer
    with pytest.raises(
        WeightSyncError, match=f"weights to {server.url}, phase update: not ended by its deadline; rank 0's end waits"
    ) as raised:
        sends.publish(policy, 2)
    assert raised.value.stuck
    assert sends.ended == [str(raised.value)]
    never.set()


def test_a_server_that_dies_in_the_middle_ends_the_publication_and_names_the_half_loaded(
    receivers: Callable[..., Receiver], publisher: Callable[..., Publisher], policy: Policy
) -> None:
    well, dies = receivers(), receivers(2, die_in_chunk=True)
    sends = publisher(well, dies, dtype="float32")
    with pytest.raises(WeightSyncError, match=f"weights to {dies.url}, phase update: ") as raised:
        sends.publish(policy, 1)
    assert raised.value.gone
    assert f"half-loaded and paused as well, restart them: {well.url}" in str(raised.value)
    assert "/resume" not in well.state()["calls"]
    # One that fails before it begins does not resume it either.
    sends._address = "192.0.2.1"
    with pytest.raises(WeightSyncError, match="phase init: cannot listen"):
        sends.publish(policy, 1)
    assert "/resume" not in well.state()["calls"]
    sends._address = None
    # What the run does then: the publication anew, with those that are left.
    assert sends.publish(policy, 1).missing == (dies.url,)
    assert well.received() == [expected(policy, torch.float32)]
    assert "/resume" in well.state()["calls"]


def test_a_server_that_is_gone_is_left_out_and_gets_the_weights_when_it_is_back(
    receivers: Callable[..., Receiver], publisher: Callable[..., Publisher], policy: Policy
) -> None:
    first, second = receivers(1), receivers(2)
    sends = publisher(first, second)
    sends.publish(policy, 1)
    assert sends.behind() == []
    second.kill()
    change(policy)
    assert sends.publish(policy, 2).missing == (second.url,)
    assert first.state()["inits"][-1]["world_size"] == 2  # a group of those that are left
    assert sends.behind() == []

    back = receivers(2, port=second.port)
    undisturbed = first.state()["calls"].count("/pause")
    assert sends.behind() == [back.url]
    assert sends.catch_up(policy) == [back.url]
    assert (sends.behind(), sends.catch_up(policy)) == ([], [])
    assert back.received() == [expected(policy)] * 2
    assert first.state()["calls"].count("/pause") == undisturbed

    change(policy)
    assert sends.publish(policy, 3).missing == ()
    assert [*first.received(), *back.received()] == [expected(policy)] * 3
    inits = [init for server in (first, back) for init in server.state()["inits"]]
    ports = [init["master_port"] for init in inits]
    assert ports[2] == ports[4]  # the last group has both
    assert len(set(ports)) == 4


def test_servers_that_join_get_a_group_of_their_own_and_those_that_leave_are_in_none(
    receivers: Callable[..., Receiver], publisher: Callable[..., Publisher], policy: Policy, tmp_path: Path
) -> None:
    first, second = receivers(1), receivers(2)
    path = tmp_path / "servers"
    path.write_text(f"{first.url}\n")
    watched = WatchedServers(ServerList(str(path), "weights.servers_from"))
    sends = publisher(watched=watched)
    sends.publish(policy, 1)
    bad = receivers(1, backend="disk")
    path.write_text(f"{first.url}\n{second.url}\n{bad.url}\n")
    watched.look()
    undisturbed = first.state()["calls"].count("/pause")
    assert sends.behind() == [second.url]  # the other one would keep the group waiting
    assert sends.catch_up(policy) == [second.url]
    assert second.received() == [expected(policy)] * 2
    assert first.state()["calls"].count("/pause") == undisturbed

    path.write_text(f"{first.url} leaving\n{second.url}\n")
    watched.look()
    change(policy)
    assert sends.publish(policy, 2).missing == ()
    assert second.received() == [expected(policy)] * 2
    assert first.state()["version"] == "1"

    third = receivers(1)
    path.write_text(f"{second.url}\n{third.url}\n")
    watched.look()
    change(policy)
    sends.publish(policy, 3)  # the new one gets them with it, in a group of its own
    assert [server.state()["version"] for server in (second, third)] == ["3", "3"]
    assert third.state()["inits"][-1]["world_size"] == 2


@pytest.mark.parametrize("vanishes", [False, True])
def test_a_server_that_hangs_or_vanishes_while_it_joins_costs_the_run_that_server_alone(
    receivers: Callable[..., Receiver],
    publisher: Callable[..., Publisher],
    policy: Policy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    vanishes: bool,
) -> None:
    route = "/init_weight_transfer_engine"
    first, joins = receivers(1), receivers(2, hang_at=route)
    path = tmp_path / "servers"
    path.write_text(f"{first.url}\n")
    watched = WatchedServers(ServerList(str(path), "weights.servers_from"))
    sends = publisher(watched=watched)
    sends.publish(policy, 1)
    path.write_text(f"{first.url}\n{joins.url}\n")
    watched.look()
    if vanishes:
        request = httpx.Client.request

        def killing(self: httpx.Client, method: str, url: str, **options: Any) -> httpx.Response:
            if url.startswith(route) and str(self.base_url).startswith(joins.url):
                threading.Timer(0.5, joins.kill).start()
            return request(self, method, url, **options)

        monkeypatch.setattr(httpx.Client, "request", killing)
    else:
        _one_second_for(route, joins, monkeypatch)
    assert sends.catch_up(policy) == []
    assert sends.ended == []
    assert sends.behind() == []  # it is left alone for a time
    change(policy)
    assert sends.publish(policy, 2).missing == ()
    assert first.received() == [expected(policy)]
    assert first.state()["version"] == "2"


def test_a_server_that_was_started_again_between_two_publications_joins_a_new_group(
    receivers: Callable[..., Receiver], publisher: Callable[..., Publisher], policy: Policy
) -> None:
    first, second = receivers(1), receivers(1)
    sends = publisher(first, second)
    sends.publish(policy, 1)
    second.kill()
    again = receivers(1, port=second.port)
    assert sends.publish(policy, 2).missing == ()
    assert [*first.received(), *again.received()] == [expected(policy)] * 2


def test_no_server_left_is_an_error(
    receivers: Callable[..., Receiver], publisher: Callable[..., Publisher], policy: Policy
) -> None:
    gone = receivers()
    sends = publisher(gone)
    gone.kill()
    with pytest.raises(WeightSyncError, match=f"weights to {gone.url}, phase health: ConnectError") as raised:
        sends.publish(policy, 1)
    assert raised.value.gone


def test_a_publication_that_is_made_anew_counts_its_changes_against_the_last_whole_one(
    receivers: Callable[..., Receiver], publisher: Callable[..., Publisher], policy: Policy
) -> None:
    server = receivers()
    sends = publisher(server)
    sends.publish(policy, 1)
    server.kill()
    change(policy)
    with pytest.raises(WeightSyncError, match="phase health"):
        sends.publish(policy, 2)
    back = receivers(port=server.port)
    assert (sends.publish(policy, 2).changed_share or 0.0) > 0.99
    assert back.received() == [expected(policy)]


def test_a_server_of_another_backend_is_refused_with_the_fix(
    receivers: Callable[..., Receiver], publisher: Callable[..., Publisher], policy: Policy
) -> None:
    disk = receivers(backend="disk")
    with pytest.raises(WeightSyncError, match=r"phase health: .* started with disk: .*--weight_transfer nccl"):
        publisher(disk).check()
    with pytest.raises(WeightSyncError, match=r"phase init: .*another weight transfer backend"):
        publisher(disk).publish(policy, 1)


def test_an_address_that_is_not_this_machines_is_refused_with_the_fix(
    receivers: Callable[..., Receiver], publisher: Callable[..., Publisher], policy: Policy
) -> None:
    with pytest.raises(WeightSyncError, match=r"phase init: cannot listen on 192\.0\.2\.1 .*set weights\.nccl_address"):
        publisher(receivers(), address="192.0.2.1").publish(policy, 1)


def test_a_machine_without_a_gpu_is_refused_with_the_fix() -> None:
    with pytest.raises(NcclUnavailable, match=r"torch sees none: set weights\.backend: disk"):
        check_machine(torch.device("cpu"))


def test_a_missing_nccl_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_NCCL_SO_PATH", "/nowhere/libnccl.so.2")
    with pytest.raises(NcclUnavailable, match=r"no NCCL library \(.*/nowhere/libnccl.so.2.*set VLLM_NCCL_SO_PATH"):
        check_machine(torch.device("cuda"))
