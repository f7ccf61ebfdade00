"""`batchgen score`: how likely given texts are."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from batchgen.cli import options as opt
from batchgen.cli.destination import Destination, choose_destination
from batchgen.cli.output import text_of
from batchgen.cli.signals import Interrupts
from batchgen.cli.typed import typed_command
from batchgen.cli.watching import Watcher, report_ending
from batchgen.errors import UsageError
from batchgen.formats.writing import WRITERS, WriteOptions
from batchgen.proof.answers_page.scores import ScoredRows, facts_of_sums
from batchgen.records import EngineOptions, Result, SamplingParams, ScoringOptions
from batchgen.render.scores import print_groups, print_score
from batchgen.render.screen import OutputConsole, Screen
from batchgen.runs.checks import check_outputs
from batchgen.runs.ending import Ending
from batchgen.runs.execute import execute
from batchgen.runs.job import FilePrompts, Job, ModelChoice, OutputForm
from batchgen.runs.ray.execute import execute_on_ray

PAGE_ALTERNATIVES = 5


@opt.with_groups
def score(
    context: typer.Context,
    prompts: Annotated[opt.PromptOptions, opt.Pick(without=("choices_field",))],
    chat: Annotated[opt.ChatFlags, opt.Pick(without=("split_reasoning",))],
    model: opt.ManyDevices,
    sampling: Annotated[SamplingParams, opt.Pick("logprobs")],
    engine: Annotated[EngineOptions, opt.Pick("batch_size", "memory", "share_prefixes", "workers", "quantize")],
    cluster: opt.ClusterOptions,
    results: Annotated[opt.OutputOptions, opt.Pick(without=("ids", "columns"))],
    durable: opt.DurableOptions,
    tokens: Annotated[
        bool,
        typer.Option("--tokens", metavar="", help="Add each token's log-probability.", rich_help_panel=opt.OUTPUT),
    ] = False,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Also give the sums for each value of this column.", rich_help_panel=opt.OUTPUT
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Tokens to score per window in texts longer than the model's context. Default: half of it.",
            rich_help_panel=opt.LENGTH,
        ),
    ] = None,
    too_long: opt.TooLongPolicy = "error",
    progress: opt.ProgressForm = "auto",
    quiet: opt.Quiet = False,
) -> None:
    """Score how likely given texts are: continuations, choices, whole texts.

    [bold]batchgen score questions.jsonl -o scores.jsonl[/]    rows of prompt and choices, or of prompt and continuation
    [bold]batchgen score book.txt[/]                           perplexity of each line, and of all of them
    [bold]batchgen score book.txt --html book.html[/]          a page to read: tokens coloured by surprise, alternatives

    For a row of messages, the last reply is scored. Nothing is generated.
    """
    screen = Screen(quiet=quiet, as_json=progress == "json")
    reading = replace(prompts.reading(), scores=True)
    to = choose_destination(context, prompts, reading, cluster, engine, results, durable, screen)
    _check_results(results, to)
    check_outputs(to.target, {"manifest": results.manifest, "stats": results.stats, "html": results.html}, to.sources)
    shows_tokens = tokens or to.form is opt.Format.table
    job = Job(
        prompts=FilePrompts(to.sources, reading, prompts.limit, screen.say),
        sampling=_sampling(sampling.logprobs, tokens=shows_tokens, page=results.html is not None),
        model=ModelChoice(model.model, model.revision, model.device, model.dtype),
        engine=engine,
        chat=chat.options(),
        output_form=OutputForm(to.form.value, csv_raw=results.csv_raw, in_kind=to.in_kind),
        target=to.target,
        too_long=too_long,
        parse_special=prompts.parse_special,
        strict=durable.strict,
        manifest=results.manifest,
        stats=results.stats,
        owns_process=True,
        scoring=ScoringOptions(stride, by),
        command=typed_command(context),
    )
    raise typer.Exit(_score(job, to, screen, context.obj, results.html))


class ScoreWatcher(Watcher):
    """Also keeps the rows for the page, if one is requested."""

    page: ScoredRows | None = None

    def scored(self, results: Iterable[Result]) -> Iterable[Result]:
        return self.page.watch(results) if self.page else results


def _check_results(results: opt.OutputOptions, to: Destination) -> None:
    if to.form is opt.Format.text:
        raise UsageError("scores are not plain text: write .jsonl, .csv, .tsv, .parquet or .db")
    if results.html and to.on_ray:
        raise UsageError("--html is not supported with --ray: remove one")


def _score(job: Job, to: Destination, screen: Screen, interrupts: Interrupts, html: Path | None) -> int:
    """Score the rows and return the exit code."""
    watcher = ScoreWatcher(screen, interrupts, to_stdout=to.is_stdout)
    watcher.page = ScoredRows() if html else None
    if to.on_ray:
        ending = execute_on_ray(job, to.on_ray, watcher)
    else:
        stdout = sys.stdout.buffer if to.is_stdout else None
        ending = execute(job, watcher, stdout=stdout, writers=WRITERS | {opt.Format.table.value: _write_heat})
    if html and watcher.page and not ending.was_stopped:
        ending = replace(ending, written=(*ending.written, _write_page(html, watcher.page, ending)))
    by = job.scoring.by if job.scoring else None
    if by is not None and ending.sums and not (screen.quiet or screen.as_json):
        print_groups(screen.console, by, ending.sums.facts)
    return report_ending(ending, screen, interrupts)


def _write_page(html: Path, page: ScoredRows, ending: Ending) -> Path:
    from batchgen.cli.page import write_page
    from batchgen.proof.answers_page import render_scores

    sums = ending.sums.facts if ending.sums else {}
    facts = {"rows": f"{len(page.rows) + page.left_out:,}", "model": ending.ran_on.model, **facts_of_sums(sums)}
    write_page(html, render_scores(page.rows, html.stem, facts, left_out=page.left_out), overwrite=True)
    return html


def _sampling(logprobs: int | None, *, tokens: bool, page: bool) -> SamplingParams:
    """Return which log-probabilities to record: none, each token's own, or also the alternatives that a page shows."""
    least = PAGE_ALTERNATIVES if page else 0 if tokens else None
    return SamplingParams(max_new_tokens=1, logprobs=least if logprobs is None else logprobs)


def _write_heat(results: Iterable[Result], stream: BinaryIO, options: WriteOptions) -> None:
    """Print each row for a terminal, with its tokens coloured by their surprise."""
    with text_of(stream) as file:
        console = OutputConsole(file=file, highlight=False)
        for result in results:
            print_score(console, result)
