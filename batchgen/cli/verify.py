"""`batchgen verify`: proves that batches change nothing."""

from __future__ import annotations

import sys
from functools import partial
from itertools import islice
from typing import Annotated

import typer

from batchgen.cli import options as opt
from batchgen.engines import make_engine
from batchgen.formats.reading import read_requests
from batchgen.formats.writing import to_json
from batchgen.model import open_model
from batchgen.proof.verify import Oracle, greedily, spread, verify_rows
from batchgen.records import SamplingParams
from batchgen.render.screen import OutputConsole, Screen, plural
from batchgen.render.verify import print_report

BUG_FOUND = 4


def verify(
    context: typer.Context,
    inputs: opt.Inputs = None,
    prompt: opt.Prompt = None,
    field: opt.Field = None,
    id_field: opt.IdField = None,
    template: opt.TemplateOption = None,
    template_file: opt.TemplateFile = None,
    input_format: opt.InputFormatOption = opt.InputFormat.auto,
    limit: opt.Limit = None,
    sample: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Check N rows, spread evenly over the input.", rich_help_panel=opt.INPUT),
    ] = None,
    parse_special: opt.ParseSpecial = False,
    model: opt.ModelName = None,
    revision: opt.Revision = None,
    device: opt.Device = "auto",
    dtype: opt.DtypeOption = opt.Dtype.auto,
    max_new_tokens: opt.MaxNewTokens = 16,
    batch_size: opt.BatchSize = "32",
    memory: opt.MemoryOption = None,
    engine: opt.EngineOption = opt.EngineName.auto,
    exact: opt.Exact = True,
    share_prefixes: opt.SharePrefixes = True,
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Print all of it as JSON.", rich_help_panel=opt.OUTPUT)
    ] = False,
    quiet: opt.Quiet = False,
) -> None:
    """Prove that a padded batch gives each prompt what it gets alone.

    [bold]batchgen verify prompts/[/]
    [bold]batchgen verify prompts.txt --sample 100 --dtype bfloat16 --json[/]

    Runs the rows greedily in batches, and holds every step against the row alone,
    unpadded, in float32. Mistakes made on purpose must break some rows, or verify
    says that it can see nothing here. The exit code is 4 if there is a bug.
    """
    screen = Screen(quiet=quiet)
    num_rows, bound = opt.parse_batch_size(batch_size), opt.parse_bound(memory)
    reading = opt.read_options(field, id_field, template, template_file, input_format)
    sources = opt.find_prompts(context, inputs, prompt, reading)
    sampling = SamplingParams(max_new_tokens=max_new_tokens)
    requests = list(islice(read_requests(sources, sampling, reading), limit))
    requests, num_changed = greedily(spread(requests, sample) if sample else requests, max_new_tokens)
    if num_changed:
        screen.say(f"{plural(num_changed, 'row')} with options of their own are verified greedily, without them")
    with screen.waiting("loading the model twice, for the engine and for the oracle"):
        runs = open_model(model, revision=revision, device=device, dtype=dtype.value, say=screen.say)
        oracle = Oracle(open_model(model, revision=revision, device=device, dtype="float32"))
    with screen.waiting("verifying"):
        make = partial(
            make_engine,
            runs,
            name=engine.value,
            num_rows=num_rows,
            exact=exact,
            share=share_prefixes,
            memory=bound,
            say=screen.say,
        )
        report, failed = verify_rows(
            runs, oracle, requests, lambda on_logits: make(on_logits=on_logits), parse_special=parse_special
        )
    if as_json:
        print(to_json(report.to_dict()))
    else:
        print_report(OutputConsole(file=sys.stdout, highlight=False), report)
    if failed:
        first = failed[0]
        screen.error(
            f"{plural(len(failed), 'row')} could not be run, the first with id {first.request.id}: {first.error}"
        )
    raise typer.Exit(BUG_FOUND if report.has_bug else 0)
