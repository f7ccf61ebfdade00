"""`batchgen plan`: what `run` would do."""

from __future__ import annotations

import sys
from functools import partial
from itertools import count, islice
from typing import Annotated

import typer

from batchgen.cli import options as opt
from batchgen.engines import choose_engine
from batchgen.formats.reading import read_requests
from batchgen.formats.writing import to_json
from batchgen.machine.speeds import read_speed
from batchgen.model import open_checkpoint
from batchgen.planning.forecast import forecast, make_room
from batchgen.render.plan import print_forecast
from batchgen.render.screen import OutputConsole, Screen


def plan(
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
    device: opt.Device = "auto",
    dtype: opt.DtypeOption = opt.Dtype.auto,
    max_new_tokens: opt.MaxNewTokens = 50,
    min_new_tokens: opt.MinNewTokens = 0,
    too_long: opt.TooLong = opt.TooLongPolicy.error,
    temperature: opt.Temperature = 0.0,
    top_k: opt.TopK = 0,
    top_p: opt.TopP = 1.0,
    min_p: opt.MinP = 0.0,
    repetition_penalty: opt.RepetitionPenalty = 1.0,
    no_repeat_ngram_size: opt.NoRepeatNgramSize = 0,
    num_beams: opt.NumBeams = 1,
    num_samples: opt.NumSamples = 1,
    batch_size: opt.BatchSize = "auto",
    memory: opt.MemoryOption = None,
    engine: opt.EngineOption = opt.EngineName.auto,
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Print the plan as JSON.", rich_help_panel=opt.OUTPUT)
    ] = False,
    quiet: opt.Quiet = False,
) -> None:
    """Say what `run` would do with these prompts: batches, padding, memory, time.

    [bold]batchgen plan prompts.txt[/]
    [bold]batchgen plan prompts/ --max-new-tokens 200 --memory 6G --json[/]

    Takes the options of `run` that change the plan. Loads the tokenizer, not the weights.
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
    )
    screen = Screen(quiet=quiet)
    num_rows, bound = opt.parse_batch_size(batch_size), opt.parse_bound(memory)
    blank_lines = count()
    reading = opt.read_options(field, id_field, template, template_file, input_format)
    sources = opt.find_prompts(context, inputs, prompt, reading)
    requests = read_requests(sources, sampling, reading, on_blank=partial(next, blank_lines))
    with screen.waiting("planning"):
        checkpoint = open_checkpoint(model, revision=revision, weights=False, say=screen.say)
        room = make_room(checkpoint, device, dtype.value, num_rows=num_rows, memory=bound)
        engine_name, reason = choose_engine(engine.value, checkpoint.config, num_beams, room.limits.budget_bytes)
        if engine_name == "continuous":
            room = make_room(checkpoint, device, dtype.value, has_slots=True, num_rows=num_rows, memory=bound)
        plan = forecast(
            checkpoint, islice(requests, limit), room.limits, too_long=too_long.value, parse_special=parse_special
        )
    if reason and num_beams == 1:
        screen.say(f"engine reference, the slower one: {reason}")
    speed = read_speed(room.model, room.device, room.dtype, engine_name)
    if as_json:
        seconds = plan.seconds(speed) if speed else None
        print(to_json({**room.to_dict(), "blank_lines": next(blank_lines), **plan.to_dict(), "seconds": seconds}))
    else:
        print_forecast(OutputConsole(file=sys.stdout, highlight=False), plan, room, next(blank_lines), speed)
