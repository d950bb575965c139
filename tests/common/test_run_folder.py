"""A run folder of another version is told, not misread."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from environments.common.run_folder import FORMAT, append_line, check, claim
from environments.common.settings import ConfigError
from environments.tools.report.page import write_report
from environments.tools.select_checkpoint import SelectConfig, select


def test_a_folder_is_claimed_once_and_read_by_its_own_version(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    check(run)
    claim(run)
    before = (run / "run.json").stat().st_mtime_ns
    claim(run)
    check(run)
    assert (run / "run.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(("text", "message"), [
    (f'{{"format": {FORMAT + 1}}}', f"format {FORMAT + 1}, this version reads {FORMAT}"),
    ("{", r"run\.json: damaged"),
])  # fmt: skip
def test_a_folder_of_another_version_is_refused_by_all_who_read_it(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.json").write_text(text)
    configs = Path(__file__).parents[2] / "configs" / "demo"
    config = SelectConfig(run=tmp_path, evaluation=configs / "environment.yaml", serving=configs / "server.yaml")
    for use in (lambda: claim(tmp_path), lambda: write_report(tmp_path), lambda: select(config, print)):
        with pytest.raises(ConfigError, match=message):
            use()


def test_a_line_is_added_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "rows.jsonl", os.write
    append_line(path, "one")

    def full(fd: int, data: bytes) -> int:
        if len(data) <= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[:2])

    with monkeypatch.context() as disk:
        disk.setattr("environments.common.run_folder.os.write", full)
        with pytest.raises(OSError, match="No space left"):
            append_line(path, "three")
    assert path.read_text() == "one\n"
    append_line(path, "two")
    assert path.read_text() == "one\ntwo\n"


def test_a_line_does_not_join_one_that_a_death_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("one\ntw")
    append_line(path, "three")
    assert path.read_text() == "one\ntw\nthree\n"
