"""The options of `run --ray`."""

from __future__ import annotations

import re
from pathlib import Path

from batchgen.cli.options import ClusterOptions, DurableOptions, Format, PromptOptions
from batchgen.errors import UsageError
from batchgen.records import EngineOptions
from batchgen.runs.ray.execute import OnRay


def make_on_ray(
    cluster: ClusterOptions,
    prompts: PromptOptions,
    engine: EngineOptions,
    output: Path | None,
    durable: DurableOptions,
) -> OnRay | None:
    """Return the settings of `--ray` and its options, or None without `--ray`. Raises `UsageError`."""
    cpus, gpus, part_rows = cluster.cpus_per_worker, cluster.gpus_per_worker, cluster.part_rows
    if cluster.ray is None:
        for flag, value in (("--cpus-per-worker", cpus), ("--gpus-per-worker", gpus), ("--part-rows", part_rows)):
            if value is not None:
                raise UsageError(f"{flag} only works with --ray")
        return None
    if output is None:
        raise UsageError("--ray writes to a folder: name one with -o")
    if durable.overwrite and durable.resume:
        raise UsageError("--overwrite and --resume cannot be combined: choose one")
    return OnRay(
        address=cluster.ray,
        inputs=tuple(prompts.inputs or ()),
        output=re.sub(r"^([a-z0-9+]+:/)(?=[^/])", r"\1/", str(output)),  # Path reduces the two slashes of a URL to one
        limit=prompts.limit,
        workers=engine.workers,
        cpus=cpus,
        gpus=gpus,
        part_rows=part_rows,
        recursive=prompts.recursive,
        overwrite=durable.overwrite,
        resume=durable.resume,
    )


def choose_ray_format(asked: Format) -> Format:
    """Return the format for Ray: JSON Lines unless Parquet is asked for. Raises `UsageError` for any other."""
    if asked not in (Format.auto, Format.jsonl, Format.parquet):
        raise UsageError(f"--format {asked.value} is not supported with --ray: use jsonl or parquet")
    return Format.jsonl if asked is Format.auto else asked


def refuse_with_ray(prompts: PromptOptions, durable: DurableOptions) -> None:
    """Raise `UsageError` for options that are not supported on a cluster."""
    alone = {"--prompt": prompts.prompt, "--retry-errors": durable.retry_errors, "--keep-store": durable.keep_store}
    for flag, value in alone.items():
        if value:
            raise UsageError(f"{flag} is not supported with --ray: remove it")
