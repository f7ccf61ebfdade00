"""The mask view of `inspect`: what is added to the scores, as a grid of half blocks with tokens on both axes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from batchgen.render.screen import print_line, print_section
from batchgen.text import visible

if TYPE_CHECKING:
    from batchgen.proof.inspector import InspectedRow, Masks

# Upper and lower half of a character: two queries, each open (it sees the key) or not.
HALVES = {(True, True): "█", (True, False): "▀", (False, True): "▄", (False, False): " "}
LABEL_WIDTH = 16
NAME_WIDTH = 10
NAME_HEIGHT = 8
# If there are more pads, only the last ones are drawn: they are all alike.
MOST_PADS = 8
STAND_IN = "□"  # for a character that takes no column, or two


def print_masks(console: Console, rows: Sequence[InspectedRow], masks: Masks) -> None:
    """Print a grid per row, then what the two kinds of cell mean."""
    for number, row in enumerate(rows):
        skip = max(0, row.num_pads - MOST_PADS)
        left_out = f"; {skip} of {row.num_pads} pads not shown" if skip else ""
        console.print()
        print_line(console, f"row {row.id}: queries down, two per line; keys across{left_out}")
        for line in _grid(row, masks.visible[number], skip, console.width):
            console.print(line, soft_wrap=True)
    console.print()
    print_section(console, "The mask added to the scores before the softmax", _legend(rows, masks), 9)


def _grid(row: InspectedRow, visible_keys: list[list[bool]], skip: int, width: int) -> Iterator[Text]:
    names = [visible(label) for label in row.labels]
    room = max(8, width - LABEL_WIDTH - NAME_WIDTH - 5)
    for start in range(skip, len(names), room):
        yield from _part(row, names, visible_keys, skip, range(start, min(start + room, len(names))))


def _part(
    row: InspectedRow, names: list[str], visible_keys: list[list[bool]], skip: int, keys: range
) -> Iterator[Text]:
    """Yield the lines of all queries from `skip` on against some keys: the keys' names, their 0/1 mask, the grid."""
    margin = " " * (LABEL_WIDTH + 3)
    for line in _upright([names[key] for key in keys]):
        yield Text(margin + line, style="dim")
    mask = "".join(str(row.attention_mask[key]) for key in keys)
    yield Text.assemble(("attention_mask".rjust(LABEL_WIDTH), "cyan"), "   ", mask)
    yield Text(f"{margin[:-1]}┌{'─' * len(keys)}┐", style="dim")
    for query in range(skip, len(names), 2):
        yield _two_queries(names, visible_keys, query, keys)
    yield Text(f"{margin[:-1]}└{'─' * len(keys)}┘", style="dim")


def _two_queries(names: list[str], visible_keys: list[list[bool]], query: int, keys: range) -> Text:
    has_lower = query + 1 < len(names)
    lower = visible_keys[query + 1] if has_lower else [False] * len(names)
    cells = "".join(HALVES[visible_keys[query][key], lower[key]] for key in keys)
    below = f"▄ {_short(names[query + 1])}" if has_lower else ""
    return Text.assemble(
        f"{_short(names[query]).rjust(LABEL_WIDTH)} ▀", ("│", "dim"), (cells, "green"), ("│", "dim"), below
    )  # fmt: skip


def _short(name: str) -> str:
    """Return a name with as many columns as characters, at most `NAME_WIDTH`."""
    narrow = "".join(sign if cell_len(sign) == 1 else STAND_IN for sign in name)
    return narrow if len(narrow) <= NAME_WIDTH else narrow[: NAME_WIDTH - 1] + "…"


def _upright(names: list[str]) -> Iterator[str]:
    """Yield names written downwards, one character per line, all ending on the last line."""
    short = [_short(name)[:NAME_HEIGHT] for name in names]
    height = max(map(len, short))
    for line in range(height):
        yield "".join(name[line - height + len(name)] if line >= height - len(name) else " " for name in short)


def _legend(rows: Sequence[InspectedRow], masks: Masks) -> Iterator[tuple[str, str]]:
    least = f"{masks.least:.4g}"
    yield "█ ▀ ▄", "0: the query sees the key"
    yield (
        "blank",
        f"{least}, the lowest {masks.dtype}, which is what transformers' eager attention adds: the key comes after the "
        "query, or is a pad. exp() of it is 0, so the weight is exactly 0. The sdpa kernels take the same "
        "mask as booleans",
    )
    yield "or -inf", _infinity(rows, masks, least)
    if masks.has_windows:
        yield "windows", "some layers of this model see only a window of keys; the drawing shows the other layers"


def _infinity(rows: Sequence[InspectedRow], masks: Masks, least: str) -> str:
    """Return where -inf and the lowest number give different results."""
    same = "would give the same weights to every query that sees a key"
    blind = sum(len(masks.blind_queries(number)) for number in range(len(rows)))
    if not blind:
        return f"{same}, as all queries here do"
    facts = masks.fully_masked
    infinity = "NaN (0/0)" if facts.weight_with_infinity is None else f"{facts.weight_with_infinity:g}"
    sdpa = "NaN" if facts.sdpa_output is None else f"{facts.sdpa_output:g}"
    return (
        f"{same}. The pads' own queries ({blind} here) see none: with -inf their weights are {infinity}, with {least} "
        f"each column gets {facts.weight_with_least:.3g}, and the sdpa kernels return {sdpa}. Tokens give pads "
        "the weight 0, so that a number there does no harm; but 0 * NaN is NaN, and would reach the tokens in the next "
        "layer"
    )
