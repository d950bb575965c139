"""mkdocs hooks: reference pages from the code itself, and links to files beside docs/."""

from __future__ import annotations

import os
import re
from pathlib import Path

import reference_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = "repository"
"""Where the site keeps the files beside docs/ that pages link to."""
_LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages and the files that pages link to outside docs/."""
    for path, text in reference_pages.pages().items():
        files.append(File.generated(config, path, content=f"---\nhide: [toc]\n---\n\n{text}"))
    linked = {target for file in list(files.documentation_pages()) for target in _outside(file)}
    linked |= {target for path in linked if path.suffix == ".md" for target in _linked_by(ROOT / path)}
    for target in sorted(linked):
        files.append(File.generated(config, f"{OUTSIDE}/{target.as_posix()}", abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that leave docs/ lead to the site's copy; a folder stays a name."""
    del config, files
    folder = Path(page.file.src_uri).parent

    def replaced(match: re.Match[str]) -> str:
        target = _target(ROOT / "docs" / folder, match[1])
        if target is None or not (ROOT / target).is_file():
            return match[0]
        return f"]({os.path.relpath(Path(OUTSIDE) / target, folder)}{match[2] or ''})"

    text = re.sub(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)\)", lambda match: _unlinked(match, folder), markdown)
    return _LINK.sub(replaced, text)


def _outside(file: File) -> set[Path]:
    folder = ROOT / "docs" / Path(file.src_uri).parent
    found = {_target(folder, match[1]) for match in _LINK.finditer(file.content_string)}
    return {target for target in found if target is not None and (ROOT / target).is_file()}


def _linked_by(page: Path) -> set[Path]:
    """The files that a page beside docs/ links to: the site keeps them at the same places."""
    found = {Path(os.path.normpath(page.parent / link)) for link in re.findall(r"\]\(([^)#:\s]+)\)", page.read_text())}
    return {path.relative_to(ROOT) for path in found if path.is_file() and path.is_relative_to(ROOT)}


def _target(folder: Path, link: str) -> Path | None:
    """A link's file relative to the project, None for one inside docs/."""
    path = Path(os.path.normpath(folder / link))
    if path.is_relative_to(ROOT / "docs") or not path.is_relative_to(ROOT):
        return None
    return path.relative_to(ROOT)


def _unlinked(match: re.Match[str], folder: Path) -> str:
    target = _target(ROOT / "docs" / folder, match[2])
    return match[1] if target is not None and (ROOT / target).is_dir() else match[0]
