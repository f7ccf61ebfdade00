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
            help="Run on Ray: HOST:PORT, auto (this machine's cluster) or local. -o is then a folder.",
            rich_help_panel=CLUSTER,
            show_default=False,
        ),
    ] = None
    cpus_per_worker: Annotated[
        float | None,
        typer.Option(metavar="N", min=0.1, help="CPUs per worker.", rich_help_panel=CLUSTER, show_default=False),
    ] = None
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            metavar="N", min=0, help="GPUs per worker; can be a fraction.", rich_help_panel=CLUSTER, show_default=False
        ),
    ] = None
    part_rows: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Rows per part; each part of the input becomes one output file. Default: 64 to 4,096.",
            rich_help_panel=CLUSTER,
            show_default=False,
        ),
    ] = None
