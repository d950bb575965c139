"""Options mean the same in a file and on a command line: empty values, home folders, numbers, addresses, lists."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field
from typer.testing import CliRunner

import environments.cli as cli
from environments.common.option_rules import StrictModel, kinds_of
from environments.common.settings import ConfigError, PathText, Section, Settings, Url, load, option_names
from environments.launch.demo_config import DemoConfig
from environments.launch.serve_model import ServeConfig
from environments.livecode.atropos_options import REPLACED
from environments.livecode.config import RunConfig
from environments.tools.select_checkpoint import SelectConfig
from trainer.budget import BudgetConfig
from trainer.config import TrainerConfig

EVERY = [RunConfig, ServeConfig, DemoConfig, SelectConfig, TrainerConfig, BudgetConfig]


class Inner(Section):
    low: float | None = Field(0.2, gt=0, description="A bound.")
    url: Url = Field("http://127.0.0.1:1", description="Where.")
    servers: list[Url] = Field([], description="Several.")
    bounds: tuple[float, float] = Field((0.1, 0.2), description="Two.")
    resume: str | None = Field("auto", description="From where.")
    extra_args: list[str] = Field([], description="More.")
    extra_env: dict[str, str] = Field({}, description="Variables.")


class Outer(Settings):
    out: Path = Field(Path("runs"), description="A folder.")
    problems: PathText = Field("warmup:train", description="A set.")
    sets: list[PathText] = Field([], description="Several.")
    steps: int = Field(3, ge=1, description="How many.")
    dry_run: bool = Field(False, description="A switch.")
    inner: Inner = Field(default_factory=Inner, description="A section.")


def from_file(folder: Path, text: str, *flags: str) -> Outer:
    (folder / "c.yaml").write_text(text)
    return load(Outer, ["--config", str(folder / "c.yaml"), *flags])


@pytest.mark.parametrize("empty", ["", "null", "None", "none", "Null"])
@pytest.mark.parametrize("name", ["inner.low", "inner.resume"])
def test_nothing_is_written_in_any_way(tmp_path: Path, name: str, empty: str) -> None:
    last = name.rpartition(".")[2]
    assert getattr(load(Outer, [f"--{name}", empty]).inner, last) is None
    assert getattr(load(Outer, [f"--{name}={empty}"]).inner, last) is None
    assert getattr(from_file(tmp_path, f"inner: {{{last}: '{empty}'}}\n").inner, last) is None
    assert getattr(from_file(tmp_path, f"inner: {{{last}: null}}\n").inner, last) is None


def test_an_empty_list_has_no_empty_entry(tmp_path: Path) -> None:
    assert load(Outer, ["--inner.servers", ""]).inner.servers == []
    assert load(Outer, ["--inner.servers="]).inner.servers == []
    assert from_file(tmp_path, "inner: {servers: ['']}\n").inner.servers == []
    assert load(TrainerConfig, ["--model", "m", "--run_dir", "r", "--weights.servers", ""]).weights.servers == []


def test_the_home_folder_is_meant_wherever_a_path_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    got = from_file(tmp_path, "out: ~/runs\nproblems: ~/p.jsonl\nsets: [~/a, warmup:train]\n")
    assert (got.out, got.problems) == (tmp_path / "runs", f"{tmp_path}/p.jsonl")
    assert got.sets == [f"{tmp_path}/a", "warmup:train"]
    assert load(Outer, ["--out=~", "--sets", "~/a,~/b"]).sets == [f"{tmp_path}/a", f"{tmp_path}/b"]
    assert load(Outer, ["--config=~/c.yaml"]).out == tmp_path / "runs"
    with pytest.raises(ConfigError, match=r"no home folder of ~nobody-here is known"):
        load(Outer, ["--out", "~nobody-here/runs"])
    with pytest.raises(ConfigError, match=r"out = '': is empty; give a path"):
        load(Outer, ["--out", ""])


PATHS = {"run_dir", "model", "tokenizer", "problems", "fewshot_path", "tests_dir", "output", "run", "evaluation"}


@pytest.mark.parametrize("model", EVERY)
def test_no_path_option_is_left_out(model: type[StrictModel]) -> None:
    def walk(section: type[StrictModel]) -> None:
        for name, info in section.model_fields.items():
            if isinstance(info.annotation, type) and issubclass(info.annotation, StrictModel):
                walk(info.annotation)
            elif name in PATHS or name.endswith("_config"):
                told = f"{info.annotation} {info.metadata}"
                assert Path in kinds_of(info.annotation) or "expanded" in told, name

    walk(model)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: true", "steps = True: true and false are no numbers"),
        ("inner: {low: false}", "inner.low = False: true and false are no numbers"),
        ("inner: {bounds: [true, 0.3]}", "true and false are no numbers"),
        ("inner: {low: .inf}", "inner.low = inf: Input should be a finite number"),
        ("inner: {bounds: [.nan, 1]}", "finite number"),
        ("steps: 2\nsteps: 3", "line 2: steps is on line 1 already"),
        ("inner:\n  low: 1\n  url: http://a:1\n  low: 2", "line 4: low is on line 2 already"),
        ("inner: {low: 1}\nsteps: 2\ninner: {low: 2}", "line 3: inner is on line 1 already"),
        ("1: 2", "line 1: the key 1 is a int; put it in quotes"),
        ("inner: {url: 'localhost:8000'}", "'localhost:8000' is no address: write it as http://HOST:PORT"),
        ("inner: {url: 'http://'}", "is no address"),
        ("inner: {url: 'http://h:port'}", "is no address"),
        ("inner: {url: 'http://h:99999'}", "is no address"),
        ("inner: {url: 'ftp://h:1'}", "is no address"),
        ("inner: {servers: ['http://a:1', 'b:2']}", "inner.servers.1 = 'b:2'"),
    ],
)
def test_what_no_option_can_be_is_refused_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_file(tmp_path, text + "\n")
    assert said in str(caught.value)
    assert str(caught.value).startswith((f"{tmp_path}/c.yaml: ", f"--config {tmp_path}/c.yaml: "))


def test_keys_of_a_merged_mapping_may_be_replaced(tmp_path: Path) -> None:
    got = from_file(tmp_path, "steps: 4\ninner: {<<: {low: 1}, low: 2}\n")
    assert got.inner.low == 2


def test_lists_and_mappings_by_flag() -> None:
    words = ["--extra-args", '["--x","{\\"a\\":1}"]', "--extra_args=--y,z", "--extra-env", "A=1,B=2"]
    got = load(Outer, [word.replace("--extra", "--inner.extra") for word in words])
    assert got.inner.extra_args == ["--x", '{"a":1}', "--y", "z"]
    assert got.inner.extra_env == {"A": "1", "B": "2"}
    assert load(Outer, ["--inner.bounds", "[0.3, 0.4]"]).inner.bounds == (0.3, 0.4)
    with pytest.raises(ConfigError, match=r"--inner\.extra_args = '\[\"--x\"': not JSON: Expecting ',' delimiter"):
        load(Outer, ["--inner.extra_args", '["--x"'])
    with pytest.raises(ConfigError, match=r"--inner\.extra_env = 'A': need KEY=VALUE"):
        load(Outer, ["--inner.extra_env", "A"])


def test_dashes_are_underscores_and_a_switch_needs_no_value() -> None:
    assert load(Outer, ["--dry-run"]).dry_run
    assert load(Outer, ["--dry_run", "--steps", "4"]).steps == 4
    assert not load(Outer, ["--dry-run", "false"]).dry_run
    with pytest.raises(ConfigError, match=r"--steps: needs a value"):
        load(Outer, ["--steps", "--dry-run"])
    with pytest.raises(ConfigError, match=r"'stray': unexpected"):
        load(Outer, ["stray"])
    with pytest.raises(ConfigError, match=r"given 2 times \(a, b\)"):
        load(Outer, ["--config", "a", "--config", "b"])


def test_a_fault_is_said_to_be_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("model: m\nrun_dir: r\noptimizer: {lr: 1.0e-5}\n")
    flag = ["--config", str(path), "--objective.name", "gpso"]
    with pytest.raises(ConfigError, match=r"^--objective\.name: objective: name 'gpso' is unknown"):
        load(TrainerConfig, flag)
    with pytest.raises(ConfigError, match=r"^--steps: steps = '0'"):
        load(TrainerConfig, ["--config", str(path), "--steps", "0"])
    path.write_text("model: m\nrun_dir: r\nobjective: {name: gpso}\n")
    with pytest.raises(ConfigError, match=rf"^{path}: objective: name 'gpso'"):
        load(TrainerConfig, ["--config", str(path), "--steps", "3"])
    with pytest.raises(ConfigError) as caught:
        load(TrainerConfig, ["--config", str(path), "--steps", "0"])
    assert str(caught.value).splitlines()[0].startswith("--steps: steps = '0'")
    assert str(caught.value).splitlines()[1].startswith(f"{path}: objective: name 'gpso'")


@pytest.mark.parametrize("model", EVERY)
def test_help_shows_the_file_groups_an_example_and_only_what_is_taken(
    model: type[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        load(model, ["--help"], "program")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "\n  --config FILE" in text
    assert "\nExample\n" in text
    assert "\nStart here\n" in text
    for name in option_names(model):
        hidden = name.startswith("env.") and name.removeprefix("env.") in REPLACED
        assert (f"  --{name.replace('_', '-')} " in text) != hidden, name


def test_help_of_a_mode_shows_its_own_options() -> None:
    runner = CliRunner()
    shown = {mode: runner.invoke(cli.app, ["run-env", "livecode", mode, "--help"]).output for mode in cli.MODES}
    assert {mode: "--evaluation.n " in text for mode, text in shown.items()} == {
        "serve": True, "process": False, "evaluate": True}  # fmt: skip
    assert "--process.groups " in shown["process"]
    assert all("[serve|process|evaluate]" in text for text in shown.values())


def test_a_refused_option_is_not_proposed() -> None:
    with pytest.raises(ConfigError) as caught:
        load(RunConfig, ["--model", "m", "--env.max_num_worker", "3"])
    assert "max_num_workers" not in str(caught.value)


def test_commands_take_dashes_and_underscores_and_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sum.py").write_text("print(sum(map(int, input().split())))\n")
    (tmp_path / "tests.json").write_text(json.dumps([{"input": "1 2", "output": "3"}]))
    runner = CliRunner()
    for words in (["--time-limit-s", "5"], ["--time_limit_s=5"]):
        done = runner.invoke(cli.app, ["verify", "~/sum.py", "--tests=~/tests.json", *words])
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "latin-1"}, {"PYTHONUTF8": "0", "LC_ALL": "C"}])
def test_text_that_the_terminal_cannot_hold_ends_no_command(tmp_path: Path, variables: dict[str, str]) -> None:
    (tmp_path / "wrong.py").write_text("print('日本 \\N{SNOWMAN}')\n", encoding="utf-8")
    (tmp_path / "tests.json").write_text(json.dumps([{"input": "", "output": "東京 \ud83d"}]))
    problem = {
        "id": "p",
        "source": "s",
        "kind": "stdin",
        "statement": "東京 ☃",
        "tests": [{"input": "", "output": "1"}],
    }
    (tmp_path / "problems.jsonl").write_text(json.dumps(problem) + "\n")
    for words in (
        ["verify", "wrong.py", "--tests", "tests.json"],
        ["data", "show", "problems.jsonl", "--problem", "p"],
        ["run-env", "東京"],
        ["report", "東京"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "environments.cli", *words], cwd=tmp_path, capture_output=True, check=False,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2]), **variables},
        )  # fmt: skip
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        assert done.returncode in (0, 1, 2)


def test_a_value_is_shown_as_what_it_is(tmp_path: Path) -> None:
    from environments.livecode.problems.load import load_problems
    from environments.livecode.problems.problem import ProblemError

    for value, shown in (([4], "[4]"), (4, "4"), (None, "None"), ({"a": 1}, "{'a': 1}")):
        row = {"id": "p", "source": "s", "kind": "stdin", "statement": "x", "tests": [{"input": value, "output": "1"}]}
        (tmp_path / "p.jsonl").write_text(json.dumps(row))
        with pytest.raises(ProblemError) as caught:
            load_problems(tmp_path / "p.jsonl")
        assert f"tests.0.input = {shown}: Input should be a valid string" in str(caught.value)
