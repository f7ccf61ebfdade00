"""The batch view of `inspect`: tokens, ids, mask and positions over the columns of the padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.table import Table

from batchgen.render.grid import LABEL_WIDTH, GridLine, column_widths, fold_grid
from batchgen.render.screen import escape, plural, print_line


class InspectedRow(Protocol):
    """A row of a padded batch: arrays of equal length, pads included."""

    @property
    def id(self) -> object: ...
    @property
    def pieces(self) -> list[str]: ...
    @property
    def input_ids(self) -> list[int]: ...
    @property
    def attention_mask(self) -> list[int]: ...
    @property
    def position_ids(self) -> list[int]: ...
    @property
    def is_eos(self) -> list[bool]: ...


def print_batch(console: Console, title: str, rows: Sequence[InspectedRow]) -> None:
    """Each row of the batch; its columns stand under those of the other rows."""
    print_line(console, title, style="bold")
    grids = [_grid(row) for row in rows]
    widths = column_widths(line for grid in grids for line in grid)
    for row, grid in zip(rows, grids, strict=True):
        real, columns = row.attention_mask.count(1), len(row.attention_mask)
        share = (columns - real) / columns
        console.print()
        print_line(
            console,
            f"row {row.id}: {plural(columns - real, 'pad')} + {plural(real, 'token')} "
            f"= {plural(columns, 'column')}, padding {share:.0%}",
        )
        table = Table.grid(padding=(0, 1))
        table.add_column(width=LABEL_WIDTH, style="cyan", no_wrap=True)
        table.add_column()
        for label, text in fold_grid(grid, widths, console.width - LABEL_WIDTH - 1):
            table.add_row(label, text)
        console.print(table)


def _grid(row: InspectedRow) -> list[GridLine]:
    """Pads are dim and called pad; a genuine eos inside a prompt keeps its name and stands out."""
    real_and_eos = list(zip(row.attention_mask, row.is_eos, strict=True))
    styles = ["dim" if not real else "bold red" if eos else "" for real, eos in real_and_eos]
    tokens = [_visible(piece) if real else "pad" for real, piece in zip(row.attention_mask, row.pieces, strict=True)]
    numbers = {"input_ids": row.input_ids, "attention_mask": row.attention_mask, "position_ids": row.position_ids}
    return [
        GridLine("tokens", tokens, styles),
        *(GridLine(label, [str(n) for n in values], styles) for label, values in numbers.items()),
    ]


def _visible(piece: str) -> str:
    """A token on one line, its spaces and line breaks drawn."""
    return escape(piece.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·"))
