"""The rehearsal before the first fork: it leaves nothing behind, and the loader's setting is not a program's."""

from __future__ import annotations

import sys

import pytest

from verifier_app.judge import verify
from verifier_app.judge.languages.python.warm_up import warm_up


def test_the_streams_are_the_same_afterwards_and_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdin, sys.stdout
    warm_up()
    assert (sys.stdin, sys.stdout) == before
    assert capsys.readouterr() == ("", "")


def test_a_program_sees_neither_the_rehearsal_nor_the_loaders_setting() -> None:
    code = "import os, sys\nprint('LD_BIND_NOW' in os.environ, 'double' in globals(), sys.stdin.fileno())"
    verdict = verify({"code": code, "tests": [{"input": "", "output": "False False 0"}]})
    assert verdict["status"] == "accepted", verdict["message"]
