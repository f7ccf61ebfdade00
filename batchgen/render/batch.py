"""The batch view of `inspect`: tokens, ids, mask and positions over the columns of the padded batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from batchgen.engines.continuous.prefixes import LEAST_PREFIX
from batchgen.render.grid import LABEL_WIDTH, GridLine, column_widths, folds, grid_part
from batchgen.render.screen import plural, print_line
from batchgen.text import visible

if TYPE_CHECKING:
    from batchgen.proof.inspector import InspectedRow

# Parts of a conversation: what the template writes, whose turn it is, what was said.
PART_STYLES = {"template": "magenta", "role": "bold cyan", "content": "green"}


def print_batch(console: Console, rows: Sequence[InspectedRow]) -> None:
    """Print each row of the batch, with its columns aligned with those of the other rows."""
    grids = [_grid(row) for row in rows]
    if any(part for row in rows for part in row.parts):
        _print_legend(console, rows[0].num_shared)
    widths = column_widths(line for grid in grids for line in grid)
    for row, grid in zip(rows, grids, strict=True):
        console.print()
        print_line(console, _headline(row))
        table = Table.grid(padding=(0, 1))
        table.add_column(min_width=LABEL_WIDTH, style="cyan", no_wrap=True)
        table.add_column()
        for label, text in _lines(row, grid, widths, console.width - LABEL_WIDTH - 1):
            table.add_row(label, text)
        console.print(table)


def _print_legend(console: Console, num_shared: int) -> None:
    """Print what the colours of a conversation mean, and how many first tokens all rows share."""
    names = {"template": "template", "role": "role", "content": "content"}
    console.print(Text("  ").join(Text(name, style=PART_STYLES[part]) for part, name in names.items()))
    if num_shared:
        once = ": a run with many rows computes them only once" if num_shared >= LEAST_PREFIX else ""
        print_line(console, f"the first {plural(num_shared, 'token')} are the same in every row{once}")


def _headline(row: InspectedRow) -> str:
    real, columns = row.attention_mask.count(1), len(row.attention_mask)
    eos = sum(is_eos and is_real for is_eos, is_real in zip(row.is_eos, row.attention_mask, strict=True))
    genuine = f" (including {eos} genuine eos)" if eos else ""
    return (
        f"row {row.id}: {plural(columns - real, 'pad')} + {plural(real, 'token')}{genuine} "
        f"= {plural(columns, 'column')}, padding {(columns - real) / columns:.0%}"
    )


def _lines(row: InspectedRow, grid: list[GridLine], widths: list[int], width: int) -> Iterator[tuple[Text | str, Text]]:
    """Yield the row's grid, folded into `width` characters; folds with nothing but pads become one line."""
    parts = folds(widths, width)
    num_pads = row.attention_mask.count(0)
    drawn = [part for part in parts if part[1] > num_pads]  # the last column is never a pad
    if drawn[0][0]:
        yield _range(0, drawn[0][0]), Text("pads", style="dim")
    for start, end in drawn:
        if len(parts) > 1:
            yield _range(start, end), Text()
        yield from grid_part(grid, widths, start, end)


def _range(start: int, end: int) -> Text:
    return Text(f"column {start}" if end == start + 1 else f"columns {start}-{end - 1}", style="dim")


def _grid(row: InspectedRow) -> list[GridLine]:
    """Return the lines of a row's grid: pads are dim and called pad; a genuine eos in a prompt is highlighted."""
    columns = zip(row.attention_mask, row.is_eos, row.parts, strict=True)
    styles = ["dim" if not real else _style(part, eos) for real, eos, part in columns]
    numbers = {"input_ids": row.input_ids, "attention_mask": row.attention_mask, "position_ids": row.position_ids}
    return [
        GridLine("tokens", [visible(label) for label in row.labels], styles),
        *(GridLine(label, [str(n) for n in values], styles) for label, values in numbers.items()),
    ]


def _style(part: str | None, is_eos: bool) -> str:
    """Return the style of a real token. In a template an eos is normal, so it is only underlined."""
    if part:
        return f"{PART_STYLES[part]} underline" if is_eos else PART_STYLES[part]
    return "bold red" if is_eos else ""
