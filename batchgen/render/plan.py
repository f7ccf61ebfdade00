"""The screen of `plan`: rows and lengths, padding side by side, memory by part, time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from batchgen.planning.memory import BUDGET_SHARE
from batchgen.render.screen import plural, print_line, print_section
from batchgen.text import size_text

if TYPE_CHECKING:
    from batchgen.machine.speeds import Speed
    from batchgen.planning.forecast import BadRow, Bin, Forecast
    from batchgen.planning.kinds import LargestBatch
    from batchgen.planning.room import Room
    from batchgen.records import MemoryEstimate

BAR = "█"
EIGHTHS = " ▏▎▍▌▋▊▉"
BAR_WIDTH = 40
LABEL_WIDTH = 14
# At most this many rows that cannot run are shown; `--json` has up to a thousand.
MOST_BAD_ROWS = 10


def print_forecast(console: Console, plan: Forecast, room: Room, blank_lines: int, speed: Speed | None) -> None:
    """Print the whole plan on one screen; nothing is cut."""
    print_line(console, _headline(plan, room, blank_lines))
    if plan.histogram:
        _print_histogram(console, plan.histogram)
    if plan.largest:
        has_slots = room.engine == "continuous"
        _print_padding(console, plan, has_slots=has_slots)
        title = _largest(plan.largest, has_slots=has_slots)
        print_section(console, title, _memory(plan.largest.memory, room), LABEL_WIDTH)
    if plan.num_bad_rows:
        title = f"{plural(plan.num_bad_rows, 'row')} cannot run and will become error records"
        print_section(console, title, _bad_rows(plan), 1)
    print_section(console, "Time", [("", _time(plan, speed))], 0)


def _headline(plan: Forecast, room: Room, blank_lines: int) -> str:
    parts = [
        plural(plan.rows, "row"),
        *([plural(blank_lines, "blank line") + " skipped"] if blank_lines else []),
        plural(plan.prompt_tokens, "prompt token"),
        f"model {room.model}",
        room.device,
        room.precision,
    ]
    return ", ".join(parts)


def _largest(batch: LargestBatch, *, has_slots: bool) -> str:
    if has_slots:
        return f"Memory with {plural(batch.rows, 'slot')} filled, prompts of up to {plural(batch.columns, 'token')}"
    return f"Memory of the largest batch, {plural(batch.rows, 'row')} of {plural(batch.columns, 'column')}"


def _print_histogram(console: Console, bins: tuple[Bin, ...]) -> None:
    console.print(Text("Tokens per prompt", style="bold"))
    most = max(bin.rows for bin in bins)
    labels = [f"{bin.low:,}" if bin.low == bin.high else f"{bin.low:,}-{bin.high:,}" for bin in bins]
    width = max(LABEL_WIDTH, *map(len, labels))
    for label, bin in zip(labels, bins, strict=True):
        text = Text.assemble("  ", (label.ljust(width), "cyan"), " ", bar(bin.rows / most), f" {bin.rows:,}")
        console.print(text, soft_wrap=True)


def bar(share: float) -> str:
    """Draw a share as a bar, to an eighth of a character; any share above 0 is visible.

    >>> bar(0.05), bar(0)
    ('██', '')
    """
    eighths = round(share * BAR_WIDTH * 8)
    if share and not eighths:
        eighths = 1
    return BAR * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _print_padding(console: Console, plan: Forecast, *, has_slots: bool) -> None:
    batches = "prefills" if has_slots else "batches"
    table = Table(box=None, padding=(0, 2, 0, 2), show_edge=False, pad_edge=True, header_style="")
    table.add_column(Text(batches.capitalize(), style="bold"), style="cyan", min_width=LABEL_WIDTH)
    table.add_column("planned", justify="right")
    table.add_column("in input order", justify="right")
    ways = (plan.planned, plan.in_input_order)
    table.add_row(batches, *(f"{way.batches:,}" for way in ways))
    table.add_row("columns", *(f"{way.columns:,}" for way in ways))
    table.add_row("pads", *(f"{way.pads:,}" for way in ways))
    table.add_row("padding", *(f"{way.share:.1%}" for way in ways))
    console.print(table)


def _memory(memory: MemoryEstimate, room: Room) -> Iterator[tuple[str, str]]:
    parts = {
        "weights": room.weights_bytes,
        **({"packed output": room.packed_bytes} if room.packed_bytes else {}),
        "KV cache": memory.kv_cache,
        "activations": memory.activations,
        "attention mask": memory.attention_mask,
        "logits": memory.logits,
        "workspace": memory.workspace,
        "in all": room.weights_bytes + room.packed_bytes + memory.total,
    }
    for name, num_bytes in parts.items():
        yield name, _right(num_bytes)
    for name, bound in zip(("available", "", ""), room.bounds, strict=False):
        yield name, f"{_right(bound.available_bytes)}  left by {bound.name}"
    yield (
        "for the slots" if room.engine == "continuous" else "for a batch",
        f"{_right(room.limits.budget_bytes)}  {BUDGET_SHARE:.0%} of what is left after the weights",
    )


def _right(num_bytes: int) -> str:
    return f"{size_text(num_bytes):>10}"


def _bad_rows(plan: Forecast) -> Iterator[tuple[str, str]]:
    for row in plan.bad_rows[:MOST_BAD_ROWS]:
        yield "-", _bad_row(row)
    more = plan.num_bad_rows - MOST_BAD_ROWS
    if more > 0:
        yield "-", f"and {more:,} more (--json lists up to a thousand)"


def _bad_row(row: BadRow) -> str:
    return row.error if row.source or row.id is None else f"row {row.id}: {row.error}"


def _time(plan: Forecast, speed: Speed | None) -> str:
    if not plan.largest:
        return "nothing to do"
    if speed is None:
        return "unknown: no run of this model with -o has been measured on this machine yet"
    return f"at most {duration(plan.seconds(speed))}, at the speed of the run of {speed.date}"


def duration(seconds: float) -> str:
    """Format seconds for display, with about two significant digits.

    >>> duration(7.4), duration(200), duration(8000), duration(400_000)
    ('8 s', '4 min', '2.2 h', '4.6 days')
    """
    if seconds < 100:
        return f"{max(1, -int(-seconds // 1))} s"
    if seconds < 5400:
        return f"{-int(-seconds // 60)} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
