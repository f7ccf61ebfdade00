"""`batchgen run`: prompts to continuations."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import typer

from batchgen.cli import options as opt
from batchgen.cli.output import check_output, choose_format, is_abandoned, kept_partial, open_output
from batchgen.cli.signals import Interrupts
from batchgen.engines import make_engine
from batchgen.model import Model, open_model
from batchgen.pipeline import Pipeline
from batchgen.probes import MemoryLimit
from batchgen.process import reuse_blocks
from batchgen.readers import Source, count_rows, read_requests
from batchgen.records import Request, Result, SamplingParams, TooLong
from batchgen.render.progress import ProgressReport
from batchgen.render.screen import OutputConsole, Screen, plural, summary
from batchgen.render.table import ResultTable
from batchgen.speeds import speed_of, write_speed
from batchgen.visible import escape
from batchgen.writers import write_jsonl, write_text

if TYPE_CHECKING:
    import torch

SOME_ROWS_FAILED = 3


def run(
    context: typer.Context,
    inputs: opt.Inputs = None,
    prompt: opt.Prompt = None,
    field: opt.Field = None,
    limit: opt.Limit = None,
    parse_special: opt.ParseSpecial = False,
    model: opt.ModelName = None,
    revision: opt.Revision = None,
    device: opt.Device = "auto",
    dtype: opt.DtypeOption = opt.Dtype.auto,
    max_new_tokens: opt.MaxNewTokens = 50,
    min_new_tokens: opt.MinNewTokens = 0,
    stop: opt.Stop = None,
    too_long: opt.TooLong = opt.TooLongPolicy.error,
    temperature: opt.Temperature = 0.0,
    top_k: opt.TopK = 0,
    top_p: opt.TopP = 1.0,
    min_p: opt.MinP = 0.0,
    repetition_penalty: opt.RepetitionPenalty = 1.0,
    no_repeat_ngram_size: opt.NoRepeatNgramSize = 0,
    num_beams: opt.NumBeams = 1,
    num_samples: opt.NumSamples = 1,
    seed: opt.Seed = 0,
    batch_size: opt.BatchSize = "auto",
    memory: opt.MemoryOption = None,
    engine: opt.EngineOption = opt.EngineName.auto,
    exact: opt.Exact = True,
    share_prefixes: opt.SharePrefixes = True,
    format: opt.FormatOption = opt.Format.auto,
    ids: opt.Ids = False,
    output: opt.OutputFile = None,
    overwrite: opt.Overwrite = False,
    quiet: opt.Quiet = False,
) -> None:
    """Continue every prompt with a language model.

    [bold]batchgen run prompts.txt[/]                      a table on the terminal
    [bold]batchgen run prompts.jsonl -o out.jsonl[/]       a file
    [bold]echo My dog is | batchgen run | jq .text[/]      a pipe
    """
    sampling = opt.check_sampling(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=no_repeat_ngram_size,
        num_samples=num_samples,
        num_beams=num_beams,
        stop=tuple(stop or ()),
        seed=seed,
    )
    output = None if output == Path("-") else output
    sources = opt.find_prompts(context, inputs, prompt, field)
    check_output(output, overwrite, sources)
    job = Job(
        sources=sources,
        sampling=sampling,
        field=field,
        limit=limit,
        parse_special=parse_special,
        too_long=too_long.value,
        model=model,
        revision=revision,
        device=device,
        dtype=dtype.value,
        num_rows=opt.parse_batch_size(batch_size),
        memory=opt.parse_bound(memory),
        engine=engine.value,
        exact=exact,
        share_prefixes=share_prefixes,
        form=choose_format(format, output, ids=ids),
        ids=ids,
        output=output,
    )
    raise typer.Exit(execute(job, Screen(quiet=quiet), context.obj))


@dataclass(frozen=True, slots=True)
class Job:
    """What the command line asked for, checked and complete."""

    sources: list[Source]
    sampling: SamplingParams
    field: str | None
    limit: int | None
    parse_special: bool
    too_long: TooLong
    model: str | None
    revision: str | None
    device: str
    dtype: str
    num_rows: int | None
    memory: MemoryLimit | None
    engine: str
    exact: bool
    share_prefixes: bool
    form: opt.Format
    ids: bool
    output: Path | None


def execute(job: Job, screen: Screen, interrupts: Interrupts) -> int:
    """Runs the job, says how it went, and returns the exit code."""
    with screen.waiting("loading the model"):
        model = open_model(job.model, revision=job.revision, device=job.device, dtype=job.dtype, say=screen.say)
    interrupts.start_steps()
    with ProgressReport(screen, _count_rows(job, screen), job.sampling.max_new_tokens) as progress:
        engine = make_engine(
            model,
            name=job.engine,
            num_rows=job.num_rows,
            num_beams=job.sampling.num_beams,
            exact=job.exact,
            share=job.share_prefixes,
            on_step=progress.on_step,
            should_stop=partial(_should_stop, job, interrupts),
            memory=job.memory,
            reuse_blocks=reuse_blocks,
            say=screen.say,
        )
        pipeline = Pipeline(model.checkpoint, engine, too_long=job.too_long, parse_special=job.parse_special)
        try:
            with open_output(job.output) as stream:
                results = pipeline.run(_read(job, pipeline))
                _write(job, progress.track(results, stream), stream, model)
        except KeyboardInterrupt:
            pass
    return _sum_up(job, screen, interrupts, pipeline, model)


def _should_stop(job: Job, interrupts: Interrupts) -> bool:
    if job.output is None and is_abandoned(sys.stdout):
        raise BrokenPipeError
    return interrupts.stop_requested()


def _count_rows(job: Job, screen: Screen) -> int | None:
    """Results to come, where somebody watches and it can be known."""
    rows = None if screen.quiet else count_rows(job.sources, job.limit)
    return rows and rows * job.sampling.num_samples


def _read(job: Job, pipeline: Pipeline) -> Iterator[Request]:
    requests = read_requests(job.sources, job.sampling, field=job.field, on_blank=pipeline.count_blank_line)
    return islice(requests, job.limit)


def _write(job: Job, results: Iterable[Result], stream: TextIO, model: Model) -> None:
    if job.form is opt.Format.table:
        console = OutputConsole(file=stream, highlight=False)
        ResultTable(console, model.checkpoint.pad_token_id, all_ids=job.ids).write(results)
    elif job.form is opt.Format.text:
        write_text(results, stream, escape=escape if stream.isatty() else str)
    else:
        write_jsonl(results, stream, ids=job.ids)


def ran_on(engine: str, device: torch.device) -> str:
    """`continuous on cpu (2 threads)`: torch chooses how many."""
    import torch

    threads = f" ({plural(torch.get_num_threads(), 'thread')})" if device.type == "cpu" else ""
    return f"{engine} on {device}{threads}"


def _sum_up(job: Job, screen: Screen, interrupts: Interrupts, pipeline: Pipeline, model: Model) -> int:
    """The closing lines on stderr; the exit code."""
    stats = pipeline.stats()
    is_exact = job.exact and model.dtype_name == "float32"
    dtype = model.dtype_name + ("" if is_exact else " (near ties not decided again)")
    line = summary(stats, model.checkpoint.name, ran_on(pipeline.engine.name, model.device), dtype)
    if interrupts.stop_requested():
        kept = kept_partial(job.output)
        screen.say("interrupted: " + line + (f"; finished rows are in {kept}" if kept else ""))
        return interrupts.exit_code
    screen.say(line)
    if job.output is not None and (speed := speed_of(stats)):
        write_speed(speed, model.checkpoint.name, str(model.device), model.dtype_name, pipeline.engine.name)
    if failed := pipeline.first_error:
        screen.error(f"{stats.errors} of {stats.rows} rows failed, the first with id {failed.id}: {failed.error}")
        return SOME_ROWS_FAILED
    return 0
