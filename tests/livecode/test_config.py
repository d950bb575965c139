"""The environment's options: where they come from and what is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from environments.common.settings import ConfigError, load, write_yaml
from environments.launch.serve_model import ServeConfig
from environments.livecode.atropos_options import REPLACED
from environments.livecode.config import RunConfig, load_run_config

OPTIONS = [
    "model",
    "tokenizer",
    "servers",
    "servers_from",
    "servers_wait_s",
    "yarn_factor",
    "env.group_size",
    "env.inference_weight",
    "env.use_wandb",
    "env.rollout_server_url",
    "env.total_steps",
    "env.wandb_name",
    "env.num_rollouts_to_keep",
    "env.num_rollouts_per_group_for_logging",
    "env.problems",
    "env.seed",
    "env.shard",
    "env.problem_sampling",
    "env.sampling_floor_epochs",
    "env.prompt_style",
    "env.fewshot_turns",
    "env.fewshot_path",
    "env.fewshot_scaffold",
    "env.thinking",
    "env.context",
    "env.max_new_tokens",
    "env.temperature",
    "env.top_p",
    "env.overlong_baseline",
    "env.dynamic_sampling",
    "env.shuffle_rewards",
    "env.max_staleness",
    "env.max_concurrent_rollouts",
    "env.rollout_deadline_s",
    "env.verifier",
    "env.verifier_workers",
    "env.tests_dir",
    "env.verifier_urls",
    "env.verifier_concurrency",
    "env.verifier_starts_per_s",
    "env.verifier_strategy",
    "env.modal_app",
    "env.modal_volume",
    "env.modal_environment",
    "env.verifier_deadline_s",
    "env.test_order",
    "env.time_limit_s",
    "env.memory_limit_mb",
    "env.own_time_factor",
    "env.own_memory_factor",
    "env.decimal_tolerance",
    "env.run_dir",
    "env.record_rollouts_per_group",
    "env.record_every_groups",
    "env.record_tokens",
    "env.record_programs",
    "process.groups",
    "process.output",
    "evaluation.every",
    "evaluation.context",
    "evaluation.like",
    "evaluation.problems",
    "evaluation.n",
    "evaluation.temperature",
    "evaluation.top_p",
    "evaluation.greedy",
    "evaluation.seed",
    "evaluation.limit",
    "evaluation.profiles",
    "evaluation.semantics",
    "evaluation.cutoff",
    "evaluation.no_memory_limit_mb",
    "evaluation.route",
    "evaluation.served_model",
]


def describe_options() -> list[tuple[str, str, str]]:
    """Every option as (dotted name, default, sentence), in order; options of Atropos that are replaced are left out."""
    return list(_describe(RunConfig, ""))


def _describe(model: type[Any], prefix: str) -> list[tuple[str, str, str]]:
    rows = []
    for name, info in model.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and hasattr(inner, "model_fields"):
            rows += _describe(inner, f"{prefix}{name}.")
        elif name not in REPLACED:
            default = "required" if info.is_required() else json.dumps(info.get_default(call_default_factory=True))
            rows.append((prefix + name, default, info.description or ""))
    return rows


def test_the_set_of_options_is_a_decision() -> None:
    assert [name for name, _, _ in describe_options()] == OPTIONS


@pytest.mark.parametrize(("name", "context"), [("eval-40k", 40960), ("eval-81920", 81920)])
def test_the_recipes_evaluations_fit_the_model_as_it_is_served(tmp_path: Path, name: str, context: int) -> None:
    described = {"model_type": "qwen3", "max_position_embeddings": 40960, "rope_theta": 1000000}
    (tmp_path / "config.json").write_text(json.dumps(described))
    folder = Path(__file__).parents[2] / "configs" / "nouscoder-14b"
    config = load_run_config(folder / f"{name}.yaml", ["--model", str(tmp_path)])
    assert (config.env.context, config.evaluation.n, config.evaluation.temperature) == (context, 16, 0.6)
    if config.yarn_factor is not None:
        served = load(ServeConfig, ["--config", str(folder / "serve-81920.yaml"), "--model", str(tmp_path)])
        assert (served.yarn_factor, served.max_model_len) == (config.yarn_factor, context)
        with pytest.raises(ConfigError, match=r"yarn_factor 2 reaches 65536"):
            load_run_config(folder / f"{name}.yaml", ["--model", str(tmp_path), "--yarn_factor", "2"])


def test_like_sets_prompt_sampling_and_grading_at_once_and_refuses_another_value() -> None:
    config = load_run_config(None, ["--model", "m", "--evaluation.like", "nouscoder", "--evaluation.n", "16"])
    env, evaluation = config.env, config.evaluation
    assert (env.prompt_style, env.max_new_tokens, env.decimal_tolerance) == ("nouscoder", None, 1e-4)
    assert (evaluation.n, evaluation.temperature, evaluation.top_p, evaluation.greedy) == (16, 0.6, 0.95, False)
    assert evaluation.profiles == ["nouscoder"]
    official = load_run_config(None, ["--model", "m", "--evaluation.like", "livecodebench"])
    assert (official.env.prompt_style, official.evaluation.semantics) == ("livecodebench", "official")
    with pytest.raises(ConfigError, match=r"evaluation.n '4' with evaluation.like nouscoder, which sets it to 16"):
        load_run_config(None, ["--model", "m", "--evaluation.like", "nouscoder", "--evaluation.n", "4"])
    with pytest.raises(ConfigError, match=r"evaluation.like"):
        load_run_config(None, ["--model", "m", "--evaluation.like", "verl"])


def test_what_an_evaluation_wrote_can_be_read_again(tmp_path: Path) -> None:
    config = load_run_config(None, ["--model", "m", "--evaluation.like", "nouscoder"])
    write_yaml(config, tmp_path / "evaluate.yaml")
    assert load_run_config(tmp_path / "evaluate.yaml") == config


def test_every_option_has_its_sentence() -> None:
    assert all(sentence for _, _, sentence in describe_options())


def test_a_flag_beats_the_file_and_the_file_the_default(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\nservers: ['http://a:1']\nenv: {group_size: 4, temperature: 0.7}\n")
    config = load_run_config(path, ["--env.group_size", "16"])
    assert (config.env.group_size, config.env.temperature, config.env.top_p) == (16, 0.7, 1.0)


def test_several_servers_fit_into_one_flag() -> None:
    config = load_run_config(None, ["--model", "m", "--servers", "http://a:1,http://b:2"])
    assert config.servers == ["http://a:1", "http://b:2"]


def test_a_saved_configuration_can_be_read_again(tmp_path: Path) -> None:
    config = load_run_config(None, ["--model", "m", "--env.context", "3000"])
    write_yaml(config, tmp_path / "used.yaml")
    assert load_run_config(tmp_path / "used.yaml") == config


def test_an_unknown_key_names_the_nearest_known_one(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\nenv: {grup_size: 4}\n")
    with pytest.raises(ConfigError, match=r"env.grup_size: unknown option. Did you mean env.group_size"):
        load_run_config(path)


@pytest.mark.parametrize("name", sorted(REPLACED))
def test_an_option_of_atropos_without_effect_here_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} = .*has no effect in this environment"):
        load_run_config(None, ["--model", "m", f"--env.{name}", "7"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env.context", "100", "--env.max_new_tokens", "100"], "raise context or lower max_new_tokens"),
        (["--env.top_p", "0.95"], "training needs 1.0; set evaluation.top_p"),
        (["--env.group_size", "1"], "env.group_size = '1'.*greater than or equal to 2"),
        (["--env.max_concurrent_rollouts", "4"], "max_concurrent_rollouts 4 < group_size 8.*to 8 or more"),
        (["--env.temperature", "0"], "env.temperature"),
        (["--env.fewshot_path", "x.json"], "set prompt_style to fewshot"),
        (["--env.total_steps", "0"], "total_steps 0: set 1 or more, or -1"),
        (["--env.prompt_style", "chat"], "env.prompt_style = 'chat'"),
        (["--servers", "localhost:8000"], "write it as http://HOST:PORT"),
        (["--model", "./nowhere"], "no model there"),
        (["--env.verifier", "http"], "http needs the addresses of its services"),
        (["--env.verifier_urls", "http://h:1"], "and nothing else takes them"),
    ],
)
def test_a_refused_value_names_field_value_and_fix(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run_config(None, ["--model", "m", *flags])


def test_a_context_above_the_models_is_refused(model_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"env.context 5000 > the model's 4096 tokens: lower env.context to 4096"):
        load_run_config(None, ["--model", str(model_dir), "--env.context", "5000"])
