"""Parts of another package: found by entry point, used as our own, refused in one line where they cannot be."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from environments.cli import app
from environments.common.plugins import find, known
from environments.common.settings import ConfigError, load
from environments.dataset.sources import RECIPES, recipe_of
from environments.livecode.config import LivecodeEnvConfig
from environments.livecode.verification.factory import GROUP, VERIFIERS, build_verifier
from trainer.config import TrainerConfig
from trainer.objective.objectives import Denominators, policy_loss
from trainer.tracking import run_id, tracking
from verifier_app.judge import JudgeError, verify

BASE = ["--model", "m", "--run-dir"]


@pytest.fixture(autouse=True)
def example_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed as pip does it: a module and its dist-info in a folder of sys.path."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "example_plugin")


def trainer_config(run: Path, *flags: str) -> TrainerConfig:
    return load(TrainerConfig, [*BASE, str(run), *flags])


@pytest.mark.parametrize(("program", "status"), [("print(int(input()) * 2)", "accepted"), ("print(4)", "wrong_answer")])
async def test_the_verifier_of_another_package_judges(program: str, status: str) -> None:
    tests = [{"input": "2\n", "output": "4\n"}, {"input": "3\n", "output": "6\n"}]
    async with build_verifier(LivecodeEnvConfig(verifier="inline")) as verifier:
        assert (await verifier.verify({"code": program, "tests": tests}))["status"] == status


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("read a; echo $((a * 2))", "accepted"),
        ("echo 5", "wrong_answer"),
        ("exit 3", "runtime_error"),
        ("\0", "compile_error"),
    ],
)
def test_the_language_of_another_package_is_judged_in_the_same_sandbox(script: str, status: str) -> None:
    tests = [{"input": "2\n", "output": "4\n"}, {"input": "3\n", "output": "6\n"}]
    verdict = verify({"code": script, "language": "sh", "tests": tests})
    assert verdict["status"] == status
    assert verdict["isolation"]["layers"] == verify({"code": "", "tests": tests})["isolation"]["layers"]


def test_an_unknown_language_lists_ours_and_the_installed_ones() -> None:
    with pytest.raises(JudgeError, match=r"language: is 'rust'; give one of python, cpp, sh, torn"):
        verify({"code": "", "language": "rust", "tests": [{"input": "", "output": ""}]})


def test_a_language_that_its_package_lacks_is_no_verdict() -> None:
    with pytest.raises(
        JudgeError, match=r"^language_missing: language 'torn': example_language:Missing of group livec"
    ):
        verify({"code": "", "language": "torn", "tests": [{"input": "", "output": ""}]})


def test_our_own_verifiers_come_first_in_the_list_and_keep_their_names() -> None:
    assert known(GROUP, VERIFIERS) == ["local", "http", "modal", "broken", "inline"]
    assert find(GROUP, VERIFIERS, "local", "env.verifier") is VERIFIERS["local"]


def test_an_unknown_verifier_lists_ours_and_the_installed_ones() -> None:
    with pytest.raises(
        ValueError, match=r"verifier 'e2b' is unknown: choose one of local, http, modal, broken, inline"
    ):
        LivecodeEnvConfig(verifier="e2b")


def test_a_part_that_its_package_lacks_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"'broken': example_plugin:missing of group livecode.verifiers cannot be"):
        build_verifier(LivecodeEnvConfig(verifier="broken"))


def test_addresses_and_the_strategy_problem_are_left_to_another_packages_verifier() -> None:
    config = LivecodeEnvConfig(verifier="inline", verifier_urls=["http://a:1"], verifier_strategy="problem")
    assert (config.verifier_urls, config.verifier_strategy) == (["http://a:1"], "problem")


def test_the_objective_of_another_package_is_a_row_of_the_table(tmp_path: Path) -> None:
    row = trainer_config(tmp_path, "--objective.name", "dapo_wide").objective.row
    # ratio 1.4 of a positive advantage: inside 1.5, beyond dapo's 1.28
    new = torch.tensor([1.4]).log().requires_grad_()
    packed = (torch.zeros(1), torch.tensor([0]), torch.tensor([1.0]), torch.tensor([1]))
    loss, _ = policy_loss(row, new, *packed, Denominators(1, 1))
    loss.backward()
    assert loss.item() == pytest.approx(-1.4)
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(-1.4)


def test_the_rules_of_the_table_hold_for_another_packages_rows(tmp_path: Path) -> None:
    for flags, words in (
        (["dapo", "--objective.old-logprobs", "sampler", "--objective.dual-clip", "3"], None),
        (["dapo_wide", "--objective.old-logprobs", "sampler", "--objective.dual-clip", "3"], None),
        (["gspo_dr", "--objective.old-logprobs", "sampler"], "exceeds its clip range 0.0003/0.0004"),
        (["gspo_dr"], "differs from dr_grpo only by"),
        (["gspo_dr", "--objective.optimizer-steps-per-batch", "2", "--objective.dual-clip", "3"], "use grpo or dapo"),
        (["ppo"], "name 'ppo' is unknown: choose one of grpo, dapo, gspo, gspo+, dr_grpo, dapo_wide, gspo_dr"),
    ):
        if words is None:
            assert trainer_config(tmp_path, "--objective.name", *flags).objective.name == flags[0]
            continue
        with pytest.raises(ConfigError) as caught:
            trainer_config(tmp_path, "--objective.name", *flags)
        assert words in str(caught.value)


def test_the_source_of_another_package_is_built_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the processes that read the sources find it as well
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "example_plugin"))
    cases = [[f"{n}\n", f"{2 * n}\n"] for n in range(5)]
    files = tmp_path / "files"
    files.mkdir()
    rows = [{"task": "Read a number, print it doubled.", "cases": cases}, {"task": "No tests."}]
    (files / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["data", "build", "--recipe", "example", "--from", str(files), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*words, "--workers", "1"])
    assert result.exit_code == 0, result.output
    assert f"{tmp_path / 'out' / 'train'}: 1 problems, 5 tests" in result.output
    assert "left out of example: 1 missing_column" in result.output
    part = tmp_path / "out" / "parts" / "example.json"
    written = part.stat().st_mtime_ns
    assert CliRunner().invoke(app, [*words, "--workers", "1"]).exit_code == 0
    assert part.stat().st_mtime_ns == written  # the same reader: nothing is read again


def test_an_unknown_recipe_lists_the_sources_of_other_packages() -> None:
    result = CliRunner().invoke(app, ["data", "build", "--recipe", "list", "--out", "unused"])
    assert result.exit_code == 2
    assert "example: example/problems, of an installed package" in " ".join(result.output.split())
    assert recipe_of("miniature") is RECIPES["miniature"]


def test_the_tracker_of_another_package_gets_every_step_of_one_run_for_a_folder(tmp_path: Path) -> None:
    config = trainer_config(tmp_path, "--trackers", "csv")
    with tracking(config) as (tracker,):
        tracker.log(1, {"loss": 0.5})
    with pytest.raises(ZeroDivisionError), tracking(config) as (tracker,):
        tracker.log(2, {"loss": 1 / 0})
    written = (tmp_path / f"{run_id(tmp_path, 'csv')}.csv").read_text().splitlines()
    assert written == ["1,0.5", "finished", "failed"]
    assert len(list(tmp_path.glob("*.csv"))) == 1


def test_the_trackers_of_a_run_are_named_once_each(tmp_path: Path) -> None:
    config = trainer_config(tmp_path, "--use-wandb", "true", "--trackers", "csv,wandb")
    assert config.tracker_names == ["wandb", "csv"]
