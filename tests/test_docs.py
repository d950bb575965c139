"""What the pages name exists: links, and files by their path from the repository's root."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "verifier_app" / "THREATS.md",
    ROOT / "verifier_app" / "judge" / "README.md",
]  # fmt: skip
ROOMS = "environments|trainer|verifier_app|configs|tests|benchmarks|requirements|docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_is_named_by_its_path_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(rf"(?<![\w/.~])((?:{ROOMS})/[\w./-]*\w)", text))
    folders = {path for path in named if "." not in path.rpartition("/")[2]}
    assert {path for path in named - folders if not (ROOT / path).exists()} == set()


def test_every_row_of_the_rooms_names_files_that_are_in_them() -> None:
    room = ""
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 3 or cells[0] in ("folder", "---"):
            continue
        below = cells[0].removeprefix("- ")
        room = room if below != cells[0] else below
        folder = ROOT / room / (below if below != cells[0] else "")
        assert folder.is_dir(), folder
        for name in re.findall(r"[\w./]+\.(?:py|md)", cells[2]):
            assert (folder / name).is_file(), folder / name
