"""`batchgen run`: prompts to continuations."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import typer

from batchgen.cli import options as opt
from batchgen.cli.on_ray import choose_ray_format, make_on_ray, refuse_with_ray
from batchgen.cli.output import OUR_WRITERS, check_columns_flag, check_stdout, choose_format
from batchgen.cli.signals import Interrupts
from batchgen.cli.typed import typed_command
from batchgen.cli.watching import Watcher, report_ending
from batchgen.errors import UsageError
from batchgen.formats.reading import Source
from batchgen.records import EngineOptions, SamplingParams
from batchgen.render.screen import Screen
from batchgen.runs.checks import check_outputs
from batchgen.runs.execute import execute
from batchgen.runs.job import FilePrompts, Job, ModelChoice, OutputForm
from batchgen.runs.ray.execute import OnRay, execute_on_ray
from batchgen.runs.target import Target


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
    output = None if results.output == Path("-") else results.output
    reading = prompts.reading()
    on_ray = make_on_ray(cluster, prompts, engine, output, durable)
    sources: list[Source] = []
    target = None
    if on_ray:
        refuse_with_ray(prompts, durable)
        form = choose_ray_format(results.format)
    else:
        form = choose_format(results.format, output, ids=results.ids, csv_raw=results.csv_raw)
        sources = prompts.sources(context, reading, screen.say)
        target = target_of(output, form, durable, in_kind=results.are_in_kind(form))
        if target is None:
            check_stdout(sources)
    _check_results(results, target, form, on_ray)
    check_outputs(target, {"manifest": results.manifest, "stats": results.stats, "html": results.html}, sources)
    job = Job(
        prompts=FilePrompts(tuple(sources), reading, prompts.limit, screen.say),
        sampling=sampling,
        model=ModelChoice(model.model, model.revision, model.device, model.dtype),
        engine=engine,
        chat=chat.options(),
        output_form=OutputForm(form.value, results.ids, results.csv_raw, results.are_in_kind(form), results.columns),
        target=target,
        too_long=too_long,
        parse_special=prompts.parse_special,
        strict=durable.strict,
        manifest=results.manifest,
        stats=results.stats,
        owns_process=True,
        command=typed_command(context),
    )
    raise typer.Exit(_run(job, on_ray, screen, context.obj, results.html))


def _run(job: Job, on_ray: OnRay | None, screen: Screen, interrupts: Interrupts, html: Path | None) -> int:
    """The exit code."""
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


def _check_results(results: opt.OutputOptions, target: Target | None, form: opt.Format, on_ray: OnRay | None) -> None:
    """Refuses a page of no file, and columns where there are none."""
    _check_page(target, results)
    check_columns_flag(results.columns, form, on_ray=on_ray is not None)


def _check_page(target: Target | None, results: opt.OutputOptions) -> None:
    """Refuses a page of results that will not be read again."""
    if results.html and (target is None or target.is_stream or target.form == opt.Format.text.value):
        raise UsageError("--html needs a file with the rows in it: name one with -o, not .txt")


def target_of(output: Path | None, form: opt.Format, durable: opt.DurableOptions, *, in_kind: bool) -> Target | None:
    """The file that is written, and what becomes of one that is there. Raises `UsageError`."""
    resume = durable.resume or durable.retry_errors
    if durable.overwrite and resume:
        raise UsageError("--overwrite and --resume cannot be combined: choose one")
    if output is None:
        if resume or durable.keep_store:
            flag = "--retry-errors" if durable.retry_errors else "--resume" if resume else "--keep-store"
            raise UsageError(f"{flag} needs a file: name it with -o")
        return None
    return Target(output, form.value, durable.overwrite, resume, durable.retry_errors, durable.keep_store, in_kind)
