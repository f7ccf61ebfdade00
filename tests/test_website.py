"""The site: every page is in the navigation, and reference pages are complete.

`make site` builds it and checks links.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main
from website.assembly import assemble
from website.command_pages import commands_page
from website.python_page import python_page
from website.record_pages import fields_of, records_page

import batchgen
from batchgen.cli import app
from batchgen.records import Result, RunStats

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "pages"
    assemble(folder)
    return folder


def test_every_page_is_in_the_navigation(pages: Path) -> None:
    navigation = str(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])
    named = set(re.findall(r"'([a-z/]+\.md)'", navigation))
    assert named == {str(page.relative_to(pages)) for page in pages.rglob("*.md")}


def test_links_lead_to_pages_that_are_there(pages: Path) -> None:
    for page in pages.rglob("*.md"):
        links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
        assert [link for link in links if not (page.parent / link).exists()] == [], page.name


def test_the_commands_page_has_every_option_of_every_command() -> None:
    text = commands_page()
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        section = text[text.index(f"\n## {name}\n") :].split("\n## ")[1]
        assert [
            flag for each in command.params for flag in each.opts if flag not in section and each.name != "help"
        ] == []


def test_the_python_page_has_every_public_name() -> None:
    text = python_page()
    assert [name for name in batchgen.__all__ if f"\n## {name}\n" not in text] == []
    assert " at 0x" not in text


def test_the_records_page_explains_every_field() -> None:
    text = records_page()
    assert [name for kind in (Result, RunStats) for name in kind.__slots__ if f"| `{name}` |" not in text] == []


@dataclass
class Unexplained:
    told: int  # a number
    untold: int


def test_a_field_without_a_comment_is_refused() -> None:
    with pytest.raises(ValueError, match="Unexplained has fields without a comment: untold"):
        fields_of(Unexplained)
