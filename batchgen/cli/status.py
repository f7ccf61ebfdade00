"""`batchgen status`: show the progress of a run from another terminal."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from batchgen.cli import options as opt
from batchgen.cli.exit_codes import SOME_ROWS_FAILED
from batchgen.cli.typed import again
from batchgen.formats.fields import to_json
from batchgen.render.screen import OutputConsole
from batchgen.render.status import draw_status, print_status, status_lines
from batchgen.runs.status import RunStatus, read_status

EVERY_S = 1.0


def status(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The output file of the run (its -o).", show_default=False)
    ],
    watch: Annotated[
        bool, typer.Option("--watch", metavar="", help="Refresh every second until the run ends.")
    ] = False,
    as_json: opt.AsJson = False,
) -> None:
    """Show the progress of a run.

    [bold]batchgen status out.jsonl[/]            from another terminal, while it runs or later
    [bold]batchgen status out.jsonl --watch[/]    until it has ended

    Shows rows done and failed, tokens, time left, memory, and what to type
    next. The run is not disturbed. The exit code is 3 if a complete run has failed
    rows, and 1 if there is no such run.
    """
    read = _reader(file)
    looks = _looks(read) if watch else iter([read()])
    last = _print_json(looks) if as_json else _draw(looks)
    raise typer.Exit(SOME_ROWS_FAILED if last.has_failed else 0)


def _reader(file: Path) -> Callable[[], RunStatus]:
    if not file.is_dir():
        return partial(read_status, file)
    from batchgen.runs.ray.status import FolderStatus

    return FolderStatus(str(file)).read


def _looks(read: Callable[[], RunStatus]) -> Iterator[RunStatus]:
    """Yield the status each second until the run has ended."""
    while True:
        status = read()
        yield status
        if status.state != "running":
            return
        time.sleep(EVERY_S)


def _print_json(looks: Iterator[RunStatus]) -> RunStatus:
    for last in looks:
        print(to_json(to_dict(last)), flush=True)
    return last


def _draw(looks: Iterator[RunStatus]) -> RunStatus:
    """Draw each status in place on a terminal; elsewhere print one after the other."""
    console = OutputConsole(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        for last in looks:
            print_status(console, _lines(last))
        return last
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        for last in looks:
            live.update(draw_status(_lines(last)), refresh=True)
    return last


def _lines(status: RunStatus) -> Iterator[tuple[str, str]]:
    return status_lines(status, next_command(status), time.time())


def to_dict(status: RunStatus) -> dict[str, Any]:
    """Return the fields of a status and the command to type next."""
    facts = asdict(status)
    reasons = [{"error": text, "rows": number} for text, number in status.reasons]
    return facts | {"reasons": reasons, "next": next_command(status)}


def next_command(status: RunStatus) -> str:
    """Return the command to type next."""
    file = shlex.quote(status.path)
    if status.state == "running":
        return f"batchgen results {file} --follow"
    if status.state == "interrupted":
        return _again(status, "--resume", f"batchgen.run(…, output={status.path!r}, resume=True)")
    if status.has_failed:
        failed = f"batchgen results {file} --format jsonl | jq -c 'select(.error != null)'"
        return _again(status, "--retry-errors", failed) if status.has_store else failed
    return f"batchgen results {file} | head"


def _again(status: RunStatus, flag: str, otherwise: str) -> str:
    """Return the run's command with a flag, or `otherwise` for a run from Python."""
    return again(status.command, flag, status.folder) if len(status.command) > 1 else otherwise
