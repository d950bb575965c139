"""What answers at once imports nothing heavy: help, wrong options, the API server and readers of a run's files."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "openai", "wandb", "vllm", "atroposlib.envs")
LOADED = f"""
import sys
from environments import cli
sys.argv = ["atropos", *sys.argv[1:]]
try:
    cli.main()
finally:
    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("--help", 0),
        ("run-env livecode --help", 0),
        ("run-env livecode process --env.grup_size 8", 2),
        ("run-env livecode process --model /nowhere --env.problems warmup:train", 2),
        ("train --help", 0),
        ("demo --help", 0),
        ("serve-model --help", 0),
        ("select --help", 0),
        ("plan --help", 0),
        ("audit /nowhere", 2),
    ],
)
def test_a_command_that_only_answers_loads_nothing_heavy(words: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *words.split()], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.stderr.splitlines()[-1], done.returncode) == ("[]", code), done.stderr


def test_the_api_server_loads_nothing_heavy() -> None:
    script = f"""
import sys
import environments.api_server.launch, environments.api_server.server
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
