"""The attention view of `inspect`: for each key, scores before and after the mask, and weights with and without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from batchgen.render.screen import print_line
from batchgen.text import visible

if TYPE_CHECKING:
    from batchgen.proof.inspector import Heads, InspectedRow
    from batchgen.proof.inspector.attention import QueryAttention

BAR_WIDTH = 8
NAME_WIDTH = 12
EIGHTHS = " ▏▎▍▌▋▊▉"
# If there are more pads, only their sum is drawn.
MOST_PADS = 8


def print_attention(
    console: Console, rows: Sequence[InspectedRow], attention: Sequence[QueryAttention], heads: Heads
) -> None:
    """Print a table per row, with a line for each key that the query could see without the mask."""
    for row, seen in zip(rows, attention, strict=True):
        console.print()
        name = visible(row.labels[seen.query])
        print_line(console, f"row {row.id}: {heads}, query {name} (column {seen.query})", style="bold")
        console.print(_table(row, seen))
        print_line(console, _on_pads(row, seen))


def _table(row: InspectedRow, seen: QueryAttention) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 1), show_edge=False, pad_edge=False, header_style="cyan")
    table.add_column("column", justify="right")
    table.add_column("key", max_width=NAME_WIDTH, no_wrap=True, overflow="ellipsis")
    if seen.scores is not None:
        table.add_column("score", justify="right")
        table.add_column("masked", justify="right")
    table.add_column("weight", justify="right", min_width=6)
    table.add_column("", min_width=BAR_WIDTH)
    table.add_column("no mask", justify="right", min_width=6)
    table.add_column("", min_width=BAR_WIDTH)
    most = max(*seen.weights, *seen.weights_without_mask)
    for line in _lines(row, seen, most):
        table.add_row(*line)
    return table


def _lines(row: InspectedRow, seen: QueryAttention, most: float) -> Iterator[list[Text]]:
    """Yield a line per key; more than `MOST_PADS` pads share one. Keys after the query have no weight and no line."""
    last = len(row.labels) if seen.is_pad else seen.query + 1  # a query that sees no key weights all columns equally
    num_pads = min(row.num_pads, last)
    first = num_pads if num_pads > MOST_PADS and not seen.is_pad else 0
    if first:
        sums = [sum(weights[:first]) for weights in (seen.weights, seen.weights_without_mask)]
        scores = [] if seen.scores is None else [Text("…"), Text("…")]
        yield [Text(f"0-{first - 1}"), Text(f"{first} pads"), *scores, *_weights(sums, most, is_real=False)]
    for key in range(first, last):
        is_real = bool(row.attention_mask[key])
        scores = [] if seen.scores is None or seen.masked_scores is None else [
            Text(_score(seen.scores[key])), Text(_score(seen.masked_scores[key])),
        ]  # fmt: skip
        weights = [seen.weights[key], seen.weights_without_mask[key]]
        name = Text(visible(row.labels[key]), style="" if is_real else "dim")
        yield [Text(str(key)), name, *scores, *_weights(weights, most, is_real=is_real)]


def _weights(weights: list[float], most: float, *, is_real: bool) -> Iterator[Text]:
    for weight in weights:
        yield Text(_percent(weight), style="" if weight else "dim")
        yield Text(_bar(weight / most if most else 0), style="green" if is_real else "red")


def _score(score: float) -> str:
    return f"{score:.3f}" if abs(score) < 1e6 else f"{score:.2e}"


def _percent(share: float) -> str:
    """Format a share to a tenth of a per cent; "0" means exactly 0."""
    return "0" if share == 0 else "<0.1%" if share < 0.0005 else f"{share:.1%}"


def _bar(share: float) -> str:
    eighths = round(min(share, 1) * BAR_WIDTH * 8)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _on_pads(row: InspectedRow, seen: QueryAttention) -> str:
    if seen.is_pad:
        return "this query is a pad: it sees no keys, all its scores are equal, and no token reads its output"
    if not row.num_pads:
        return "no pads in this row"
    with_mask = "exactly 0" if seen.pad_weight == 0 else f"{seen.pad_weight:.3g}"
    return f"on pads: {with_mask}; without the mask {_percent(seen.pad_weight_without_mask)}"
