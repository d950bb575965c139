"""The judge on Modal: `atropos verifier deploy` or `modal deploy -m verifier_app`, from the repository's root.

`verify` judges one rollout, `verify_many` the rollouts of one group in turn. A container takes one call and is thrown
away. It has no network and no access to the workspace, and sees the test sets read-only below a folder of root's.

A container imports this module too. It has the standard library and the packages that programs may import, not the
project's other packages, and not the deploying machine's variables: what the settings decide is part of the deployed
definition alone.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import modal

from verifier_app.container import TESTS_DIR, judge_all

APP, VOLUME = "livecode-verifier", "livecode-tests"
OPTIONS: dict[str, Any] = {}
PYTHON_PACKAGES: list[str] = []
DEBIAN_PACKAGES: list[str] = []
TIMEOUT_S = ""
GO = ("__init__.py", "container.py", "modal_app.py")  # beside the judge

if modal.is_local():
    from verifier_app.judge.languages.registry import find
    from verifier_app.settings import modal_settings

    settings = modal_settings()
    needs = [find(name).image() for name in settings.language_names]
    DEBIAN_PACKAGES = [name for need in needs for name in need.debian]
    # pinned: programs must meet the same here and there
    PYTHON_PACKAGES = [f"{name}=={version(name)}" for need in needs for name in need.python]
    APP, VOLUME = settings.app, settings.volume
    TIMEOUT_S = str(settings.timeout_s)  # a container does not learn it otherwise
    OPTIONS = {
        "cpu": (settings.cpu, settings.cpu_limit),
        "memory": (settings.memory_mb, settings.memory_limit_mb),
        "timeout": settings.timeout_s,
        "startup_timeout": settings.startup_timeout_s,
        "retries": modal.Retries(max_retries=settings.retries) if settings.retries else 0,
        "max_containers": settings.max_containers,
        "scaledown_window": settings.scaledown_window_s,
    }
    POOL: dict[str, Any] = {"min_containers": settings.min_containers, "buffer_containers": settings.buffer_containers}
else:
    POOL = {}


def _stays_here(path: Path) -> bool:
    """Whether a container has no use for this file."""
    inside = path.parts[path.parts.index("verifier_app") + 1 :] if "verifier_app" in path.parts else path.parts
    return path.suffix != ".py" or not (inside[0] == "judge" or path.name in GO)


# not debian_slim, which installs compilers whatever the languages are
image = modal.Image.from_registry(f"python:{sys.version_info.major}.{sys.version_info.minor}-slim-bookworm")
if DEBIAN_PACKAGES:
    image = image.apt_install(*DEBIAN_PACKAGES)
image = (
    image.uv_pip_install(*PYTHON_PACKAGES)
    .env({"VERIFIER_TIMEOUT_S": TIMEOUT_S})
    .add_local_python_source(
        "verifier_app", ignore=_stays_here
    )  # the last layer: mounted at start, so that a change builds nothing
)
tests = modal.Volume.from_name(VOLUME, create_if_missing=True)
app = modal.App(APP, include_source=False)
OPTIONS |= {
    "image": image,
    "volumes": {TESTS_DIR: tests.with_mount_options(read_only=True)},
    "block_network": True,
    "restrict_modal_access": True,
    "single_use_containers": True,
    "_experimental_restrict_output": True,  # results are CBOR: a pickle from there could run code here
}


@app.function(**OPTIONS, **POOL)
def verify(request: dict[str, Any]) -> dict[str, Any]:
    """One rollout: {"verdict"} or {"error": {"kind", "message"}}; never an exception, which would come as a pickle."""
    return judge_all([request])[0]


@app.function(**OPTIONS)
def verify_many(shared: dict[str, Any], programs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rollouts of one group, one after the other: `shared` fields of the requests and those that differ."""
    return judge_all([shared | program for program in programs])
