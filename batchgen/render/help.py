"""The screen of `--help`: usage, what a command does, its options in two columns. Plain text, no rich, for speed."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from batchgen.text import escape

WIDEST, NARROWEST = 100, 40
LABEL_WIDTH = 26  # a longer label gets its own line
BOLD, CYAN, PLAIN = "\x1b[1m", "\x1b[36m", "\x1b[0m"
NOTE, NO_BREAK = re.compile(r"\[default: [^]]*\]"), "\xa0"  # a default stays on one line
Paint = Callable[[str, str], str]  # arguments: text and a terminal code
EXAMPLE = re.compile(r"\[bold\](.*?)\[/\](.*)")  # a command and its explanation


@dataclass(frozen=True, slots=True)
class HelpSection:
    """A heading, and lines with a label (options, a command, a code) and its meaning."""

    title: str
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class HelpScreen:
    """The content of a command's help. In `text`, blank lines separate paragraphs; `[bold]command[/]` is an example."""

    usage: str
    text: str
    sections: Sequence[HelpSection]


def draw_help(screen: HelpScreen, width: int, *, has_colors: bool) -> str:
    """Draw the screen as text for a terminal of this width; only unbreakable words exceed it, and nothing is cut."""
    width = max(NARROWEST, min(width, WIDEST)) - 1
    paint: Paint = _paint if has_colors else _leave
    parts = [f"{paint('Usage:', BOLD)} {screen.usage}"]
    parts += ["\n".join(_paragraph(block, width, paint)) for block in screen.text.split("\n\n")]
    for section in screen.sections:
        lines = [line for label, text in section.lines for line in _line(label, text, width, paint)]
        parts.append("\n".join([paint(section.title, BOLD), *lines]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _paint(text: str, code: str) -> str:
    return f"{code}{text}{PLAIN}"


def _leave(text: str, code: str) -> str:
    return text


def _paragraph(block: str, width: int, paint: Paint) -> Iterator[str]:
    """Yield examples line by line, and anything else folded at words."""
    examples = [EXAMPLE.fullmatch(line.strip()) for line in block.splitlines()]
    if not examples or not all(examples):
        yield from textwrap.wrap(" ".join(block.split()), width)
        return
    for found in examples:
        assert found
        fits = 2 + len(found[1] + found[2]) <= width
        yield f"  {paint(found[1], BOLD)}{found[2] if fits else ''}"
        if not fits and found[2].strip():
            yield f"      {found[2].strip()}"


def _line(label: str, text: str, width: int, paint: Paint) -> Iterator[str]:
    """Yield a label with its text next to it, or below it if the label is long."""
    kept = NOTE.sub(lambda found: found[0].replace(" ", NO_BREAK), escape(text))
    folded = textwrap.wrap(kept, width - LABEL_WIDTH - 4, break_long_words=False, break_on_hyphens=False)
    if len(label) > LABEL_WIDTH:
        yield f"  {paint(label, CYAN)}"
        label = ""
    gap = " " * (LABEL_WIDTH - len(label))
    for part in folded or [""]:
        part = part.replace(NO_BREAK, " ")
        yield f"  {paint(label, CYAN) if label else ''}{gap}  {part}".rstrip()
        label, gap = "", " " * LABEL_WIDTH
