"""`batchgen run`: prompts to continuations."""

from __future__ import annotations

from pathlib import Path

import typer

from batchgen.cli import options as opt
from batchgen.cli.execute import Job, execute
from batchgen.cli.on_ray import OnRay, choose_ray_format, execute_on_ray, make_on_ray, refuse_with_ray
from batchgen.cli.output import Target, check_notes, check_stdout, check_target, choose_format
from batchgen.errors import UsageError
from batchgen.records import EngineOptions, SamplingParams
from batchgen.render.screen import Screen


@opt.with_groups
def run(
    context: typer.Context,
    prompts: opt.PromptOptions,
    model: opt.ManyDevices,
    sampling: SamplingParams,
    engine: EngineOptions,
    cluster: opt.ClusterOptions,
    results: opt.OutputOptions,
    durable: opt.DurableOptions,
    too_long: opt.TooLongPolicy = "error",
    quiet: opt.Quiet = False,
) -> None:
    """Continue every prompt with a language model.

    [bold]batchgen run prompts.txt[/]                      a table on the terminal
    [bold]batchgen run prompts.jsonl -o out.jsonl[/]       a file
    [bold]echo My dog is | batchgen run | jq .text[/]      a pipe
    """
    output = None if results.output == Path("-") else results.output
    reading = prompts.reading()
    on_ray = _cluster(cluster, prompts, engine, output, durable)
    if on_ray:
        _refuse_alone(prompts, durable)
        form, sources, target = choose_ray_format(results.format), [], None
    else:
        form = choose_format(results.format, output, ids=results.ids, csv_raw=results.csv_raw)
        sources = prompts.sources(context, reading)
        target = _target(output, form, durable)
        check_target(target, sources) if target else check_stdout(sources)
    check_notes({"--manifest": results.manifest, "--stats": results.stats}, target, sources)
    job = Job(
        sources=sources,
        sampling=sampling,
        reading=reading,
        limit=prompts.limit,
        parse_special=prompts.parse_special,
        too_long=too_long,
        strict=durable.strict,
        model=model.model,
        revision=model.revision,
        device=model.device,
        dtype=model.dtype,
        num_rows=engine.batch_size,
        memory=engine.memory,
        engine=engine.engine,
        workers=engine.workers,
        exact=engine.exact,
        share_prefixes=engine.share_prefixes,
        form=form,
        ids=results.ids,
        csv_raw=results.csv_raw,
        target=target,
        manifest=results.manifest,
        stats=results.stats,
    )
    screen = Screen(quiet=quiet)
    raise typer.Exit(execute_on_ray(job, on_ray, screen, context.obj) if on_ray else execute(job, screen, context.obj))


def _cluster(
    cluster: opt.ClusterOptions,
    prompts: opt.PromptOptions,
    engine: EngineOptions,
    output: Path | None,
    durable: opt.DurableOptions,
) -> OnRay | None:
    """What `--ray` asks for, where it is there."""
    cpus, gpus, part_rows = cluster.cpus_per_worker, cluster.gpus_per_worker, cluster.part_rows
    if cluster.ray is not None:
        return make_on_ray(
            cluster.ray,
            prompts.inputs or [],
            output,
            engine.workers,
            cpus,
            gpus,
            part_rows,
            durable.overwrite,
            durable.resume,
        )
    for flag, value in (("--cpus-per-worker", cpus), ("--gpus-per-worker", gpus), ("--part-rows", part_rows)):
        if value is not None:
            raise UsageError(f"{flag} is for --ray")
    return None


def _refuse_alone(prompts: opt.PromptOptions, durable: opt.DurableOptions) -> None:
    """What has no meaning on a cluster."""
    refuse_with_ray(
        {"--prompt": prompts.prompt, "--retry-errors": durable.retry_errors, "--keep-store": durable.keep_store}
    )


def _target(output: Path | None, form: opt.Format, durable: opt.DurableOptions) -> Target | None:
    resume = durable.resume or durable.retry_errors
    if durable.overwrite and resume:
        raise UsageError("--overwrite starts anew, --resume goes on: choose one")
    if output is None:
        if resume or durable.keep_store:
            flag = "--retry-errors" if durable.retry_errors else "--resume" if resume else "--keep-store"
            raise UsageError(f"{flag} needs a file: name it with -o")
        return None
    return Target(output, form, durable.overwrite, resume, durable.retry_errors, durable.keep_store)
