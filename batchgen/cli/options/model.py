"""Which model, on which device, in which dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from batchgen.cli.options.completion import complete_model
from batchgen.cli.options.panels import MODEL

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """A model and where it runs."""

    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Folder, Hub id, or bundled. Default: gpt2 if it is cached or can be downloaded, otherwise bundled.",
            rich_help_panel=MODEL,
            autocompletion=complete_model,
        ),
    ] = None
    revision: Annotated[
        str | None,
        typer.Option(metavar="REV", help="Branch, tag or commit of the model on the Hub.", rich_help_panel=MODEL),
    ] = None
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps.", rich_help_panel=MODEL)
    ] = "auto"
    dtype: Annotated[
        Dtype,
        typer.Option(
            help="auto: float32 on the CPU; on an accelerator, the dtype of the stored weights.", rich_help_panel=MODEL
        ),
    ] = "auto"


@dataclass(frozen=True, slots=True)
class ManyDevices(ModelOptions):
    """A model that can run on several devices."""

    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICES",
            help="auto (all CUDA devices), cpu, cuda:1, mps, or several: cuda:0,cuda:1.",
            rich_help_panel=MODEL,
        ),
    ] = "auto"
