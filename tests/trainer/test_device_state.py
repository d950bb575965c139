"""The trainer's state off its device and back: the same bits, the same tensors, the same steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.objective_ranks import groups_to_train
from trainer.config import TrainerConfig
from trainer.device_state import DeviceState, device_state
from trainer.metrics import Metrics
from trainer.parallel import Parallel
from trainer.step import prepare, set_old_logprobs, set_reference_logprobs, take_steps
from trainer.training_state import TrainingState

CPU = torch.device("cpu")


def test_storages_are_empty_while_off_and_hold_the_same_bits_after() -> None:
    weight, base = torch.randn(7, 3), torch.randn(20)
    views = [base[:8], base[5:]]
    step = torch.tensor(3.0)
    before = [tensor.clone() for tensor in (weight, *views, step)]
    state = DeviceState(lambda: [weight, *views, step], CPU)
    state.off()
    assert state.is_off
    assert state.bytes == 4 * (21 + 20 + 1)
    assert [tensor.untyped_storage().nbytes() for tensor in (weight, base, step)] == [0, 0, 0]
    state.off()
    state.on()
    assert not state.is_off
    for tensor, old in zip((weight, *views, step), before, strict=True):
        assert torch.equal(tensor, old)
    views[0][6] = 9.0
    assert views[1][1] == 9.0  # still one storage


def test_what_is_on_another_device_is_left_alone() -> None:
    here = torch.randn(4)
    state = DeviceState(lambda: [here, torch.empty(4, device="meta")], CPU)
    state.off()
    assert state.bytes == 16
    state.on()


def test_host_memory_is_taken_once() -> None:
    weight = torch.randn(5)
    state = DeviceState(lambda: [weight], CPU)
    state.off()
    (first,) = (host.data_ptr() for _, host in state._held)
    state.on()
    weight += 1
    state.off()
    assert [host.data_ptr() for _, host in state._held] == [first]
    state.on()


def trained(model: Path, parallel: Parallel, moves: bool, **options: Any) -> dict[str, torch.Tensor]:
    """Every tensor of a state after three steps; `moves`: off and on between all that is done."""
    batch = {"rollouts": 8, "group_size": 4, "context": 64, "max_tokens": 64}
    values = {"model": model, "run_dir": "unused", "batch": batch, "optimizer": {"lr": 0.01}, **options}
    config = TrainerConfig(**values)
    state = TrainingState(config, model, parallel)
    device = device_state(state)

    def turn() -> None:
        if moves:
            device.off()
            assert device.bytes > 0
            device.on()

    for _ in range(3):
        turn()
        batch_of = prepare(groups_to_train(), config, parallel)
        if state.reference is not None:
            set_reference_logprobs(batch_of, state.reference)
        set_old_logprobs(batch_of, state.policy, config, parallel)
        turn()
        assert take_steps(batch_of, state.policy, state.optimizer, config, parallel, Metrics(), state.reference) == 1
    turn()
    found = state.policy.state_dict_full()
    for number, moments in enumerate(state.optimizer.adamw.state.values()):
        for name, value in moments.items():
            local = value.to_local() if hasattr(value, "to_local") else value
            found[f"{number}.{name}"] = local.detach().clone()
    return found


@pytest.mark.parametrize(
    "options",
    [{}, {"objective": {"reference": "ema", "kl_coefficient": 0.1}}, {"optimizer": {"lr": 0.01, "moments": "bf16"}}],
    ids=["plain", "reference", "bf16 moments"],
)
def test_steps_with_turns_between_equal_those_without_bit_for_bit(
    models: dict[str, Path], alone: Parallel, options: dict[str, Any]
) -> None:
    plain, moved = (trained(models["llama"], alone, moves, **options) for moves in (False, True))
    assert plain.keys() == moved.keys()
    assert all(torch.equal(plain[name], moved[name]) for name in plain)
