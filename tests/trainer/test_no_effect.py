"""An option that the other options make ineffective is refused with the fix; where it does something, it is taken."""

from __future__ import annotations

import pytest

from environments.common.settings import ConfigError, load
from trainer.config import TrainerConfig

BASE = ["--model", "m", "--run_dir", "r"]
ONE_STEP = {"clip_low": "0.1", "clip_high": "0.3", "dual_clip": "3", "kl_coefficient": "0.01"}
NOT_TAKEN = ("dr_grpo", "dual_clip")
OWNED = {"tis_cap": ("tis or sequence_tis", "3"), "icepop_low": ("icepop", "0.7"), "icepop_high": ("icepop", "4")}


def objective(**options: str) -> TrainerConfig:
    flags = [word for name, value in options.items() for word in (f"--objective.{name}", value)]
    return load(TrainerConfig, [*BASE, *flags])


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, option) for name in ("grpo", "dapo", "dr_grpo") for option in ONE_STEP if (name, option) != NOT_TAKEN],
)
def test_what_needs_a_ratio_other_than_one_is_refused_where_there_is_none(name: str, option: str) -> None:
    value = ONE_STEP[option]
    with pytest.raises(ConfigError, match=rf"{option} {value}.* has no effect.*optimizer_steps_per_batch to 2 or more"):
        objective(name=name, **{option: value})
    objective(name=name, optimizer_steps_per_batch="2", **{option: value})
    objective(name=name, old_logprobs="sampler", **{option: value})


@pytest.mark.parametrize("option", OWNED)
def test_a_bound_of_another_weight_is_refused(option: str) -> None:
    owner, value = OWNED[option]
    owners = set(owner.split(" or "))
    for weight in owners:
        objective(importance_weight=weight, **{option: value})
    for weight in {"tis", "sequence_tis", "icepop", "none"} - owners:
        with pytest.raises(ConfigError, match=rf"{option} {value}.* has no effect.*importance_weight: {owner}"):
            objective(importance_weight=weight, **{option: value})


def test_a_bound_of_the_weight_is_refused_with_the_samplers_old_log_probabilities() -> None:
    with pytest.raises(ConfigError, match="old_logprobs 'sampler'"):
        objective(old_logprobs="sampler", tis_cap="3")


def test_defaults_that_are_written_out_are_no_settings() -> None:
    """A run's own config/trainer.yaml names every option."""
    objective(tis_cap="2.0", icepop_low="0.5", importance_weight="none", kl_coefficient="0")


@pytest.mark.parametrize("name", ["grpo", "gspo"])
def test_more_optimizer_steps_than_groups_are_refused(name: str) -> None:
    flags = ["--batch.rollouts", "16", "--batch.group_size", "8", "--objective.name", name]
    load(TrainerConfig, [*BASE, *flags, "--objective.optimizer_steps_per_batch", "2"])
    with pytest.raises(ConfigError, match=r"3 with 2 groups in a batch.*set it to 2 or less, or batch.rollouts to 24"):
        load(TrainerConfig, [*BASE, *flags, "--objective.optimizer_steps_per_batch", "3"])


@pytest.mark.parametrize("bound", ["clip_high", "tis_cap", "icepop_high", "kl_coefficient"])
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_bounds_that_bound_nothing_are_refused(bound: str, value: str) -> None:
    with pytest.raises(ConfigError, match=bound):
        objective(optimizer_steps_per_batch="2", **{bound: value})


@pytest.mark.parametrize("reference", ["none", "frozen", "ema"])
def test_options_of_a_reference_that_is_not_there_are_refused(reference: str) -> None:
    if reference == "none":
        with pytest.raises(ConfigError, match=r"kl_coefficient 0.01 has no effect.*or set reference: frozen"):
            objective(kl_coefficient="0.01")
        with pytest.raises(ConfigError, match=r"reference_offload True has no effect: there is no reference"):
            objective(reference_offload="true")
    else:
        objective(reference=reference, reference_offload="true", kl_coefficient="0.01")
    if reference == "ema":
        objective(reference=reference, reference_decay="0.5")
    else:
        with pytest.raises(ConfigError, match=r"reference_decay 0.5 has no effect.*set reference: ema"):
            objective(reference=reference, reference_decay="0.5")


def test_a_share_of_no_decay_is_refused() -> None:
    load(TrainerConfig, [*BASE, "--optimizer.decay", "cosine", "--optimizer.decay_share", "0.5"])
    with pytest.raises(ConfigError, match=r"decay_share 0.5 has no effect with decay none"):
        load(TrainerConfig, [*BASE, "--optimizer.decay_share", "0.5"])


@pytest.mark.parametrize(("option", "value"), [("optimizer", "keep"), ("select", "latest")])
def test_what_is_taken_from_an_earlier_run_needs_one(option: str, value: str) -> None:
    load(TrainerConfig, [*BASE, "--init_from.run", "before", f"--init_from.{option}", value])
    with pytest.raises(ConfigError, match="without a run: set init_from"):
        load(TrainerConfig, [*BASE, f"--init_from.{option}", value])
