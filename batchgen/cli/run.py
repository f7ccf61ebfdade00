"""`batchgen run`: prompts to continuations."""

from __future__ import annotations

from pathlib import Path

import typer

from batchgen.cli import options as opt
from batchgen.cli.execute import Job, execute
from batchgen.cli.on_ray import OnRay, choose_ray_format, execute_on_ray, make_on_ray, refuse_with_ray
from batchgen.cli.output import Target, check_notes, check_stdout, check_target, choose_format
from batchgen.errors import UsageError
from batchgen.render.screen import Screen


def run(
    context: typer.Context,
    inputs: opt.Inputs = None,
    prompt: opt.Prompt = None,
    field: opt.Field = None,
    id_field: opt.IdField = None,
    template: opt.TemplateOption = None,
    template_file: opt.TemplateFile = None,
    input_format: opt.InputFormatOption = opt.InputFormat.auto,
    limit: opt.Limit = None,
    parse_special: opt.ParseSpecial = False,
    model: opt.ModelName = None,
    revision: opt.Revision = None,
    device: opt.Devices = "auto",
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
    workers: opt.Workers = None,
    ray: opt.Ray = None,
    cpus_per_worker: opt.CpusPerWorker = None,
    gpus_per_worker: opt.GpusPerWorker = None,
    part_rows: opt.PartRows = None,
    exact: opt.Exact = True,
    share_prefixes: opt.SharePrefixes = True,
    format: opt.FormatOption = opt.Format.auto,
    ids: opt.Ids = False,
    csv_raw: opt.CsvRaw = False,
    output: opt.OutputFile = None,
    manifest: opt.ManifestFile = None,
    stats: opt.StatsFile = None,
    overwrite: opt.Overwrite = False,
    resume: opt.Resume = False,
    retry_errors: opt.RetryErrors = False,
    keep_store: opt.KeepStore = False,
    strict: opt.Strict = False,
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
    reading = opt.read_options(field, id_field, template, template_file, input_format)
    cluster = _cluster(ray, inputs, output, workers, cpus_per_worker, gpus_per_worker, part_rows, overwrite, resume)
    if cluster:
        refuse_with_ray({"--prompt": prompt, "--retry-errors": retry_errors, "--keep-store": keep_store})
        form, sources, target = choose_ray_format(format), [], None
    else:
        form = choose_format(format, output, ids=ids, csv_raw=csv_raw)
        sources = opt.find_prompts(context, inputs, prompt, reading)
        target = _target(output, form, overwrite, resume or retry_errors, retry_errors, keep_store)
        check_target(target, sources) if target else check_stdout(sources)
    check_notes({"--manifest": manifest, "--stats": stats}, target, sources)
    job = Job(
        sources=sources,
        sampling=sampling,
        reading=reading,
        limit=limit,
        parse_special=parse_special,
        too_long=too_long.value,
        strict=strict,
        model=model,
        revision=revision,
        device=device,
        dtype=dtype.value,
        num_rows=opt.parse_batch_size(batch_size),
        memory=opt.parse_bound(memory),
        engine=engine.value,
        workers=workers,
        exact=exact,
        share_prefixes=share_prefixes,
        form=form,
        ids=ids,
        csv_raw=csv_raw,
        target=target,
        manifest=manifest,
        stats=stats,
    )
    screen = Screen(quiet=quiet)
    raise typer.Exit(
        execute_on_ray(job, cluster, screen, context.obj) if cluster else execute(job, screen, context.obj)
    )


def _cluster(
    address: str | None,
    inputs: list[str] | None,
    output: Path | None,
    workers: int | None,
    cpus: float | None,
    gpus: float | None,
    part_rows: int | None,
    overwrite: bool,
    resume: bool,
) -> OnRay | None:
    """What `--ray` asks for, where it is there."""
    if address is not None:
        return make_on_ray(address, inputs or [], output, workers, cpus, gpus, part_rows, overwrite, resume)
    for flag, value in (("--cpus-per-worker", cpus), ("--gpus-per-worker", gpus), ("--part-rows", part_rows)):
        if value is not None:
            raise UsageError(f"{flag} is for --ray")
    return None


def _target(
    output: Path | None, form: opt.Format, overwrite: bool, resume: bool, retry_errors: bool, keep_store: bool
) -> Target | None:
    if overwrite and resume:
        raise UsageError("--overwrite starts anew, --resume goes on: choose one")
    if output is None:
        if resume or keep_store:
            flag = "--retry-errors" if retry_errors else "--resume" if resume else "--keep-store"
            raise UsageError(f"{flag} needs a file: name it with -o")
        return None
    return Target(output, form, overwrite, resume, retry_errors, keep_store)
