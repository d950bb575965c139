"""The memory budget is what a step takes, within 10 %."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from benchmarks import memory
from benchmarks.memory import CASES, run
from tests.support.forked import Forked
from tests.trainer.conftest import make_groups
from trainer.config import Recompute
from trainer.model import attention, policy
from trainer.model.packing import MicroBatch, pack
from trainer.model.policy import Policy
from trainer.parallel import Parallel
from trainer.planning.live_bytes import LiveBytes
from trainer.planning.shapes import SHAPES
from trainer.planning.timeline import Setup, full_layout, plan
from trainer.planning.trace import KernelBytes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads on two busy cores wait for each other many times longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def qwen3(name: str, layers: int | None = None) -> PretrainedConfig:
    shape = SHAPES[name] if layers is None else {**SHAPES[name], "num_hidden_layers": layers}
    return AutoConfig.for_model("qwen3", **shape)


SLOW = (
    *("two ranks, full, untied", "full, small chunks, longer", "full, tied", "none, untied"),
    *("running mean, full, tied", "two ranks, frozen reference"),
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CASES]
)
def test_the_prediction_is_what_a_real_step_takes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "subprocess", SimpleNamespace(PIPE=subprocess.PIPE, Popen=Forked))
    found = run(name, tmp_path)
    for phase in ("old", "train", "update", *(["reference"] if CASES[name].reference != "none" else [])):
        assert found[f"predicted {phase}"] == pytest.approx(found[phase], rel=0.1), phase


@contextmanager
def simulated_world(size: int) -> Iterator[Parallel]:
    """Rank 0 of `size` ranks whose collectives do nothing."""
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    world = dist.group.WORLD
    assert world is not None
    try:
        yield Parallel(0, size, torch.device("cpu"), init_device_mesh("cpu", (size,)), world)
    finally:
        dist.destroy_process_group()


def whole_policy_peaks(
    config: PretrainedConfig, chosen: Setup, monkeypatch: pytest.MonkeyPatch
) -> tuple[float, float, float]:
    """Bytes at the peaks of forward without gradient, forward, backward: the real Policy on shapes without memory."""

    def build(_: Path) -> torch.nn.Module:
        with torch.device("meta"):
            model: torch.nn.Module = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation=attention.NAME
            )
        return model

    monkeypatch.setattr(policy, "build", build)
    monkeypatch.setattr(policy, "fill", lambda model, path, device: model.to_empty(device=device))
    monkeypatch.setattr(attention, "grouped_attention", attention.varlen_attention)
    layout = full_layout(chosen.context, chosen.max_tokens)
    trained = layout.total - sum(span.prompt for span in layout.spans)
    layout.varlen(torch.device("cpu"))
    with simulated_world(chosen.world_size) as parallel, FakeTensorMode(allow_non_fake_inputs=True):
        model = Policy(
            ".",
            parallel,
            activation_checkpointing=chosen.activation_checkpointing,
            logprob_chunk=chosen.logprob_chunk,
            compute_dtype=chosen.dtype,
        )
        places, ones = torch.zeros(trained, dtype=torch.int64), torch.ones(1)
        row = torch.zeros(layout.total, dtype=torch.int64)
        micro = MicroBatch(row, row.clone(), layout, places, places, places, ones, ones, places[:1], ones, [])
        live = KernelBytes()
        live.count([*model.parameters(), row, micro.position_ids, places])
        with live:
            with torch.no_grad():
                model.logprobs(micro, entropy=False)
            evaluated = live.peak
            model.logprobs(micro)[0].sum().backward()
            live.reset_peak()
            loss = model.logprobs(micro)[0].sum()
            forward = live.peak
            live.reset_peak()
            loss.backward()
            return evaluated, forward, live.peak


@pytest.mark.parametrize(
    ("name", "world_size", "mode", "context", "max_tokens", "chunk"),
    [
        ("Qwen3-14B", 8, "full", 8192, 8192, 1024),
        ("Qwen3-14B", 16, "selective", 2048, 4096, 512),
        ("Qwen3-8B", 3, "none", 1024, 2048, 2048),
        ("Qwen3-0.6B", 1, "full", 4096, 4096, 512),
    ],
)
def test_the_prediction_is_what_the_whole_policy_holds_on_shapes_without_memory(
    name: str,
    world_size: int,
    mode: Recompute,
    context: int,
    max_tokens: int,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = qwen3(name, layers=3)
    chosen = Setup(world_size, context, max_tokens, chunk, mode, 2, 1, recompute_old=True)
    evaluated, forward, backward = whole_policy_peaks(config, chosen, monkeypatch)
    phases = {moment.phase: moment for moment in plan(config, chosen).phases}
    without = {
        phase: moment.total - moment.parts["AdamW's moments (fp32, sharded)"] for phase, moment in phases.items()
    }
    assert without["old log-probabilities"] == pytest.approx(evaluated, rel=0.02)
    assert without["forward"] == pytest.approx(forward, rel=0.02)
    assert max(size for phase, size in without.items() if "backward" in phase) == pytest.approx(backward, rel=0.02)


def test_the_tracker_sees_what_the_allocator_gives(alone: Parallel, models: dict[str, Path]) -> None:
    shapes = [(40, [150, 100]), (30, [120, 90])]
    [micro] = pack(make_groups(shapes), [[1.0, 1.0]] * 2, 1000)
    trained = Policy(models["qwen3"], alone, activation_checkpointing="none", logprob_chunk=64)

    def step() -> None:
        trained.logprobs(micro)[0].sum().backward()
        for weight in trained.parameters():
            weight.grad = None

    step()
    live = LiveBytes()
    live.count([*trained.parameters(), *trained.buffers()])
    base = live.now
    with live:
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    assert live.peak - base == pytest.approx(peak, rel=0.05)


def test_more_of_anything_never_needs_less() -> None:
    model = qwen3("Qwen3-1.7B", layers=4)
    more: list[tuple[Recompute, int]] = [("full", 1024), ("full", 4096), ("selective", 4096), ("none", 4096)]
    needed = [plan(model, Setup(2, 1024, tokens, 512, mode, 2, 1, recompute_old=True)).needed for mode, tokens in more]
    assert all(less < more for less, more in pairwise(needed))


def test_the_parts_of_a_moment_make_its_total() -> None:
    budget = plan(qwen3("Qwen3-1.7B"), Setup(8, 1024, 2048, 512, "full", 2, 1, recompute_old=True))
    assert all(moment.total == sum(moment.parts.values()) for moment in budget.phases)
    assert budget.peak.total == max(moment.total for moment in budget.phases)
    weights = 1_720_574_976 * 4 / 8
    assert budget.peak.parts["weights (fp32, sharded)"] == pytest.approx(weights, rel=1e-3)


def test_shipped_shapes_are_those_of_the_published_sizes() -> None:
    billions = {"Qwen3-0.6B": 0.596, "Qwen3-1.7B": 1.721, "Qwen3-4B": 4.022, "Qwen3-8B": 8.191, "Qwen3-14B": 14.768}
    for name, expected in billions.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(qwen3(name))
        assert sum(weight.numel() for weight in model.parameters()) / 1e9 == pytest.approx(expected, abs=5e-4)
    assert json.dumps(SHAPES)
