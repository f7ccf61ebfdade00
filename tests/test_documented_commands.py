"""Every command in README and docs is one that batchgen takes: its options are there, and their values are allowed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from batchgen.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "tools" / "website" / "start.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
LINE = re.compile(r"^(?: {4}|)(?:\$ )?(?:[^`\n]*\| *)?(batchgen [^\n]+)$", re.MULTILINE)
BLOCK = re.compile(r"^```[^\n]*\n(.*?)^```|^((?: {4}[^\n]*\n)+)", re.MULTILINE | re.DOTALL)
END = {"|", ">", "<", ">>", "&&", "&", "2>", ";"}


def commands_of(text: str) -> list[str]:
    """Commands in the blocks of a page.

    >>> commands_of("a\\n\\n    cat x | batchgen run - -o out.jsonl     # a comment\\n")
    ['batchgen run - -o out.jsonl     # a comment']
    """
    blocks = [found[1] or found[2] for found in BLOCK.finditer(text)]
    return [line for block in blocks for line in LINE.findall(block) if "…" not in line]


def words_of(line: str) -> list[str]:
    """The words of a command, up to a pipe or a redirection, without the comment."""
    lexer = shlex.shlex(line.replace("$'", "'"), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words = list(lexer)
    return words[: next((n for n, word in enumerate(words) if word in END), len(words))]


SHOWN = [(page.name, line) for page in PAGES for line in commands_of(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "line"), SHOWN, ids=[f"{page}:{line[:60]}" for page, line in SHOWN])
def test_a_command_is_one_that_batchgen_takes(
    page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, name, *words = words_of(line)
    if name.startswith("-"):
        return
    for word in words:
        if Path(word).suffix in (".json", ".lark"):  # schemas and grammars are read with the options
            Path(word).write_text("{}", encoding="utf-8")
    root = typer.main.get_command(app)
    root.commands[name].make_context(name, words, resilient_parsing=False)  # type: ignore[attr-defined]


def test_commands_are_found() -> None:
    assert len(SHOWN) > 80
    assert {page for page, _ in SHOWN} >= {"README.md", "recipes.md", "start.md"}


def test_an_option_that_does_not_exist_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception, match="--tempratur"):
        test_a_command_is_one_that_batchgen_takes("x", "batchgen run a.txt --tempratur 1 | jq .", tmp_path, monkeypatch)
