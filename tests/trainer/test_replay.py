"""A recorded step taken again is the same bit for bit, also resumed and on two ranks, or it says where it parts."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from environments.common.errors import ConfigError
from tests.support.forked import Ranks, completed
from tests.trainer.test_run import api_server, post_groups, trainer_words
from tests.trainer.two_ranks import whole
from trainer.checkpoints import Checkpoints
from trainer.config import OptimizerConfig, TrainerConfig
from trainer.main import main as trainer_main
from trainer.model.policy import Policy
from trainer.optimizer import PolicyOptimizer
from trainer.parallel import Parallel
from trainer.planning import disk_use
from trainer.replay import Replay, replay, replay_as_if
from trainer.replay_command import main, other_options
from trainer.replay_store import FOLDER, fingerprint, mixed_sum, read_step, stored_steps

HELD = ("--objective.reference", "ema", "--objective.reference_decay", "0.5", "--objective.kl_coefficient", "0.1")
TWO_UPDATES = ("--objective.optimizer_steps_per_batch", "2", "--keep_batches", "5")


def train(folder: Path, model: Path, ranks: int, stops: tuple[int, ...], *flags: str) -> Path:
    """A real run of three steps; it is started anew after each of `stops`. Checkpoints of steps 2 and 3 stay."""
    run = folder / "run"
    run.mkdir(parents=True)
    with api_server(folder) as url:
        post_groups(url, model, 0, 6)
        for last in (*stops, 3):
            words = trainer_words(url, model, run, *TWO_UPDATES, "--steps", str(last), *flags)
            Ranks(ranks, folder, trainer_main, words).wait()
    return run


@pytest.fixture(scope="module")
def resumed(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank, stopped after the first step and resumed."""
    return train(tmp_path_factory.mktemp("resumed"), models["llama"], 1, (1,), *HELD)


@pytest.fixture
def copied(resumed: Path, tmp_path: Path) -> Path:
    """A copy of the resumed run that a test may change."""
    return Path(shutil.copytree(resumed, tmp_path / "run"))


def change(run: Path, step: int, **changes: Any) -> None:
    """Writes a stored step with other fields."""
    stored = msgspec.structs.replace(read_step(run / FOLDER, step), **changes)
    path = run / FOLDER / f"step-{step:08d}.bin"
    path.write_bytes(zlib.compress(msgspec.msgpack.encode(stored)))


@pytest.mark.parametrize("step", [1, 2, 3])
def test_every_step_of_a_resumed_run_is_the_same_again(
    resumed: Path, step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in resumed.rglob("*") if path.is_file()}
    assert main([str(resumed), "--step", str(step)]) == 0
    assert "are the same bit for bit" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in resumed.rglob("*") if path.is_file()} == before


def test_the_weights_again_are_those_of_the_checkpoint_and_the_loss_is_that_of_the_record(
    resumed: Path, alone: Parallel
) -> None:
    again = Replay(resumed, 3, alone)
    assert again.begin == 2
    taken = again.take(again.stored[-1], again.config)
    weights = whole(dict(again.policy.model.named_parameters()))
    policy = Policy(again.model, alone)
    Checkpoints(resumed / "checkpoints", alone).load(
        "step-00000003", policy, PolicyOptimizer(policy, OptimizerConfig())
    )
    saved = whole(dict(policy.model.named_parameters()))
    assert weights.keys() == saved.keys()
    assert all(torch.equal(weights[name], saved[name]) for name in weights)
    row = json.loads((resumed / "metrics.jsonl").read_text().splitlines()[-1])
    assert taken.metrics["optimizer_steps"] == 2
    assert {name: row[name] for name in ("loss", "grad_norm", "entropy", "ratio_max")} == {
        name: taken.metrics[name] for name in ("loss", "grad_norm", "entropy", "ratio_max")
    }


@pytest.mark.parametrize(
    ("field", "phase"),
    [("logprobs", "batch"), ("score", "batch"), ("weights", "weights before the step"), ("loss", "metrics")],
)
def test_a_step_that_parts_names_the_first_tensor_and_phase(
    copied: Path, field: str, phase: str, alone: Parallel
) -> None:
    stored = read_step(copied / FOLDER, 3)
    first = stored.groups[0]
    if field == "logprobs":
        moved = dataclasses.replace(first.rollouts[1], logprobs=[x - 1e-6 for x in first.rollouts[1].logprobs])
        groups = [dataclasses.replace(first, rollouts=[first.rollouts[0], moved, *first.rollouts[2:]])]
        change(copied, 3, groups=[*groups, *stored.groups[1:]])
    elif field == "score":
        other = [dataclasses.replace(one, score=-one.score) for one in first.rollouts]
        change(copied, 3, groups=[dataclasses.replace(first, rollouts=other), *stored.groups[1:]])
    elif field == "weights":
        other_digests = [(*row[:2], "0" * 16) if at == 2 else row for at, row in enumerate(stored.digests)]
        change(copied, 3, digests=other_digests)
    else:
        change(copied, 3, metrics=stored.metrics | {"loss": 0.5})
    said = replay(copied, 3, alone)[0]
    assert said.startswith(f"step 3 parts in phase {phase!r}: ")
    named = {"logprobs": "part 0, micro-batch 0, sampler_logprob", "score": "micro-batch 0, advantage",
             "weights": stored.digests[2][1], "loss": "loss was 0.5, is "}[field]  # fmt: skip
    assert named in said


def test_a_step_that_parts_ends_with_one(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(copied, 3, metrics=read_step(copied / FOLDER, 3).metrics | {"loss": 0.5})
    assert main([str(copied), "--step", "3"]) == 1
    assert "metrics" in capsys.readouterr().out


def test_a_step_as_if_by_another_objective_compares_gradients_and_updates(resumed: Path, alone: Parallel) -> None:
    def other(*words: str) -> Any:
        return replay_as_if(resumed, 3, lambda config: other_options(config, words), alone)

    same = other("--optimizer.lr", "0.01")
    assert (same.gradient_cosine, same.gradient_ratio) == (pytest.approx(1, abs=1e-12), 1.0)
    assert (same.update_cosine, same.update_ratio) == (pytest.approx(1, abs=1e-12), 1.0)
    assert same.before.digests == same.after.digests
    # One update with a learning rate of half the size goes half as far in the same direction.
    half = other("--optimizer.lr", "0.005", "--objective.optimizer_steps_per_batch", "1")
    full = other("--objective.optimizer_steps_per_batch", "1")
    assert half.after.gradient.keys() == full.after.gradient.keys()
    for name, update in full.after.update.items():
        assert torch.allclose(half.after.update[name] * 2, update, atol=2e-6)
    free = other("--objective.reference", "none", "--objective.reference_decay", "0.99")
    assert free.before.metrics["kl_reference"] > 0
    assert free.after.metrics["kl_reference"] is None
    assert 0 < free.gradient_cosine < 1
    with pytest.raises(ConfigError, match="a running mean depends on every step before, and the run kept another"):
        other("--objective.reference_decay", "0.9")
    gspo = other("--objective.name", "gspo+")
    assert gspo.before.metrics["loss"] == same.before.metrics["loss"]
    assert 0 < gspo.gradient_cosine < 1
    assert not math.isclose(gspo.gradient_ratio, 1.0)


def test_groups_that_other_options_drop_are_named(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = read_step(copied / FOLDER, 3)
    first = stored.groups[0]
    # Judged as failed for their length: without them all that is left has passed.
    cut = [
        dataclasses.replace(one, overlong=one.score < 0, finish_reason="length" if one.score < 0 else "stop")
        for one in first.rollouts
    ]
    change(copied, 3, groups=[dataclasses.replace(first, rollouts=cut), *stored.groups[1:]])
    assert main([str(copied), "--step", "3", "--objective.overlong_baseline", "exclude"]) == 0
    said = capsys.readouterr().out
    assert f"groups dropped now: {first.group_id} (finished_equal)" in said
    assert "groups dropped no longer: none" in said
    assert "gradient: cosine" in said


def test_two_ranks_take_their_step_again_bit_for_bit(models: dict[str, Path], tmp_path: Path) -> None:
    run = train(tmp_path, models["qwen3"], 2, ())
    command = [sys.executable, "-m", "environments.cli", "replay", str(run), "--step", "3"]
    done = completed(command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "are the same bit for bit" in done.stdout
    as_if = [str(run), "--step", "3", "--objective.name", "gspo"]
    assert "update of the weights: cosine" in Ranks(2, tmp_path, main, as_if).wait()[0]


def test_only_the_newest_batches_stay_and_the_budget_has_room_for_them(
    resumed: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    assert stored_steps(resumed / FOLDER) == [1, 2, 3]
    config = TrainerConfig.model_validate(read_step(resumed / FOLDER, 3).config)
    use = disk_use.disk_use(config, {"weight": (3, 3)} | {f"w{n}": (1,) for n in range(20)})
    assert use.batches == 3
    assert all(path.stat().st_size < use.batch for path in (resumed / FOLDER).iterdir())
    assert disk_use.disk_use(config.model_copy(update={"keep_batches": 0}), {}).batches == 0
    assert "stored batches" in disk_use.line(use, tmp_path)


@pytest.mark.parametrize("of", [fingerprint, lambda tensor: mixed_sum(tensor.view(torch.int32))])
def test_equal_bits_alone_have_equal_fingerprints(of: Any) -> None:
    some = torch.randn(1000, dtype=torch.float32)
    assert of(some) == of(some.clone())
    exchanged = some.clone()
    exchanged[[3, 4]] = some[[4, 3]]
    nudged = some.clone()
    nudged[7] = torch.nextafter(some[7], torch.tensor(9.0))
    assert len({of(one) for one in (some, exchanged, nudged, torch.tensor([0.0]), torch.tensor([-0.0]))}) == 5
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0])  # their sums, weighted by places as well, are equal
    assert of(signs) != of(-signs)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--step", "9"], "no stored batch of it"),
        (["--step", "0"], "give 1 or more"),
        (["--step", "3", "--objective.name", "nope"], "objective.name"),
        (["--step", "3", "--objective.nam", "gspo"], "objective.nam"),
    ],
)
def test_what_cannot_be_replayed_is_said_before_anything_is_loaded(
    resumed: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(resumed), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_damaged_batch_and_a_missing_folder_are_refused(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / FOLDER / "step-00000003.bin"
    path.write_bytes(path.read_bytes()[:50])
    assert main([str(copied), "--step", "3"]) == 2
    assert "replay another step" in capsys.readouterr().err
    assert main([str(copied / "nowhere"), "--step", "3"]) == 2
