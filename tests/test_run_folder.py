"""A run folder of another version is told, not misread."""

from __future__ import annotations

from pathlib import Path

import pytest

from environments.report.page import write_report
from environments.run_folder import FORMAT, check, claim
from environments.select import SelectConfig, select
from environments.settings import ConfigError


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
    configs = Path(__file__).parents[1] / "configs" / "demo"
    config = SelectConfig(run=tmp_path, evaluation=configs / "environment.yaml", serving=configs / "server.yaml")
    for use in (lambda: claim(tmp_path), lambda: write_report(tmp_path), lambda: select(config, print)):
        with pytest.raises(ConfigError, match=message):
            use()
