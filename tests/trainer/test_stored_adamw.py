"""AdamW's moments in less memory: how far they can be from plain AdamW's, what they take, and that they resume."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from environments.common.errors import ConfigError
from tests.trainer.two_ranks import ADAPTER, LEVERS, start, train, weights, whole_moments
from trainer import stored_adamw
from trainer.checkpoints import CheckpointError, Checkpoints
from trainer.config import OptimizerConfig
from trainer.moment_formats import Moments, dynamic_map, kept_bytes, quantised, read, rounded_stochastically
from trainer.optimizer import PolicyOptimizer
from trainer.parallel import Parallel
from trainer.planning.disk_use import _moments
from trainer.planning.live_bytes import LiveBytes
from trainer.planning.update_trace import update_bytes
from trainer.stored_adamw import StoredAdamW

CPU = torch.device("cpu")
SHAPES = ((6, 600), (3, 40), (7,))
"""Blocks of 200, a block of less than 256, and a vector."""
FP32 = 1e-5
"""Relative error of a dozen operations in fp32, amply."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight of the tests is updated in several parts, as a large one is."""
    monkeypatch.setattr(stored_adamw, "PART", 1300)


def optimizers(**options: Any) -> OptimizerConfig:
    return OptimizerConfig.model_validate({"lr": 1e-2, "max_grad_norm": 1e9, **options})


def module(seed: int = 0) -> nn.Module:
    draw = torch.Generator().manual_seed(seed)
    made = nn.Module()
    for number, shape in enumerate(SHAPES):
        made.register_parameter(f"w{number}", nn.Parameter(torch.randn(shape, generator=draw)))
    return made


def gradients(step: int) -> list[Tensor]:
    """Magnitudes over three decades within a block, signs at random, and every fourth entry zero in odd steps."""
    draw = torch.Generator().manual_seed(100 + step)
    found = []
    for shape in SHAPES:
        value = torch.randn(shape, generator=draw) * 10 ** (-3 * torch.linspace(0, 1, shape[-1]))
        if step % 2:
            value[..., ::4] = 0
        found.append(value)
    return found


@pytest.mark.parametrize("state", ["device", "cpu"])
def test_moments_in_fp32_by_parts_are_torchs_adamw_bit_for_bit(state: str) -> None:
    ours, plain = module(), module()
    optimizer = StoredAdamW([{"params": list(ours.parameters())}], lr=1e-2, moments="fp32", host=state == "cpu")
    expected = torch.optim.AdamW(plain.parameters(), lr=1e-2, fused=True)
    for step in range(4):
        for target in (ours, plain):
            for weight, gradient in zip(target.parameters(), gradients(step), strict=True):
                weight.grad = gradient
        optimizer.step()
        expected.step()
    for weight, same in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(weight, same)
        for name in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[weight][name], expected.state[same][name])


@dataclass
class Bound:
    """How far an entry's moments and weight can be from exact AdamW's, by the rounding of one update after another.

    A moment is beta times what was kept, and what was kept is the moment within a rounding: so the error grows by at
    most one rounding an update, and beta takes from it. The update's error is that of m / sqrt(v) at the corners.
    """

    moments: Moments
    errors: dict[str, Tensor]
    weight: Tensor

    def rounding(self, exact: Tensor, error: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
        """bf16: one of two neighbours, so less than their distance, at most 2^-7 of the value. int8: half the largest
        gap of the map, of the block's largest entry (the first one above zero is nearer to zero than that)."""
        if f"{name}_scale" not in state:
            return (exact.abs() + error) * (2**-7 if self.moments == "bf16" else FP32)
        table = dynamic_map(name == "exp_avg", CPU)
        scale = state[f"{name}_scale"].double()
        block = exact.shape[1] // scale.shape[1]
        return scale.repeat_interleave(block, 1) * float((table[1:] - table[:-1]).max()) / 2 + exact.abs() * FP32

    def after(self, exact: dict[str, Tensor], gradient: Tensor, step: int, config: OptimizerConfig) -> None:
        """The moments' errors of this update, from those of what was kept, and what they add to the weight's."""
        for name, beta in zip(exact, config.betas, strict=True):
            self.errors[name] = self.errors[name] * beta + exact[name].abs() * FP32
        (first, second), betas = (exact[name] for name in exact), config.betas
        one, two = (1 - beta**step for beta in betas)
        # The second moment is at least what this gradient adds to it.
        least = (second - self.errors["exp_avg_sq"]).clamp(min=0).maximum((1 - betas[1]) * gradient**2 * (1 - FP32))
        ends = [(value / two).sqrt() + config.eps for value in (least, second + self.errors["exp_avg_sq"])]
        update = first / one / ((second / two).sqrt() + config.eps)
        corners = [(first + sign * self.errors["exp_avg"]) / one / end - update for sign in (-1, 1) for end in ends]
        self.weight = self.weight + config.lr * torch.stack(corners).abs().amax(0) + FP32 * config.lr

    def kept(self, exact: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        """The errors of what is kept now."""
        for name in exact:
            self.errors[name] = self.errors[name] + self.rounding(exact[name], self.errors[name], state, name)


@pytest.mark.parametrize("state", ["device", "cpu"])
@pytest.mark.parametrize("moments", ["bf16", "int8"])
def test_weights_and_moments_stay_within_the_sum_of_the_roundings(moments: Moments, state: str) -> None:
    config = optimizers(moments=moments, state=state)
    ours, plain = module(), module().double()
    optimizer = PolicyOptimizer(ours, config)
    expected = torch.optim.AdamW(plain.parameters(), lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=0)
    bounds = [
        Bound(moments, dict.fromkeys(("exp_avg", "exp_avg_sq"), torch.zeros(())), torch.zeros(())) for _ in SHAPES
    ]
    begun = [weight.detach().clone() for weight in plain.parameters()]
    for step in range(1, 31):
        for target in (ours, plain):
            for weight, gradient in zip(target.parameters(), gradients(step), strict=True):
                weight.grad = gradient.to(weight.dtype)
        optimizer.step()
        expected.step()
        for bound, weight, same, gradient in zip(
            bounds, ours.parameters(), plain.parameters(), gradients(step), strict=True
        ):
            exact = {name: expected.state[same][name] for name in ("exp_avg", "exp_avg_sq")}
            state_of = optimizer.adamw.state[weight]
            bound.after(exact, gradient.double(), step, config)
            bound.kept(exact, state_of)
            for name, value in exact.items():
                kept = {"": state_of[name], "_scale": state_of.get(f"{name}_scale", torch.empty(0))}
                found = read(kept, signed=name == "exp_avg").double()
                assert ((found - value).abs() <= bound.errors[name]).all(), (name, step)
            assert ((weight - same).abs() <= bound.weight + FP32 * same.abs()).all(), step
    moved = [(weight.detach() - start).abs() for weight, start in zip(plain.parameters(), begun, strict=True)]
    apart = [
        (weight.detach() - same.detach()).abs()
        for weight, same in zip(ours.parameters(), plain.parameters(), strict=True)
    ]
    for far, own in zip(apart[:2], moved[:2], strict=True):
        assert 0 < float(far.mean()) < 0.1 * float(own.mean())


def test_stochastic_rounding_takes_a_neighbour_and_is_right_on_average() -> None:
    draw = torch.Generator().manual_seed(1)
    values = torch.randn(20_000, generator=draw) * 10 ** torch.empty(20_000).uniform_(-20, 10, generator=draw)
    rounded = rounded_stochastically(values, draw).float()
    spacing = 2.0 ** (values.abs().log2().floor() - 7)
    assert ((rounded - values).abs() < spacing).all()
    value = torch.full((40_000,), -1.0 - 0.3 * 2**-7)
    share = float((rounded_stochastically(value, draw).float() == -1.0 - 2**-7).float().mean())
    assert share == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / 40_000) ** 0.5)
    exact = rounded.to(torch.bfloat16)
    assert torch.equal(rounded_stochastically(exact.float(), draw), exact)


def test_a_second_moment_in_bf16_decays_where_rounding_to_nearest_would_keep_it() -> None:
    decay = 0.999
    draw = torch.Generator().manual_seed(2)
    nearest = stochastic = torch.ones(1000, dtype=torch.bfloat16)
    for _ in range(500):
        nearest = (nearest.float() * decay).to(torch.bfloat16)
        stochastic = rounded_stochastically(stochastic.float() * decay, draw)
    assert torch.equal(nearest.float(), torch.ones(1000))
    # An entry's relative errors are below 2^-7, independent, with the mean zero.
    assert float(stochastic.float().mean()) == pytest.approx(decay**500, rel=5 * 2**-7 * (500 / 1000) ** 0.5)


@pytest.mark.parametrize("signed", [True, False])
def test_a_code_is_the_nearest_value_of_the_map_and_keeps_what_is_above_zero(signed: bool) -> None:
    table = dynamic_map(signed, CPU)
    assert len(table) == 256
    assert (table[1:] > table[:-1]).all()
    # Some of bitsandbytes' and torchao's values.
    expected = [0.0, 5.5e-7, 3.25e-6, 0.992969] if signed else [0.103516, 0.110547, 0.117578, 0.996484]
    assert table[[127, 128, 129, 254]].tolist() == pytest.approx(expected, rel=1e-5)
    value = torch.randn(5, 3, 200) * 10 ** torch.linspace(-9, 0, 200)
    value = value if signed else value.abs()
    value[0] = 0
    codes, scale = quantised(value, signed=signed)
    flat = value.view(5, 3, 200)
    shares = flat / scale[:, :, None].clamp(min=1e-30)
    found = table[codes.int()]
    nearest = (shares[..., None] - table).abs().amin(-1)
    kept = (shares > 0) & (shares < float(table[table > 0].min()))
    close = (found - shares).abs() <= nearest + 1e-7
    assert (close | (kept if not signed else torch.zeros_like(kept))).all()
    assert (found[0] == 0).all()
    assert signed or (found[shares > 0] > 0).all()


def test_a_step_is_bounded_where_a_gradient_ends_next_to_a_larger_one() -> None:
    """With a second moment of zero, m / (sqrt(0) + eps) would be a step of thousands of times lr."""
    weight = nn.Parameter(torch.zeros(1, 256))
    optimizer = StoredAdamW([{"params": [weight]}], lr=1.0, moments="int8", host=False)
    gradient = torch.full((1, 256), 1e-4)
    gradient[0, 0] = 1.0  # of the block's largest second moment the others' share is 1e-8
    for factor in (1.0, 0.0):
        before = weight.detach().clone()
        weight.grad = gradient * factor
        optimizer.step()
    assert float((weight.detach() - before).abs().max()) < 2


@pytest.mark.parametrize(("moments", "each"), [("fp32", 8.0), ("bf16", 4.0), ("int8", 2 + 8 / 256)])
@pytest.mark.parametrize("host", [False, True])
def test_bytes_of_a_parameter_counted_from_the_tensors(moments: Moments, each: float, host: bool) -> None:
    weight = nn.Parameter(torch.zeros(64, 1024))
    optimizer = StoredAdamW([{"params": [weight]}], lr=1.0, moments=moments, host=host)
    held = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for value in optimizer.state[weight].values()
        if value.ndim
    }
    assert sum(held.values()) / weight.numel() == each
    for shape in (*SHAPES, (64, 1024)):
        one = nn.Parameter(torch.zeros(shape))
        kept = StoredAdamW([{"params": [one]}], lr=1.0, moments=moments, host=host).state[one]
        counted = sum(value.nbytes for value in kept.values() if value.ndim)
        assert counted == kept_bytes(moments, shape) == _moments(shape, moments)


@pytest.mark.parametrize("moments", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("host", [False, True])
def test_the_memory_of_an_update_is_the_predicted_one(moments: Moments, host: bool) -> None:
    shape = (60, 600)
    weight = nn.Parameter(torch.zeros(shape))
    weight.grad = torch.zeros(shape)
    optimizer = StoredAdamW([{"params": [weight]}], lr=1.0, moments=moments, host=host)
    with LiveBytes() as live:
        live.count([weight, weight.grad, *optimizer.state[weight].values()])
        base = live.now
        optimizer.step()
    update_bytes.cache_clear()
    predicted = update_bytes((shape, (3, 5)), moments, host=host)
    update_bytes.cache_clear()
    assert predicted == pytest.approx(live.peak - base, rel=0.02, abs=64)
    assert predicted < 40 * stored_adamw.PART * 4


@pytest.mark.parametrize("lever", LEVERS, ids=str)
@pytest.mark.parametrize("adapter", [False, True])
def test_resuming_is_bit_for_bit_the_uninterrupted_run(
    lever: tuple[str, Moments], adapter: bool, alone: Parallel, models: dict[str, Path], tmp_path: Path
) -> None:
    chosen = ADAPTER if adapter else None
    policy, optimizer = start(models["llama"], alone, chosen, lever)
    train(policy, optimizer, alone, 2)
    saving = Checkpoints(tmp_path, alone)
    saving.save(policy, optimizer, 2)
    losses = train(policy, optimizer, alone, 2)  # changes the moments while they are being written
    saving.wait()
    # Where the moments are does not matter to a checkpoint.
    elsewhere = ("device" if lever[0] == "cpu" else "cpu", lever[1])
    resumed, fresh = start(models["llama"], alone, chosen, elsewhere)
    Checkpoints(tmp_path, alone).load("latest", resumed, fresh)
    assert train(resumed, fresh, alone, 2) == losses
    for ours, expected in ((weights(resumed), weights(policy)), (whole_moments(fresh), whole_moments(optimizer))):
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[name], value) for name, value in expected.items())


@pytest.mark.parametrize("lever", LEVERS[1:], ids=str)
def test_two_ranks_round_as_one_and_one_goes_on_from_their_checkpoint(
    lever: tuple[str, Moments], alone: Parallel, models: dict[str, Path], two_ranks: dict[Any, Any]
) -> None:
    policy, optimizer = start(models["llama"], alone, None, lever)
    folder = two_ranks["folder"] / f"by-two-{lever[1]}"
    Checkpoints(folder, alone).load("latest", policy, optimizer)
    saved = two_ranks["moments after two", lever[1]]
    found = whole_moments(optimizer)
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], value) for name, value in saved.items())
    train(policy, optimizer, alone, 1)
    for name, value in two_ranks["levers after three", lever[1]].items():
        # The moments are the same, so the update differs by the order of the gradients' sums.
        assert (weights(policy)[name] - value).norm() <= 1e-5 * value.norm(), name


def test_a_checkpoint_of_other_moments_is_refused_with_both_names(
    alone: Parallel, models: dict[str, Path], tmp_path: Path
) -> None:
    saving = Checkpoints(tmp_path, alone)
    saving.save(*start(models["llama"], alone), 1)
    saving.wait()
    with pytest.raises(
        CheckpointError, match=r"moments in fp32, optimizer\.moments is int8; set optimizer\.moments to fp32"
    ):
        saving.load("latest", *start(models["llama"], alone, None, ("device", "int8")))
    saving.load("latest", start(models["llama"], alone, None, ("device", "int8"))[0], None)


def test_weights_that_fsdp_keeps_in_cpu_memory_and_others_that_do_not_fit_are_refused(alone: Parallel) -> None:
    class Elsewhere(DTensor):
        """As FSDP's CPU offload leaves a weight: its mesh is of GPUs."""

        @property
        def device_mesh(self) -> Any:
            return type("Mesh", (), {"device_type": "cuda"})

    layer = nn.Linear(8, 8)
    fully_shard(layer, mesh=alone.mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))
    weight = layer.weight
    weight.__class__ = Elsewhere
    with pytest.raises(
        ConfigError, match=r"optimizer\.moments bf16: FSDP's CPU offload .* set optimizer\.state: device"
    ):
        StoredAdamW([{"params": [weight]}], lr=1.0, moments="bf16", host=False)
    with pytest.raises(ConfigError, match=r"weights in torch\.bfloat16"):
        StoredAdamW([{"params": [nn.Parameter(torch.zeros(2, 2).bfloat16())]}], lr=1.0, moments="int8", host=True)


def test_a_weight_without_a_gradient_is_an_error() -> None:
    weight = nn.Parameter(torch.zeros(2, prod((2, 2))))
    with pytest.raises(ValueError, match="has no gradient"):
        StoredAdamW([{"params": [weight]}], lr=1.0, moments="int8", host=True).step()
