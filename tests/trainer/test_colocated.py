"""One GPU in turns, over a stand-in for vLLM's sleep routes: order, faults, deadlines, and what is sampled after."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.served import Served
from tests.support.policy_server import Engine, Server
from trainer.config import TrainerConfig
from trainer.device_state import DeviceState
from trainer.metrics import Metrics
from trainer.model.policy import Policy
from trainer.parallel import Parallel
from trainer.process.signals import StopRequest
from trainer.weight_sync.colocated import ColocatedPublisher, FolderTransfer, transfer_for
from trainer.weight_sync.ipc import IpcTransfer
from trainer.weight_sync.turns import TurnSession
from trainer.weight_sync.vllm_routes import WeightServer, WeightSyncError

PROMPT = [1, 36, 37, 39, 40]
FP32 = torch.float32


class Recorded:
    """The stand-in with its calls in `calls`; `answers` are given in the place of its own to a path's next calls."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.calls: list[str] = []
        self.answers: dict[str, list[tuple[int, str]]] = {}
        self.lost: str | None = None
        """A call that hangs before anything is done: who makes it can be killed there."""
        self._app: ASGIApp = Server(engine, 256).app()
        self.served = Served(self)
        self.url = self.served.url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, query = scope["path"], scope["query_string"].decode()
        if scope["method"] == "POST":
            self.calls.append(path + (f"?{query}" if query else ""))
        if self.lost == path:
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        if self.answers.get(path):
            status, text = self.answers[path].pop(0)
            if status == 0:
                await asyncio.sleep(1.0)  # longer than the deadline
            await send({"type": "http.response.start", "status": status or 200, "headers": []})
            await send({"type": "http.response.body", "body": text.encode()})
            return
        await self._app(scope, receive, send)

    def taken(self) -> list[str]:
        """The calls since the last time."""
        calls, self.calls = self.calls, []
        return calls


@pytest.fixture
def vllm(models: dict[str, Path]) -> Iterator[Recorded]:
    recorded = Recorded(Engine(models["llama"], token_s=0.002))
    yield recorded
    recorded.served.stop()


@pytest.fixture
def policy(models: dict[str, Path], alone: Parallel) -> Policy:
    return Policy(models["llama"], alone, logprob_chunk=64)


def change(policy: Policy) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.mul_(1.3)


def publisher_of(vllm: Recorded, policy: Policy, folder: Path, **options: Any) -> ColocatedPublisher:
    given: dict[str, Any] = {"dtype": FP32, "deadline_s": 30.0} | options
    return ColocatedPublisher(vllm.url, FolderTransfer(folder, FP32), policy.parallel, **given)


class Counted(DeviceState):
    """The policy's state, with what moved in `moves` and a look at the server at each move."""

    def __init__(self, policy: Policy, look: Callable[[], Any]) -> None:
        super().__init__(policy.model.parameters, policy.device)
        self.moves: list[tuple[str, Any]] = []
        self._look = look

    def off(self) -> None:
        if not self.is_off:
            self.moves.append(("off", self._look()))
        super().off()

    def on(self) -> None:
        if self.is_off:
            self.moves.append(("on", self._look()))
        super().on()


@pytest.fixture
def turns(vllm: Recorded, policy: Policy, tmp_path: Path) -> Iterator[TurnSession]:
    weights = {"backend": "colocated", "servers": [vllm.url], "dtype": "float32", "verify_every": 1}
    batch = {"rollouts": 8, "group_size": 4, "context": 64, "max_tokens": 64}
    config = TrainerConfig(model=policy.path, run_dir=tmp_path, weights=weights, batch=batch)
    with StopRequest(60) as stop:
        session = TurnSession(publisher_of(vllm, policy, tmp_path / "weights"), config, policy.parallel, stop)
        session.attach(Counted(policy, lambda: sorted(vllm.engine.asleep)))
        yield session


UPDATE = [
    "/start_weight_update",
    "/update_weights",
    "/finish_weight_update",
    "/reset_prefix_cache?reset_running_requests=true",
    "/update_weight_version",
]


@pytest.mark.parametrize("level", [1, 2])
def test_a_turn_is_sleep_weights_update_name_cache_and_resume(
    level: int, vllm: Recorded, policy: Policy, tmp_path: Path
) -> None:
    publisher = publisher_of(vllm, policy, tmp_path, sleep_level=level)
    publisher.pause()
    assert vllm.taken() == ["/wake_up?tags=weights", f"/sleep?level={level}&mode=keep"]
    change(policy)
    publisher.publish(policy, 1, PROMPT)
    assert vllm.taken() == ["/wake_up?tags=weights", "/init_weight_transfer_engine", *UPDATE]
    assert vllm.engine.paused
    assert vllm.engine.asleep == {"kv_cache"}
    probe, paused = publisher.wake()
    assert vllm.taken() == ["/inference/v1/generate", "/wake_up?tags=kv_cache", "/resume"]
    assert probe is not None
    assert probe.versions == [("1", 0, len(probe.tokens))]
    assert paused > 0
    publisher.pause()
    publisher.publish(policy, 2)
    assert vllm.taken() == [f"/sleep?level={level}&mode=keep", "/wake_up?tags=weights", *UPDATE]
    publisher.wake()
    assert list(tmp_path.iterdir()) == []


def test_the_device_is_never_both_sides(turns: TurnSession, vllm: Recorded, policy: Policy) -> None:
    """The state leaves before the cache comes, and comes after the server sleeps."""
    metrics = Metrics()
    turns.pause()
    turns.publish(policy, 0, metrics)
    for version in (1, 2):
        turns.hand_over(policy)
        assert not vllm.engine.asleep
        turns.take_back(policy, metrics)
        assert vllm.engine.asleep == {"weights", "kv_cache"}
        change(policy)
        turns.publish(policy, version, metrics)
    state = turns._state
    assert isinstance(state, Counted)
    assert state.moves == [("off", ["kv_cache"]), ("on", ["kv_cache", "weights"])] * 2
    assert metrics.reduce()["sync_difference_max"] == pytest.approx(0.0, abs=1e-4)


def test_a_request_under_way_keeps_its_tokens_and_one_that_comes_while_it_sleeps_waits(
    vllm: Recorded, policy: Policy, tmp_path: Path
) -> None:
    server, publisher = WeightServer(vllm.url, 60.0), publisher_of(vllm, policy, tmp_path, sleep_level=2)
    publisher.pause()
    publisher.publish(policy, 0)
    publisher.wake()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(server.probe, PROMPT, tokens=120)
        while not any(request.ids for request in vllm.engine.requests):
            time.sleep(0.001)
        publisher.pause()
        late = pool.submit(server.probe, PROMPT, tokens=4)  # as of an evaluation that begins meanwhile
        change(policy)
        publisher.publish(policy, 1)
        assert not running.done()
        assert not late.done()
        publisher.wake()
        first, second = running.result(60), late.result(60)
    assert [version for version, _, _ in first.versions] == ["0", "1"]
    assert [version for version, _, _ in second.versions] == ["1"]
    assert len(first.tokens) == 120


def test_weights_that_did_not_arrive_are_found_before_the_next_step(
    turns: TurnSession, vllm: Recorded, policy: Policy
) -> None:
    turns.pause()
    change(policy)
    vllm.answers["/update_weights"] = [(200, '{"success": true}')]
    turns.publish(policy, 0, Metrics())
    turns.hand_over(policy)
    with pytest.raises(WeightSyncError, match="log-probabilities differ"):
        turns.take_back(policy, Metrics())


def test_a_sleep_that_answers_an_error_is_the_runs_error(turns: TurnSession, vllm: Recorded) -> None:
    vllm.answers["/sleep"] = [(500, "Memory usage increased after sleeping.")]
    with pytest.raises(WeightSyncError, match=r"phase sleep: HTTP 500: Memory usage increased") as failed:
        turns.pause()
    assert not failed.value.gone


@pytest.mark.parametrize(
    ("path", "answer", "why"),
    [
        ("/wake_up", (200, '{"status": "sleeping", "tags": ["kv_cache"]}'), "phase wake: it says that it still sleeps"),
        ("/wake_up", (500, "CUDA error: out of memory"), "phase wake: HTTP 500: CUDA error: out of memory"),
        ("/wake_up", (0, "{}"), "phase wake: no answer within 0.5 s"),
    ],
)
def test_a_server_that_does_not_wake_is_an_error_with_what_happens_next(
    path: str, answer: tuple[int, str], why: str, vllm: Recorded, policy: Policy, tmp_path: Path
) -> None:
    publisher = publisher_of(vllm, policy, tmp_path, deadline_s=0.5 if answer[0] == 0 else 30.0)
    publisher.pause()
    publisher.publish(policy, 0)
    vllm.answers[path] = [answer]
    with pytest.raises(WeightSyncError, match=why) as failed:
        publisher.wake()
    assert "it stays asleep: the next start of the trainer wakes it and sends the weights" in str(failed.value)
    assert not failed.value.gone


def test_an_update_that_breaks_off_leaves_the_server_paused_and_the_next_trainer_repairs_it(
    vllm: Recorded, policy: Policy, tmp_path: Path
) -> None:
    publisher = publisher_of(vllm, policy, tmp_path, sleep_level=2)
    publisher.pause()
    vllm.answers["/update_weights"] = [(500, "half")]
    with pytest.raises(WeightSyncError, match="phase update: HTTP 500: half; it stays asleep"):
        publisher.publish(policy, 4)
    assert vllm.engine.paused
    assert vllm.engine.updating
    vllm.taken()
    again = publisher_of(vllm, policy, tmp_path, sleep_level=2)
    again.pause()
    again.publish(policy, 4, PROMPT)
    probe, _ = again.wake()
    assert probe is not None
    assert probe.versions[0][0] == "4"


def test_a_server_left_asleep_is_woken_by_the_next_trainers_first_call_and_samples_only_new_weights(
    vllm: Recorded, policy: Policy, tmp_path: Path
) -> None:
    publisher_of(vllm, policy, tmp_path, sleep_level=2).pause()  # that trainer dies here
    vllm.taken()
    publisher = publisher_of(vllm, policy, tmp_path, sleep_level=2)
    publisher.check()
    publisher.pause()
    assert vllm.taken() == ["/wake_up?tags=weights"]
    assert vllm.engine.paused
    publisher.publish(policy, 7, PROMPT)
    probe, _ = publisher.wake()
    assert probe is not None
    assert probe.versions == [("7", 0, len(probe.tokens))]


def test_a_server_that_was_started_again_while_it_slept_gets_the_weights(
    turns: TurnSession, vllm: Recorded, policy: Policy, models: dict[str, Path]
) -> None:
    """The new one is awake: it is put to sleep before its weights are touched."""
    turns.pause()
    turns.publish(policy, 0, Metrics())
    turns.hand_over(policy)
    turns.take_back(policy, Metrics())
    engine = vllm.engine = Engine(models["llama"], token_s=0.002)
    vllm._app = Server(engine, 256).app()
    vllm.taken()
    change(policy)
    turns.publish(policy, 1, Metrics())
    woken = ["/wake_up?tags=weights", "/sleep?level=1&mode=keep", "/wake_up?tags=weights"]
    assert vllm.taken() == [*woken, "/init_weight_transfer_engine", *UPDATE]
    turns.hand_over(policy)
    turns.take_back(policy, Metrics())


def test_a_server_that_dies_gets_the_device_to_start_again(
    turns: TurnSession, vllm: Recorded, policy: Policy, models: dict[str, Path]
) -> None:
    turns.pause()
    turns.publish(policy, 0, Metrics())
    turns.hand_over(policy)
    turns.take_back(policy, Metrics())
    state = turns._state
    assert isinstance(state, Counted)
    port = int(vllm.url.rpartition(":")[2])
    vllm.served.stop()
    back: list[Served] = []

    def start_again() -> None:
        while not state.is_off:
            time.sleep(0.01)
        vllm.engine = Engine(models["llama"], token_s=0.002)
        vllm._app = Server(vllm.engine, 256).app()
        back.append(Served(vllm, port=port))

    starting = threading.Thread(target=start_again)
    starting.start()
    change(policy)
    turns.publish(policy, 1, Metrics())
    starting.join()
    assert not state.is_off
    turns.hand_over(policy)
    turns.take_back(policy, Metrics())
    assert vllm.engine.version == "1"
    back[0].stop()


def test_a_server_that_comes_back_while_a_batch_is_waited_for_gets_the_weights_and_generates(
    turns: TurnSession, vllm: Recorded, policy: Policy, models: dict[str, Path]
) -> None:
    turns.pause()
    turns.publish(policy, 0, Metrics())
    turns.hand_over(policy)
    vllm.engine = Engine(models["llama"], token_s=0.002)
    vllm._app = Server(vllm.engine, 256).app()
    assert turns.publisher.behind() == [vllm.url]
    turns.catch_up(policy)
    state = turns._state
    assert isinstance(state, Counted)
    assert state.is_off
    assert vllm.engine.version == "0"
    assert not vllm.engine.paused
    assert turns.publisher.behind() == []


@pytest.mark.parametrize("level", [1, 2])
def test_a_run_that_is_stopped_while_it_waits_leaves_the_server_awake_with_its_weights(
    level: int, turns: TurnSession, vllm: Recorded, policy: Policy
) -> None:
    turns.publisher.sleep_level = level
    turns.pause()
    change(policy)
    turns.publish(policy, 0, Metrics())
    turns.hand_over(policy)
    turns.take_back(policy, Metrics())  # to save
    turns.hand_over(policy)
    assert (vllm.engine.paused, vllm.engine.version) == (False, "0")
    served = {name: tensor.clone() for name, tensor in vllm.engine.model.state_dict().items()}
    turns.take_back(policy, Metrics())
    assert all(torch.equal(served[name], tensor) for name, tensor in policy.state_dict_full().items())


def test_a_server_that_cannot_take_the_weights_again_is_not_woken(
    turns: TurnSession, vllm: Recorded, policy: Policy, models: dict[str, Path]
) -> None:
    turns.pause()
    turns.publish(policy, 0, Metrics())
    turns.hand_over(policy)
    vllm.engine = Engine(models["llama"], token_s=0.002)
    vllm._app = Server(vllm.engine, 256).app()
    vllm.answers["/update_weights"] = [(500, "half")]
    with pytest.raises(WeightSyncError, match="phase update: HTTP 500: half; it stays asleep"):
        turns.catch_up(policy)
    assert vllm.engine.paused


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # vLLM's imports
def test_what_the_ipc_engine_is_sent_is_what_the_installed_vllm_takes(
    models: dict[str, Path], policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real classes and the real unpacking of vLLM's engine, over a buffer in this process."""
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferInitInfo, IPCWeightTransferUpdateInfo
    from vllm.distributed.weight_transfer.packed_tensor import unpack_tensor

    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    buffers: dict[int, torch.Tensor] = {}
    fills: list[int] = []

    def export(buffer: torch.Tensor) -> dict[str, tuple[Any, ...]]:
        buffers[id(buffer)] = buffer
        return {"GPU-0": (id(buffer),)}

    def received(info: dict[str, Any]) -> dict[str, torch.Tensor]:
        taken = IPCWeightTransferUpdateInfo(**info)
        assert isinstance(taken.ipc_handles, dict)
        assert taken.tensor_sizes is not None
        (key,) = taken.ipc_handles["GPU-0"]
        packed = buffers[key][: sum(taken.tensor_sizes)]
        fills.append(len(taken.names))
        types = [getattr(torch, name) for name in taken.dtype_names]
        found = unpack_tensor(packed, taken.names, taken.shapes, types, taken.tensor_sizes)
        return {name: tensor.clone() for name, tensor in found}

    assert IPCWeightTransferInitInfo(**IpcTransfer.init_info).packed
    recorded = Recorded(Engine(models["llama"], token_s=0.002, ipc=received))
    try:
        transfer = IpcTransfer(FP32, export=export, buffer_bytes=20_000)
        publisher = ColocatedPublisher(recorded.url, transfer, policy.parallel, dtype=FP32, sleep_level=2)
        change(policy)
        publisher.pause()
        stats = publisher.publish(policy, 3)
        publisher.wake()
    finally:
        recorded.served.stop()
    assert stats is not None
    assert len(fills) > 1
    whole = policy.state_dict_full()
    assert sum(fills) == len(whole)
    assert stats.bytes == sum(4 * tensor.numel() for tensor in whole.values())
    served = recorded.engine.model.state_dict()
    assert all(torch.equal(served[name], tensor) for name, tensor in whole.items())


def test_a_cpu_has_a_folder_in_the_place_of_cuda_ipc(tmp_path: Path) -> None:
    assert transfer_for(torch.device("cpu"), tmp_path, FP32).backend == "disk"
    assert transfer_for(torch.device("cuda"), tmp_path, FP32).backend == "ipc"


def test_the_stand_in_refuses_what_would_kill_vllm(vllm: Recorded) -> None:
    httpx.post(f"{vllm.url}/sleep?level=1&mode=keep", trust_env=False)
    assert httpx.post(f"{vllm.url}/resume", trust_env=False).status_code == 500
    assert httpx.get(f"{vllm.url}/is_sleeping", trust_env=False).json() == {"is_sleeping": True}
    assert httpx.post(f"{vllm.url}/wake_up", trust_env=False).json()["status"] == "awake"
