"""batchgen from Python: `generate`, `stream` and `run` do what the command line does, without a terminal."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from batchgen.errors import UsageError, with_parameters
from batchgen.formats.reading import (
    READERS,
    ReadOptions,
    Row,
    check_beginnings,
    check_read_options,
    find_sources,
    row_of_object,
)
from batchgen.formats.writing import WRITERS
from batchgen.model import Model
from batchgen.records import Result, RunStats
from batchgen.records.options import read_whole
from batchgen.runs.checks import check_outputs
from batchgen.runs.execute import execute, open_run
from batchgen.runs.job import FilePrompts, GivenPrompts, Job, ModelChoice, OutputForm, Prompts
from batchgen.runs.keywords import FileOptions, GenerateOptions, Keywords, in_python_words, python_words, read_keywords
from batchgen.runs.observer import Observer
from batchgen.runs.target import SQLITE, Target, form_of_output

Prompt = str | Mapping[str, Any]
PathLike = str | os.PathLike[str]


class Warnings(Observer):
    """Passes the run's messages on as Python warnings."""

    def say(self, line: str) -> None:
        warn(line)


def warn(line: str) -> None:
    """Issue a Python warning that names parameters instead of command-line flags."""
    warnings.warn(in_python_words(with_parameters(line)), stacklevel=3)


@python_words()
def generate(
    prompts: Prompt | Iterable[Prompt], model: str | Model | None = None, **options: Unpack[GenerateOptions]
) -> list[Result]:
    """Generate a continuation of each prompt, like `batchgen run`; return one Result per prompt and sample, in order.

    `prompts` are strings or mappings with the fields of a JSON Lines row. `model` is a name, a folder, a Hub id, or a
    `Model` from `open_model`, which several calls can share. `options` are the fields of `SamplingParams` and the
    command's --device, --dtype, --batch-size and so on. Raises `BatchgenError`, and `ValueError` for invalid sampling
    options. A bad row does not raise: its Result has an `error`.

    >>> [r.text for r in generate(["My dog is"], model="bundled", max_new_tokens=4)]
    [' a very nice dog']
    """
    results = _stream(job_of(prompts, model, read_keywords("generate", options, GenerateOptions)))
    return sorted(results, key=lambda result: (result.index, result.sample_index))


@python_words()
def stream(
    prompts: Prompt | Iterable[Prompt], model: str | Model | None = None, **options: Unpack[GenerateOptions]
) -> Iterator[Result]:
    """Generate a continuation of each prompt and yield each Result as its row finishes.

    A Result's `index` is the position of its prompt. Takes the arguments of `generate`. An iterator of prompts is read
    as needed, so memory does not grow with their number. Options are checked immediately; the model is loaded for the
    first Result.

    >>> next(stream(["My dog is"], model="bundled", max_new_tokens=4)).text
    ' a very nice dog'
    """
    return _stream(job_of(prompts, model, read_keywords("stream", options, GenerateOptions)))


def _stream(job: Job) -> Iterator[Result]:
    with python_words(), open_run(job, Warnings()) as run:
        yield from run.results()


@python_words()
def run(
    inputs: PathLike | Iterable[PathLike],
    *,
    output: PathLike,
    model: str | Model | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **options: Unpack[FileOptions],
) -> RunStats:
    """Generate from files and write the results durably to a file, like `batchgen run INPUTS -o FILE`.

    `inputs` are paths, globs or folders. A run that ends early keeps its finished rows; `resume` continues from them.
    `options` are those of `generate`, plus field, id_field, choices_field, template, input_format, delimiter,
    whole_files, recursive, limit, format, ids, csv_raw, columns, retry_errors, keep_store, strict, manifest, stats.
    Returns the counts; failed rows are written to the file and counted. Raises `BatchgenError`; in particular
    `OutputError` if `output` exists and neither `resume` nor `overwrite` is set.
    """
    keywords = read_keywords("run", options, FileOptions)
    reading = _reading(keywords)
    names = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    recursive = bool(keywords.given.get("recursive"))
    sources = find_sources([os.fspath(name) for name in names], options=reading, recursive=recursive, say=warn)
    check_beginnings(sources, reading)
    target = _target(Path(output), keywords, resume=resume, overwrite=overwrite)
    notes = {name: Path(path) for name, path in keywords.of("manifest", "stats").items() if path is not None}
    check_outputs(target, notes, sources)
    limit = _limit(keywords)
    ending = execute(
        _make_job(
            FilePrompts(tuple(sources), reading, limit, warn),
            model,
            keywords,
            target=target,
            output_form=OutputForm(target.form, **keywords.of("ids", "csv_raw", "columns"), in_kind=target.in_kind),
            **keywords.of("strict"),
            **notes,
        ),
        Warnings(),
    )
    return ending.stats


def _limit(keywords: Keywords) -> int | None:
    if (given := keywords.given.get("limit")) is None:
        return None
    if (limit := read_whole("limit", given)) < 1:
        raise UsageError(f"limit {limit} is less than 1")
    return limit


def _reading(keywords: Keywords) -> ReadOptions:
    options = keywords.of("field", "id_field", "input_format", "template", "delimiter", "whole_files", "choices_field")
    if (form := options.get("input_format")) not in (None, *READERS):
        raise UsageError(f"input_format {form!r} is not one of {', '.join(READERS)}")
    if (template := options.get("template")) is not None:
        from batchgen.formats.templates import Template

        if options.get("field") is not None:
            raise UsageError("field and template both set the prompt: choose one")
        options["template"] = Template(template)
    reading = ReadOptions(**options)
    check_read_options(reading, str)
    return reading


def _target(output: Path, keywords: Keywords, *, resume: bool, overwrite: bool) -> Target:
    retry = bool(keywords.given.get("retry_errors"))
    if overwrite and (resume or retry):
        raise UsageError("overwrite and resume cannot be combined: choose one")
    form = keywords.given.get("format") or form_of_output(output)
    if form not in (*WRITERS, SQLITE):
        raise UsageError(f"format {form!r} is not one of {', '.join((*WRITERS, SQLITE))}")
    keep = bool(keywords.given.get("keep_store"))
    in_kind = form == "jsonl" and not keywords.given.get("format") and not keywords.given.get("ids")
    return Target(output, form, overwrite, resume or retry, retry_errors=retry, keep_store=keep, in_kind=in_kind)


def job_of(prompts: Prompt | Iterable[Prompt], model: str | Model | None, keywords: Keywords, **more: Any) -> Job:
    """Make a job from rows passed by the caller; its results are returned to the caller.

    Raises `TypeError` for anything but rows.
    """
    rows = (_to_row(item, number) for number, item in enumerate(_items(prompts)))
    return _make_job(GivenPrompts(rows, say=warn), model, keywords, **more)


def _make_job(
    prompts: Prompts,
    model: str | Model | None,
    keywords: Keywords,
    **more: Any,
) -> Job:
    choice = keywords.of("revision", "device", "dtype")
    if isinstance(model, Model):
        if given := [name for name, value in choice.items() if value not in (None, "auto")]:
            raise UsageError(f"the model is already open: pass {given[0]} to open_model")
        chosen = ModelChoice(loaded=model)
    else:
        chosen = ModelChoice(model, **choice)
    return Job(
        prompts,
        more.pop("sampling", None) or keywords.sampling(),
        chosen,
        keywords.engine(),
        keywords.chat(),
        **keywords.of("too_long", "parse_special"),
        **more,
    )


def _items(prompts: object) -> Iterable[object]:
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if not isinstance(prompts, Iterable) or isinstance(prompts, bytes | bytearray):
        kind = type(prompts).__name__
        raise TypeError(f"prompts must be a text, an object such as {{'prompt': 'a'}} or a list of these, not {kind}")
    return prompts


def _to_row(item: object, number: int) -> Row:
    if isinstance(item, str):
        return Row(item)
    row = row_of_object(dict(item) if isinstance(item, Mapping) else item)
    return replace(row, place=f"prompts[{number}]")
