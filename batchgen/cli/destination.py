"""Where the rows of `run` and `score` come from and where they go: files, a pipe, the terminal, a folder on Ray."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from batchgen.cli.on_ray import choose_ray_format, make_on_ray, refuse_with_ray
from batchgen.cli.options import ClusterOptions, DurableOptions, Format, OutputOptions, PromptOptions
from batchgen.cli.output import check_stdout, choose_format
from batchgen.errors import UsageError
from batchgen.formats.reading import ReadOptions, Source
from batchgen.records import EngineOptions
from batchgen.render.screen import Screen
from batchgen.runs.ray.execute import OnRay
from batchgen.runs.target import Target


@dataclass(frozen=True, slots=True)
class Destination:
    """Checked sources, and where results go: a `target`, a folder `on_ray`, or otherwise standard output.

    With `in_kind`, OpenAI requests get answers in OpenAI's format.
    """

    form: Format
    in_kind: bool
    sources: tuple[Source, ...] = ()
    target: Target | None = None
    on_ray: OnRay | None = None

    @property
    def is_stdout(self) -> bool:
        return self.target is None and self.on_ray is None


def choose_destination(
    context: typer.Context,
    prompts: PromptOptions,
    reading: ReadOptions,
    cluster: ClusterOptions,
    engine: EngineOptions,
    results: OutputOptions,
    durable: DurableOptions,
    screen: Screen,
) -> Destination:
    """Choose the sources and the destination from the options. Raises `UsageError` for conflicting options."""
    output = None if results.output == Path("-") else results.output
    if on_ray := make_on_ray(cluster, prompts, engine, output, durable):
        refuse_with_ray(prompts, durable)
        form = choose_ray_format(results.format)
        return Destination(form, results.are_in_kind(form), on_ray=on_ray)
    form = choose_format(results.format, output, ids=results.ids, csv_raw=results.csv_raw)
    in_kind = results.are_in_kind(form)
    sources = tuple(prompts.sources(context, reading, screen.say))
    target = target_of(output, form, durable, in_kind=in_kind)
    if target is None:
        check_stdout(sources)
    return Destination(form, in_kind, sources, target)


def target_of(output: Path | None, form: Format, durable: DurableOptions, *, in_kind: bool) -> Target | None:
    """Return the file to write and what to do if it exists. Raises `UsageError` for conflicting options."""
    resume = durable.resume or durable.retry_errors
    if durable.overwrite and resume:
        raise UsageError("--overwrite and --resume cannot be combined: choose one")
    if output is None:
        if resume or durable.keep_store:
            flag = "--retry-errors" if durable.retry_errors else "--resume" if resume else "--keep-store"
            raise UsageError(f"{flag} needs a file: name it with -o")
        return None
    return Target(output, form.value, durable.overwrite, resume, durable.retry_errors, durable.keep_store, in_kind)
