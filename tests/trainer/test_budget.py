"""The memory budget is what a step takes, within 10 %; operations are torch's count; what does not fit is refused."""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from benchmarks import memory
from benchmarks.memory import CASES, options, run
from environments.common.settings import load
from tests.support.forked import Forked
from tests.trainer.conftest import make_groups
from trainer.budget import BudgetConfig, main
from trainer.config import Recompute, TrainerConfig
from trainer.model import attention, policy
from trainer.model.layout import AttentionLayout, Span
from trainer.model.packing import MicroBatch, pack
from trainer.model.policy import Policy
from trainer.moment_formats import Moments
from trainer.parallel import Parallel
from trainer.planning.fit import check_memory, fixes, model_config, refusal, setup, tokens_per_second
from trainer.planning.flops import GPUS, attended_pairs, flops, step_flops
from trainer.planning.live_bytes import LiveBytes
from trainer.planning.shapes import SHAPES
from trainer.planning.timeline import GIB, Setup, full_layout, plan
from trainer.planning.trace import KernelBytes, sizes

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
"""5 to 16 s each, beside others of their kind."""


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


@pytest.mark.parametrize("backward", [False, True])
def test_operations_are_what_torch_counts(alone: Parallel, models: dict[str, Path], backward: bool) -> None:
    shapes = [(11, [7]), (5, [30]), (9, [1])]
    [micro] = pack(make_groups(shapes), [[1.0]] * 3, 1000)
    trained = Policy(models["qwen3"], alone, activation_checkpointing="full", logprob_chunk=16)
    config = trained.model.config
    # torch counts no product in place; the head's gradient is one.
    in_place = {torch.ops.aten.addmm_: lambda total, a, b, **_: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter, sdpa_kernel(SDPBackend.MATH):
        logprob = trained.logprobs(micro)[0]
        if backward:
            logprob.sum().backward()
    # torch counts the whole rectangle of a call, masked or causal.
    pairs = 0
    for span in micro.layout.spans:
        pairs += span.prompt**2
        batched = micro.layout.batches(span, micro.input_ids.device) if span.completions else None
        if batched is not None:
            pairs += sum(
                count * longest * (span.prompt + longest) for count, longest in (p.shape for p in batched.parts)
            )
        else:
            pairs += sum((span.prompt + length) ** 2 for length in span.completions)
    trained_tokens = len(micro.target)
    ours = flops(config, micro.layout.total, pairs, trained_tokens, backward=backward, recompute=True)
    assert ours == counter.get_total_flops()


def test_attention_is_counted_causally_and_a_shared_prompt_once() -> None:
    layout = AttentionLayout((Span(0, 3, (2, 1)), Span(6, 1, ())))
    seen = [1, 2, 3] + [4, 5] + [4] + [1]
    assert attended_pairs(layout) == sum(seen)
    alike = AttentionLayout((Span(0, 3, (2, 1)), Span(6, 1, (2,), 2, 0)))
    assert attended_pairs(alike) == sum([1, 2, 3] + [4, 5] + [4] + [3] + [4, 5])


def test_published_operations_of_a_14b() -> None:
    config = qwen3("Qwen3-14B")
    layout = AttentionLayout((Span(0, 1, (32_767,)),))
    # 6 x 13.99 B entries of matrices without the embedding, and 12 x layers x width x half the context.
    expected = 6 * 13.99e9 + 12 * 40 * 5120 * 32_768 / 2
    found = step_flops(config, layout, 32_768, backward=True, recompute=False) / 32_768
    assert found == pytest.approx(expected, rel=1e-3)


def test_tokens_per_second_are_the_peak_over_the_operations() -> None:
    assert tokens_per_second(token=100e9, gpus=8, peak=1000e12, mfu=0.25) == 20_000


def trainer_config(**changes: object) -> TrainerConfig:
    base = {
        "model": "models/Qwen3-0.6B",
        "run_dir": "r",
        "batch": {"rollouts": 64, "context": 4096, "max_tokens": 8192},
    }
    return TrainerConfig.model_validate({**base, **changes})


@pytest.mark.parametrize("seed", range(6))
def test_every_proposed_setting_fits_and_differs(seed: int) -> None:
    draw = random.Random(seed)
    model = qwen3(draw.choice(list(SHAPES)), layers=draw.choice([2, 6]))
    context = draw.choice([2048, 4096])
    config = trainer_config(
        activation_checkpointing=draw.choice(["full", "selective", "none"]),
        logprob_chunk=draw.choice([512, 1024, 4096]),
        batch={"rollouts": 64, "context": context, "max_tokens": context * draw.choice([1, 2, 3])},
    )
    world_size = draw.choice([1, 4])
    budget = plan(model, setup(config, world_size))
    memory = budget.needed * draw.choice([0.99, 0.9, 0.75])
    found = fixes(model, config, world_size, memory, True)
    assert found
    for fix in found:
        assert plan(model, setup(fix.config, fix.world_size)).needed <= memory
        assert (fix.config, fix.world_size) != (config, world_size)
        TrainerConfig.model_validate(fix.config.model_dump())
    message = refusal(model, config, world_size, budget, memory, True)
    assert f"batch.max_tokens = {config.batch.max_tokens}" in message
    assert all(fix.text in message for fix in found)


def test_a_longer_pack_is_named_with_the_length_that_fits() -> None:
    model = qwen3("Qwen3-0.6B", layers=4)
    config = trainer_config(batch={"rollouts": 64, "context": 4096, "max_tokens": 16_384}, logprob_chunk=256)
    fitting = plan(model, setup(trainer_config(logprob_chunk=256), 4)).needed
    [fix] = fixes(model, config, 4, fitting, True)
    assert fix.text == "set batch.max_tokens to 8192"


def test_what_the_moments_keep_from_fitting_names_the_levers_and_their_memory() -> None:
    model, config = qwen3("Qwen3-1.7B"), trainer_config(batch={"rollouts": 64, "context": 1024, "max_tokens": 1024})
    fitting = config.model_copy(update={"logprob_chunk": 256})
    held = setup(fitting, 1)
    least = plan(model, held).needed
    without = plan(model, replace(held, moments_on_cpu=True)).needed
    found = [fix.text for fix in fixes(model, fitting, 1, without, True)]
    assert found[0] == "set optimizer.state to cpu"
    assert found[1].startswith("start ")
    found = [fix.text for fix in fixes(model, fitting, 1, (least + without) / 2, True)]
    assert found[:2] == ["set optimizer.state to cpu", "set optimizer.moments to bf16"]


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("adapter", [None, (16, ("q_proj", "down_proj"))])
def test_levers_take_from_the_device_what_they_promise(
    world_size: int, adapter: tuple[int, tuple[str, ...]] | None
) -> None:
    model = qwen3("Qwen3-1.7B", layers=4)
    held = Setup(world_size, 1024, 2048, 512, "full", 2, 1, recompute_old=True, adapter=adapter)
    found = sizes(model, adapter)
    shapes = [shape for part in (found.adapters if adapter else (*found.blocks, found.root)) for shape in part]
    rows = [(-(-shape[0] // world_size), *shape[1:]) for shape in shapes]
    expected: dict[Moments, int] = {
        "fp32": sum(8 * prod(shape) for shape in rows),
        "bf16": sum(4 * prod(shape) for shape in rows),
        "int8": sum(
            2 * prod(shape) + 8 * shape[0] * -(-prod(shape[1:]) // 256) if len(shape) > 1 else 8 * shape[0]
            for shape in rows
        ),
    }
    for moments, size in expected.items():
        name = f"AdamW's moments ({moments}, sharded)"
        [beside, away] = [
            plan(model, replace(held, moments=moments, moments_on_cpu=on_cpu)) for on_cpu in (False, True)
        ]
        assert beside.peak.parts[name] == size
        assert (beside.host, away.host) == (0, size)
        assert all(name not in moment.parts for moment in away.phases)


def test_a_model_that_no_setting_makes_fit_says_so() -> None:
    model, config = qwen3("Qwen3-14B", layers=4), trainer_config()
    budget = plan(model, setup(config, 512))
    message = refusal(model, config, 512, budget, GIB, True)
    assert message.endswith("no setting of this model fits: use a smaller one or a larger device")


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


def test_the_command_accepts_a_folder_with_a_config_alone_as_well_as_a_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["--gpu", "h100", "--gpus", "8", "--batch.context", "2048", "--batch.max_tokens", "2048"]
    qwen3("Qwen3-1.7B").save_pretrained(tmp_path / "Qwen3-1.7B")
    assert main(["--model", str(tmp_path / "Qwen3-1.7B"), *shared]) == 0
    printed = capsys.readouterr().out
    assert main(["--model", "nowhere/Qwen3-1.7B", *shared]) == 0
    assert capsys.readouterr().out == printed
    assert "<- peak" in printed
    assert "estimate: " in printed


def test_what_does_not_fit_has_exit_code_one_and_the_setting_that_does(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "Qwen3-4B", "--gpus", "1", "--batch.context", "2048", "--batch.max_tokens", "65536"]
    assert main(flags) == 1
    error = capsys.readouterr().err
    assert error.startswith("error batch.max_tokens = 65536, batch.context = 2048 of Qwen3-4B on 1 ranks: ")
    fitting = re.search(r"set batch\.max_tokens to (\d+)", error)
    assert fitting is not None
    assert main([*flags[:-1], fitting[1]]) == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "elsewhere"], "model = elsewhere: no config.json there"),
        (["--model", "Qwen3-4B", "--gpu", "v100"], "gpu"),
        (["--model", "Qwen3-4B", "--gpus", "0"], "gpus"),
        (["--model", "Qwen3-4B", "--mfu", "1.5"], "mfu"),
    ],
)
def test_settings_that_cannot_be_used_are_named(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags) == 2
    assert words in capsys.readouterr().err


def test_every_gpu_of_the_table_can_be_chosen() -> None:
    choices = BudgetConfig.model_json_schema()["properties"]["gpu"]["enum"]
    assert list(GPUS) == choices


def test_the_recipes_stages_fit_on_eight_gpus_of_80_gb_but_not_on_four() -> None:
    for stage in ("32k", "40k"):
        config = load(TrainerConfig, ["--config", str(ROOT / f"configs/nouscoder-14b/train-{stage}.yaml")])
        needed = {ranks: plan(qwen3("Qwen3-14B"), setup(config, ranks)).needed / GIB for ranks in (4, 8)}
        assert needed[8] < GPUS["h100"].memory_gib < needed[4]


def test_nothing_is_checked_on_a_cpu_unless_a_limit_is_given(models: dict[str, Path]) -> None:
    case = CASES["full, tied"]
    config = options(models["llama"], case)
    cpu = torch.device("cpu")
    check_memory(config, 1, cpu)
    check_memory(config.model_copy(update={"memory_gib": 0.0}), 1, cpu)
    needed = plan(model_config(models["llama"]), setup(config, 1, cuda=False)).needed / GIB
    check_memory(config.model_copy(update={"memory_gib": needed * 1.01}), 1, cpu)
    with pytest.raises(RuntimeError, match=r"batch\.max_tokens = .* GiB needed on each"):
        check_memory(config.model_copy(update={"memory_gib": needed * 0.99}), 1, cpu)


def test_shipped_shapes_are_those_of_the_published_sizes() -> None:
    billions = {"Qwen3-0.6B": 0.596, "Qwen3-1.7B": 1.721, "Qwen3-4B": 4.022, "Qwen3-8B": 8.191, "Qwen3-14B": 14.768}
    for name, expected in billions.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(qwen3(name))
        assert sum(weight.numel() for weight in model.parameters()) / 1e9 == pytest.approx(expected, abs=5e-4)
    assert json.dumps(SHAPES)
