"""A grid of token columns: aligned, shortened in the middle, folded to the available width."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

LABEL_WIDTH = len("attention_mask")


@dataclass(frozen=True, slots=True)
class GridLine:
    """One labelled line of a grid: a cell and a style per column."""

    label: str
    cells: list[str]
    styles: list[str]


def column_widths(lines: Iterable[GridLine]) -> list[int]:
    """Return the characters that each column needs, over all lines."""
    return [max(map(cell_len, column)) for column in zip(*(line.cells for line in lines), strict=True)]


def fold_grid(lines: list[GridLine], widths: list[int], width: int) -> Iterator[tuple[str, Text]]:
    """Yield lines of equal length as (label, text) rows: columns right-aligned, folded into `width` characters."""
    for start, end in folds(widths, width):
        yield from grid_part(lines, widths, start, end)


def grid_part(lines: list[GridLine], widths: list[int], start: int, end: int) -> Iterator[tuple[str, Text]]:
    """Yield the columns from `start` to `end` of each line."""
    for line in lines:
        cells = zip(line.cells[start:end], line.styles[start:end], widths[start:end], strict=True)
        texts = (Text(" " * (room - cell_len(cell)) + cell, style=style) for cell, style, room in cells)
        yield line.label, Text(" ", no_wrap=True).join(texts)


def folds(widths: list[int], width: int) -> list[tuple[int, int]]:
    """Return the column range of each fold: as few folds as possible, with equal numbers of columns if that fits."""
    greedy = _greedy_folds(widths, width)
    size = -(-len(widths) // len(greedy))
    even = [(start, min(start + size, len(widths))) for start in range(0, len(widths), size)]
    fits = all(sum(widths[start:end]) + end - start - 1 <= width for start, end in even)
    return even if fits else greedy


def _greedy_folds(widths: list[int], width: int) -> list[tuple[int, int]]:
    starts, used = [0], 0
    for column, needed in enumerate(widths):
        if column > starts[-1] and used + needed > width:
            starts.append(column)
            used = 0
        used += needed + 1
    return list(zip(starts, [*starts[1:], len(widths)], strict=True))


def elide(line: GridLine, most: int) -> GridLine:
    """Shorten the line to at most `most` columns by replacing its middle with an ellipsis."""
    if len(line.cells) <= most:
        return line
    head, tail = most // 2 - 1, most // 2
    return GridLine(
        line.label,
        [*line.cells[:head], "…", *line.cells[-tail:]],
        [*line.styles[:head], "dim", *line.styles[-tail:]],
    )
