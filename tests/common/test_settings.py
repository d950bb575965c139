"""Settings: a flag beats the file, the file beats the default, and every error names field, value and fix."""

from pathlib import Path

import pytest
from pydantic import Field

from environments.common.settings import ConfigError, Section, Settings, load, option_names, read_yaml, write_yaml


class Inner(Section):
    name: str = Field("dapo", description="Which one.")
    bounds: tuple[float, float] = Field((0.2, 0.28), description="Two numbers.")
    urls: list[str] = Field(["a"], description="Addresses.")


class Outer(Settings):
    model: str = Field(description="A folder.")
    steps: int = Field(3, ge=1, description="How many.")
    flag: bool = Field(False, description="A switch.")
    inner: Inner = Field(default_factory=Inner, description="A section.")


def written(folder: Path, text: str) -> list[str]:
    path = folder / "c.yaml"
    path.write_text(text)
    return ["--config", str(path)]


def test_a_flag_beats_the_file_and_the_file_beats_the_default(tmp_path: Path) -> None:
    argv = written(tmp_path, "model: m\nsteps: 5\ninner: {name: grpo, urls: [x]}\n")
    got = load(Outer, [*argv, "--inner.name", "gspo+", "--inner.bounds", "0.1,0.3", "--flag", "true"])
    assert (got.model, got.steps, got.flag) == ("m", 5, True)
    assert got.inner == Inner(name="gspo+", bounds=(0.1, 0.3), urls=["x"])


def test_environment_variables_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPS", "99")
    assert load(Outer, ["--model", "m"]).steps == 3


@pytest.mark.parametrize(
    ("text", "flags", "words"),
    [
        ("model: m\nstep: 5\n", [], ["step", "unknown option", "Did you mean steps?"]),
        ("model: m\ninner: {nam: x}\n", [], ["inner.nam", "Did you mean inner.name?"]),
        ("model: m\ninnr: {name: x}\n", [], ["innr", "Did you mean inner?"]),
        ("model: m\nsteps: none\n", [], ["steps", "'none'", "valid integer"]),
        ("model: m\nsteps: 0\n", [], ["steps = 0", "greater than or equal to 1"]),
        ("steps: 2\n", [], ["model", "required", "--model"]),
        ("model: m\n", ["--inner.nme", "x"], ["--inner.nme", "Did you mean inner.name?"]),
        ("- a\n", [], ["list", "key: value"]),
        ("model: [\n", [], ["not valid YAML"]),
    ],
)
def test_what_is_wrong_is_named_with_its_fix(tmp_path: Path, text: str, flags: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Outer, [*written(tmp_path, text), *flags])
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_every_error_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Outer, written(tmp_path, "steps: 0\ninner: {bounds: [1]}\n"))
    assert {"model", "steps", "inner.bounds"} <= {
        line.strip().split()[0].rstrip(":").removesuffix(".1") for line in str(caught.value).splitlines()[1:]
    }


def test_a_missing_file_is_one_error() -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(Outer, ["--config", "/nowhere/c.yaml"])


def test_help_lists_every_option_with_its_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load(Outer, ["--help"])
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in option_names(Outer))
    assert "How many." in text


def test_settings_as_used_load_again_unchanged(tmp_path: Path) -> None:
    used = load(Outer, ["--model", "m", "--inner.name", "grpo"])
    write_yaml(used, tmp_path / "used.yaml")
    assert load(Outer, ["--config", str(tmp_path / "used.yaml")]) == used
    assert read_yaml(tmp_path / "used.yaml")["inner"]["urls"] == ["a"]
