"""Text for people is plain: nothing in tests/banned_words.txt is in help, messages, docstrings, comments or docs."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from batchgen.cli import app

ROOT = Path(__file__).parent.parent
LINES = (ROOT / "tests" / "banned_words.txt").read_text(encoding="utf-8").splitlines()
BANNED = [re.compile(line.split("\t")[0], re.IGNORECASE) for line in LINES if line and not line.startswith("#")]
PYTHON = sorted((ROOT / "batchgen").rglob("*.py"))
PAGES = [path for kind in ("*.j2", "*.js") for path in sorted((ROOT / "batchgen" / "proof").rglob(kind))]
DOCS = [
    ROOT / "tools" / "website" / "start.md",
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "Makefile",
]


def test_no_text_of_the_package_has_banned_words() -> None:
    assert [found for path in PYTHON for found in banned_in(spoken(path), path)] == []


@pytest.mark.parametrize("path", PAGES + DOCS, ids=lambda path: path.name)
def test_no_page_or_document_has_banned_words(path: Path) -> None:
    assert banned_in([path.read_text(encoding="utf-8")], path) == []


def test_no_help_has_banned_words() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        assert banned_in([command.help, *(each.help for each in command.params)], name) == []


@pytest.mark.parametrize(
    "line", ["Rows a batch.", "one prompt a line", "fp32", "Mend it.", "two\nlines a row\nat most"]
)
def test_the_list_finds_what_it_is_for(line: str) -> None:
    assert banned_in([line], "here")


def test_a_sentence_over_several_strings_is_read_as_one(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text('x = (\n    "rows "\n    f"a batch {1}"\n)\n# that nobody\n# asks it\n')
    assert set(banned_in(spoken(path), "a")) == {"a: rows a batch", "a: nobody asks it"}


def banned_in(texts: Iterator[str] | list[str], where: object) -> list[str]:
    """Return each banned wording with where it is."""
    return [
        f"{where}: {found[0]}" for text in texts for one in [" ".join(text.split())] for word in BANNED
        for found in [word.search(one)] if found
    ]  # fmt: skip


def spoken(path: Path) -> Iterator[str]:
    """Yield the strings and comments of a module; adjacent strings are one text, and so are adjacent comments."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
    words = [
        token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type == tokenize.COMMENT
    ]
    yield from _paragraphs(words)


def _paragraphs(comments: list[tokenize.TokenInfo]) -> Iterator[str]:
    """Yield comments on consecutive lines as one text."""
    text, last = "", -1
    for comment in comments:
        if comment.start[0] != last + 1:
            yield text
            text = ""
        text, last = f"{text} {comment.string.lstrip('#')}", comment.start[0]
    yield text
