"""The tiny model and its problems."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.programs import write_model, write_problems


@pytest.fixture(scope="session")
def policy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the model whose tokens are programs."""
    return write_model(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="session")
def policy_problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of its problems."""
    return write_problems(tmp_path_factory.mktemp("problems") / "problems.jsonl")
