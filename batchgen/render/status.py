"""The progress of a run in a few lines."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from rich.console import Console, Group
from rich.text import Text

from batchgen.render.screen import plural
from batchgen.runs.status import RunStatus
from batchgen.text import duration_text, escape, size_text

STILL_S = 60.0  # a longer time without progress is reported
LABEL_WIDTH = 8


def status_lines(status: RunStatus, next_command: str, now: float) -> Iterator[tuple[str, str]]:
    """Yield (label, text) lines; the first has no label. `now` is seconds since 1970."""
    yield "", f"{status.path}: {_headline(status, now)}"
    for label, text in (
        ("time", _times(status, now)),
        ("tokens", _tokens(status)),
        ("memory", _memory(status)),
        ("model", _model(status)),
    ):
        if text:
            yield label, text
    for number, (reason, rows) in enumerate(status.reasons):
        yield "" if number else "failed", f"{plural(rows, 'row')}: {reason}"
    if next_command:
        yield "next", next_command


def _headline(status: RunStatus, now: float) -> str:
    of = f" of {status.rows_total:,}" if status.rows_total is not None else ""
    rows = f"{status.rows_done:,}{of} rows" if of else plural(status.rows_done, "row")
    share = f" ({status.rows_done / status.rows_total:.1%})" if status.rows_total else ""
    parts = [status.state, f"{rows}{share}"]
    if not of and status.state == "running":
        parts.append("the number of input rows is not known yet")
    if status.rows_failed:
        parts.append(f"{status.rows_failed:,} failed")
    if status.state == "running":
        parts += _going_on(status, now)
    return ", ".join(parts)


def _going_on(status: RunStatus, now: float) -> Iterator[str]:
    progress = status.progress
    if progress and progress.phase != "generating":
        yield progress.phase
    still_s = now - status.noted_s if status.noted_s else 0.0
    if still_s > STILL_S:
        yield f"no progress for {duration_text(still_s)}"
    elif progress and progress.seconds_left is not None and progress.phase == "generating":
        yield f"about {duration_text(max(0.0, progress.seconds_left - still_s))} left"


def _times(status: RunStatus, now: float) -> str:
    parts = []
    if status.started_s:
        parts.append(f"since {_clock(status.started_s)}")
    if status.noted_s:
        ago = f"{duration_text(max(0.0, now - status.noted_s))} ago"
        parts.append(f"done {_clock(status.noted_s)}" if status.state == "complete" else f"last progress {ago}")
    return ", ".join(parts)


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def _tokens(status: RunStatus) -> str:
    if status.prompt_tokens is None or status.output_tokens is None:
        return ""
    parts = [f"{status.prompt_tokens:,} prompt + {status.output_tokens:,} new tokens in finished rows"]
    if status.state == "running" and status.progress:
        parts.append(f"{status.progress.recent_tokens_per_s:,.0f} tokens/s now")
    if status.tokens_per_s:
        parts.append(f"{status.tokens_per_s:,.0f} tokens/s over all")
    return ", ".join(parts)


def _memory(status: RunStatus) -> str:
    parts = [f"peak {size_text(status.peak_bytes)}"] if status.peak_bytes else []
    if status.predicted_bytes:
        predicted = f"{size_text(status.predicted_bytes)} predicted"
        measured = "" if status.measured_bytes is None else f"{size_text(status.measured_bytes)} of "
        parts.append(f"largest batch {measured}{predicted}")
    return ", ".join(parts)


def _model(status: RunStatus) -> str:
    progress = status.progress
    on = f"{status.engine} on {progress.device}" if status.engine and progress and progress.device else status.engine
    return ", ".join(part for part in (status.model, on, progress.dtype if progress else None) if part)


def draw_status(lines: Iterator[tuple[str, str]]) -> Group:
    """Return the lines as a renderable, for a console that shows them once or repeatedly."""
    return Group(*(_line(label, text, is_first=number == 0) for number, (label, text) in enumerate(lines)))


def _line(label: str, text: str, *, is_first: bool) -> Text:
    one_line = escape(text).replace("\n", " ").replace("\t", " ")
    if is_first:
        return Text(one_line, style="bold", overflow="fold")
    return Text.assemble("  ", (label.ljust(LABEL_WIDTH), "cyan"), one_line, overflow="fold")


def print_status(console: Console, lines: Iterator[tuple[str, str]]) -> None:
    """Print the lines once; in a pipe they are not folded, so that commands can be copied."""
    for line in draw_status(lines).renderables:
        console.print(line, soft_wrap=not console.is_terminal)
