"""`batchgen inspect`: the batch as the model will see it."""

from __future__ import annotations

import sys
from itertools import islice
from typing import Annotated

import typer

from batchgen.cli import options as opt
from batchgen.cli.execute import SOME_ROWS_FAILED
from batchgen.inspector import Inspection, inspect_batch
from batchgen.model import open_checkpoint
from batchgen.readers import read_requests
from batchgen.render.batch import print_batch
from batchgen.render.screen import OutputConsole, Screen, plural
from batchgen.writers import to_json

DEFAULT_LIMIT = 16


def inspect(
    context: typer.Context,
    inputs: opt.Inputs = None,
    prompt: opt.Prompt = None,
    field: opt.Field = None,
    id_field: opt.IdField = None,
    template: opt.TemplateOption = None,
    template_file: opt.TemplateFile = None,
    input_format: opt.InputFormatOption = opt.InputFormat.auto,
    limit: opt.Limit = DEFAULT_LIMIT,
    parse_special: opt.ParseSpecial = False,
    model: opt.ModelName = None,
    revision: opt.Revision = None,
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Print the arrays as JSON.", rich_help_panel=opt.OUTPUT)
    ] = False,
    quiet: opt.Quiet = False,
) -> None:
    """Show prompts as one left-padded batch: tokens, ids, attention mask, positions.

    [bold]batchgen inspect prompts.txt[/]
    [bold]batchgen inspect -p "My dog is" -p "It will rain in the" --json[/]

    Loads the tokenizer, not the weights.
    """
    screen = Screen(quiet=quiet)
    reading = opt.read_options(field, id_field, template, template_file, input_format)
    requests = read_requests(opt.find_prompts(context, inputs, prompt, reading), options=reading)
    with screen.waiting("loading the tokenizer"):
        checkpoint = open_checkpoint(model, revision=revision, weights=False, say=screen.say)
    inspection = inspect_batch(checkpoint, islice(requests, limit), parse_special=parse_special)
    if as_json:
        print(to_json(inspection.to_dict()))
    else:
        _show(inspection)
    for failed in inspection.failed:
        screen.error(f"row {failed.request.id} is not in the batch: {failed.error}")
    raise typer.Exit(SOME_ROWS_FAILED if inspection.failed else 0)


def _show(inspection: Inspection) -> None:
    rows = inspection.rows
    columns = len(rows[0].input_ids) if rows else 0
    title = (
        f"{plural(len(rows), 'row')}, {plural(columns, 'column')}, padding {inspection.padding_share:.0%}, "
        f"pad = eos = {inspection.pad_token_id}, model {inspection.model}"
    )
    print_batch(OutputConsole(file=sys.stdout, highlight=False), title, rows)
