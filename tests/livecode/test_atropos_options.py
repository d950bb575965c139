"""Atropos' options are restated to start fast: they are the originals, and Atropos' own code gets its own class."""

from __future__ import annotations

import pytest
from atroposlib.envs.base import BaseEnvConfig, EvalHandlingEnum

from environments.livecode.atropos_compat import CompatBaseEnv, as_atropos
from environments.livecode.atropos_options import AtroposOptions, EvalHandling
from environments.livecode.config import LivecodeEnvConfig


def test_the_options_and_their_order_are_atropos_own() -> None:
    assert list(AtroposOptions.model_fields) == list(BaseEnvConfig.model_fields)
    assert {one.name: one.value for one in EvalHandling} == {one.name: one.value for one in EvalHandlingEnum}


@pytest.mark.parametrize("name", BaseEnvConfig.model_fields)
def test_an_option_is_restated_as_it_is(name: str) -> None:
    ours, theirs = AtroposOptions.model_fields[name], BaseEnvConfig.model_fields[name]
    if name == "eval_handling":
        assert (ours.annotation, ours.default.value) == (EvalHandling, theirs.default.value)
    else:
        assert (ours.annotation, ours.default) == (theirs.annotation, theirs.default)
    assert (ours.metadata, ours.description) == (theirs.metadata, theirs.description)


def test_atropos_gets_its_own_class_with_every_value() -> None:
    config = LivecodeEnvConfig(group_size=4, context=100, max_new_tokens=50, tests_dir="here")
    given = as_atropos(config)
    assert isinstance(given, BaseEnvConfig)
    assert isinstance(given, LivecodeEnvConfig)
    assert given.eval_handling is EvalHandlingEnum.STOP_TRAIN
    assert given.model_dump(mode="json") == config.model_dump(mode="json")
    assert given.model_fields_set == config.model_fields_set
    assert issubclass(CompatBaseEnv.env_config_cls, BaseEnvConfig)
