"""Assemble the sources of the site: docs/, pages from the repository's root, generated reference pages."""

from __future__ import annotations

import shutil
from pathlib import Path

from website.command_pages import commands_page
from website.python_page import python_page
from website.record_pages import records_page

ROOT = Path(__file__).parents[2]
# Pages from the repository's root, and their names in the site.
FROM_ROOT = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}


def assemble(pages: Path) -> None:
    """Write all sources of the site into a new folder: docs/, pages from the root, generated reference pages."""
    shutil.rmtree(pages, ignore_errors=True)
    shutil.copytree(ROOT / "docs", pages)
    shutil.copy(Path(__file__).with_name("start.md"), pages / "index.md")
    for name, here in FROM_ROOT.items():
        (pages / here).write_text(within_site((ROOT / name).read_text(encoding="utf-8")), encoding="utf-8")
    reference = pages / "reference"
    reference.mkdir()
    for name, text in (("commands", commands_page()), ("python", python_page()), ("records", records_page())):
        (reference / f"{name}.md").write_text(text, encoding="utf-8")


def within_site(text: str) -> str:
    """A page from the repository's root, with its links adapted to the site.

    >>> within_site("[a](docs/architecture.md) [b](SECURITY.md)")
    '[a](architecture.md) [b](security.md)'
    """
    for name, here in FROM_ROOT.items():
        text = text.replace(f"]({name}", f"]({here}")
    return text.replace("](docs/", "](")
