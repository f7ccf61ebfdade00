"""The view of `inspect --compare-sides`: what predicts the next token with pads on the left and on the right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from batchgen.render.screen import print_line, print_section
from batchgen.text import escape, visible

if TYPE_CHECKING:
    from batchgen.proof.inspector.sides import RowSides, Side

PROMPT_TAIL = 60


def print_sides(console: Console, rows: Sequence[RowSides]) -> None:
    """Print a section per row; the last column is what `generate` reads."""
    console.print()
    print_line(console, "Padded left and padded right: the last column predicts the next token", style="bold")
    for row in rows:
        print_section(console, _title(row), _lines(row), 5)


def _title(row: RowSides) -> str:
    prompt = row.prompt if len(row.prompt) <= PROMPT_TAIL else "…" + row.prompt[-PROMPT_TAIL:]
    return escape(f"row {row.id}: {prompt}").replace("\n", " ").replace("\t", " ")


def _lines(row: RowSides) -> Iterator[tuple[str, str]]:
    yield "left", _side(row.left)
    yield "right", _side(row.right)
    if row.right.is_pad:
        yield (
            "",
            f"its last token, in column {row.own_column}, predicts {visible(row.own_next_token)}: "
            "correct, but this position is never read",
        )


def _side(side: Side) -> str:
    what = "a pad" if side.is_pad else visible(side.reads)
    return f"column {side.column}, {what}, predicts {visible(side.next_token)}: {side.text}"
