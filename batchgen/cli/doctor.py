"""`batchgen doctor`: what this machine and installation offer."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from batchgen.cli import options as opt
from batchgen.doctor import advise, diagnose
from batchgen.formats.fields import to_json
from batchgen.render.doctor import print_diagnosis
from batchgen.render.screen import OutputConsole, Screen


@opt.with_groups
def doctor(
    model: Annotated[opt.ModelOptions, opt.Pick("model", "revision", "device")],
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Print all facts as JSON.", rich_help_panel=opt.OUTPUT)
    ] = False,
) -> None:
    """Show what this machine offers: devices, fast dtypes, memory limits, cached models, versions.

    [bold]batchgen doctor[/]
    [bold]batchgen doctor --device cpu --json[/]
    [bold]batchgen doctor --model HuggingFaceTB/SmolLM2-135M-Instruct[/]

    With --model it also shows how that model runs, without loading its weights: its engine and why, which rows can
    share a batch, its KV cache, and what its chat template does.

    If something is wrong, it shows how to fix it.
    """
    with Screen(quiet=as_json).waiting("examining this machine"):
        diagnosis = diagnose(model.device, model.model, model.revision)
    advice = advise(diagnosis)
    if as_json:
        print(to_json(diagnosis.to_dict() | {"advice": advice}))
    else:
        print_diagnosis(OutputConsole(file=sys.stdout, highlight=False), diagnosis, advice)
