"""`batchgen bench`: how fast this machine runs a model, and with which settings."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import StrEnum
from functools import partial
from typing import Annotated, Literal

import typer

from batchgen.bench import keep, make_plan, measure, open_labs
from batchgen.bench.advice import where_it_stops
from batchgen.bench.facts import BenchReport, Task
from batchgen.cli import options as opt
from batchgen.errors import UsageError
from batchgen.formats.fields import to_json
from batchgen.model import open_checkpoint
from batchgen.records import EngineOptions
from batchgen.render.bench import print_report
from batchgen.render.screen import OutputConsole, Screen, Waiting, plural

NOTHING_RAN = 1
MOST_ROWS, MOST_NUMBERS = 4096, 12


class SweptDtype(StrEnum):
    """A dtype to sweep (Typer has no lists of literals)."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@opt.with_groups
def bench(
    model: Annotated[opt.ModelOptions, opt.Pick(without=("dtype",))],
    weights: Annotated[EngineOptions, opt.Pick("quantize")],
    dtype: Annotated[
        list[SweptDtype] | None,
        typer.Option(
            help="Dtypes to measure. Can be repeated. auto: float32, and bfloat16 where it is fast.",
            rich_help_panel=opt.MODEL,
            show_default="auto",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="New tokens per row; 1 to 2N for ragged rows.", rich_help_panel=opt.LENGTH
        ),
    ] = 32,
    engine: Annotated[
        Literal["auto", "continuous", "reference"],
        typer.Option(help="Engines to measure; auto is both.", rich_help_panel=opt.BATCHES),
    ] = "auto",
    rows: Annotated[
        str,
        typer.Option(
            metavar="auto|N,N,…",
            help="Batch sizes to measure; auto is 1,8,32,64,128 on the CPU.",
            rich_help_panel=opt.BATCHES,
        ),
    ] = "auto",
    seconds: Annotated[
        float,
        typer.Option(metavar="S", min=1.0, help="Approximate time limit.", rich_help_panel=opt.BATCHES),
    ] = 60.0,
    as_json: Annotated[
        bool,
        typer.Option("--json", metavar="", help="Print everything as one line of JSON.", rich_help_panel=opt.OUTPUT),
    ] = False,
    quiet: opt.Quiet = False,
) -> None:
    """Measure engines, dtypes and batch sizes on this machine, and recommend settings.

    [bold]batchgen bench[/]
    [bold]batchgen bench --model gpt2 --dtype float32 --seconds 300[/]
    [bold]batchgen bench | tail -n 1 | jq .rows[/]         the settings as JSON

    Fixed rows are all the same; ragged rows have prompts of 3 to 200 tokens and end one by one.
    With --quantize each dtype is also measured with quantised layers, and the advice says how many tokens change.
    The settings are kept in your cache folder, where `plan` and `--batch-size auto` find them.
    """
    screen = Screen(quiet=quiet)
    sweep = parse_rows(rows)
    with screen.waiting("loading the model") as waiting:
        checkpoint = open_checkpoint(model.model, revision=model.revision, say=screen.say)
        plan = make_plan(
            checkpoint,
            device=model.device,
            dtypes=tuple(name.value for name in dtype or [SweptDtype.auto]),
            engine=engine,
            rows=sweep,
            max_new_tokens=max_new_tokens,
            seconds=seconds,
            quantize=weights.quantize,
        )
        report = keep(measure(plan, open_labs(checkpoint, plan), on_task=partial(_show, waiting)))
    if as_json:
        print(to_json(report.to_dict()))
    else:
        print_report(OutputConsole(file=sys.stdout, highlight=False), report, list(_advice(report)))
        print(to_json(report.summary()))
    if not report.bests:
        raise typer.Exit(NOTHING_RAN)


def parse_rows(value: str) -> tuple[int, ...]:
    """Parse batch sizes separated by commas; return an empty tuple for auto. Raises `UsageError`."""
    if value == "auto":
        return ()
    numbers = [part.strip() for part in value.split(",")]
    if len(numbers) > MOST_NUMBERS or not all(n.isascii() and n.isdigit() and 0 < int(n) <= MOST_ROWS for n in numbers):
        raise UsageError(f"--rows {value}: give at most {MOST_NUMBERS} numbers from 1 to {MOST_ROWS:,}, such as 1,8,64")
    return tuple(map(int, numbers))


def _show(waiting: Waiting, task: Task) -> None:
    """Show what is being measured."""
    waiting.show(f"{task.engine}, {task.dtype}, {plural(task.rows, 'row')}, {task.workload}")


def _advice(report: BenchReport) -> Iterator[str]:
    if report.recommended:
        yield where_it_stops(report.recommended)
    yield report.advice
    if report.kept:
        yield "saved: --batch-size auto now uses these settings, and plan uses the speed"
