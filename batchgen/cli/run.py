"""`batchgen run`: prompts to continuations."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import typer

from batchgen.cli import options as opt
from batchgen.cli.destination import Destination, choose_destination
from batchgen.cli.output import OUR_WRITERS, check_columns_flag
from batchgen.cli.signals import Interrupts
from batchgen.cli.typed import typed_command
from batchgen.cli.watching import Watcher, report_ending
from batchgen.errors import UsageError
from batchgen.records import EngineOptions, SamplingParams
from batchgen.render.screen import Screen
from batchgen.runs.checks import check_outputs
from batchgen.runs.execute import execute
from batchgen.runs.job import FilePrompts, Job, ModelChoice, OutputForm
from batchgen.runs.ray.execute import OnRay, execute_on_ray


@opt.with_groups
def run(
    context: typer.Context,
    prompts: opt.PromptOptions,
    chat: opt.ChatFlags,
    model: opt.ManyDevices,
    sampling: SamplingParams,
    engine: EngineOptions,
    cluster: opt.ClusterOptions,
    results: opt.OutputOptions,
    durable: opt.DurableOptions,
    too_long: opt.TooLongPolicy = "error",
    progress: opt.ProgressForm = "auto",
    quiet: opt.Quiet = False,
) -> None:
    """Generate an answer for every prompt.

    [bold]batchgen run prompts.txt[/]                      a table on the terminal
    [bold]batchgen run prompts.jsonl -o out.jsonl[/]       a file
    [bold]echo My dog is | batchgen run | jq .text[/]      a pipe
    """
    screen = Screen(quiet=quiet, as_json=progress == "json")
    reading = prompts.reading()
    to = choose_destination(context, prompts, reading, cluster, engine, results, durable, screen)
    _check_results(results, to)
    _check_logprobs(sampling.logprobs, to.form, screen)
    check_outputs(to.target, {"manifest": results.manifest, "stats": results.stats, "html": results.html}, to.sources)
    job = Job(
        prompts=FilePrompts(to.sources, reading, prompts.limit, screen.say),
        sampling=sampling,
        model=ModelChoice(model.model, model.revision, model.device, model.dtype),
        engine=engine,
        chat=chat.options(),
        output_form=OutputForm(to.form.value, results.ids, results.csv_raw, to.in_kind, results.columns),
        target=to.target,
        too_long=too_long,
        parse_special=prompts.parse_special,
        strict=durable.strict,
        manifest=results.manifest,
        stats=results.stats,
        owns_process=True,
        command=typed_command(context),
    )
    raise typer.Exit(_run(job, to.on_ray, screen, context.obj, results.html))


def _run(job: Job, on_ray: OnRay | None, screen: Screen, interrupts: Interrupts, html: Path | None) -> int:
    """Run the job and return the exit code."""
    watcher = Watcher(screen, interrupts, to_stdout=job.target is None and on_ray is None)
    if on_ray:
        return report_ending(execute_on_ray(job, on_ray, watcher), screen, interrupts)
    stdout = sys.stdout.buffer if job.target is None else None
    ending = execute(job, watcher, stdout=stdout, writers=OUR_WRITERS)
    if html and job.target and not ending.was_stopped:
        from batchgen.cli.page import page_of, write_page

        write_page(html, page_of(job.target.path), overwrite=True)
        ending = replace(ending, written=(*ending.written, html))
    return report_ending(ending, screen, interrupts)


def _check_results(results: opt.OutputOptions, to: Destination) -> None:
    """Reject --html if the output cannot be read again, and --columns for formats without columns."""
    target = to.target
    if results.html and (target is None or target.is_stream or target.form == opt.Format.text.value):
        raise UsageError("--html needs a file with the rows in it: name one with -o, not .txt")
    check_columns_flag(results.columns, to.form, on_ray=to.on_ray is not None)


def _check_logprobs(logprobs: int | None, form: opt.Format, screen: Screen) -> None:
    """Refuses log-probabilities in plain text; a table, which may be there only because this is a terminal, says so."""
    if logprobs is None:
        return
    if form is opt.Format.text:
        raise UsageError("--logprobs does not work with plain text: write .jsonl, .csv, .tsv, .parquet or .db")
    if form is opt.Format.table:
        screen.say("a table does not show log-probabilities: use --format jsonl, or name a file with -o")
