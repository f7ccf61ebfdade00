"""A run on a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from batchgen.cli.options.panels import CLUSTER


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Which cluster, and how much of it."""

    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run on Ray: HOST:PORT, auto (the cluster of this machine) or local; -o is a folder then.",
            rich_help_panel=CLUSTER,
            show_default=False,
        ),
    ] = None
    cpus_per_worker: Annotated[
        float | None,
        typer.Option(metavar="N", min=0.1, help="CPUs of a worker.", rich_help_panel=CLUSTER, show_default=False),
    ] = None
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            metavar="N", min=0, help="GPUs of a worker, or a part of one.", rich_help_panel=CLUSTER, show_default=False
        ),
    ] = None
    part_rows: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Rows of a part of the input, which is one output file (else 64 to 4,096).",
            rich_help_panel=CLUSTER,
            show_default=False,
        ),
    ] = None
