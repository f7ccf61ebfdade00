"""`batchgen plan`: what `run` would do."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from itertools import count, islice
from typing import Annotated

import typer

from batchgen.cli import options as opt
from batchgen.engines.choice import KINDS, choose_engine
from batchgen.engines.int8.support import check_int8
from batchgen.engines.sampling.trying import check_constraint, check_rows
from batchgen.formats.fields import to_json
from batchgen.formats.reading import read_requests
from batchgen.machine.speeds import read_speed
from batchgen.model import open_checkpoint
from batchgen.model.chat import open_chat
from batchgen.planning.forecast import forecast
from batchgen.planning.room import make_room
from batchgen.records import EngineOptions, SamplingParams
from batchgen.render.plan import print_forecast
from batchgen.render.screen import OutputConsole, Screen


@opt.with_groups
def plan(
    context: typer.Context,
    prompts: opt.PromptOptions,
    chat: Annotated[opt.ChatFlags, opt.Pick(without=("split_reasoning",))],
    model: opt.ModelOptions,
    sampling: SamplingParams,
    engine: Annotated[EngineOptions, opt.Pick("engine", "batch_size", "memory", "quantize")],
    too_long: opt.TooLongPolicy = "error",
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Print the plan as JSON.", rich_help_panel=opt.OUTPUT)
    ] = False,
    quiet: opt.Quiet = False,
) -> None:
    """Show what `run` would do with these prompts: batches, padding, memory, time.

    [bold]batchgen plan prompts.txt[/]
    [bold]batchgen plan prompts/ --max-new-tokens 200 --memory 6G --json[/]

    Accepts the options of `run` for prompts, model, tokens and batches. Loads the tokenizer, not the weights.
    """
    screen, blank_lines = Screen(quiet=quiet), count()
    check_constraint(sampling)
    reading, chat_options = prompts.reading(), chat.options()
    sources = prompts.sources(context, reading, screen.say)
    requests = read_requests(sources, sampling, reading, on_blank=partial(next, blank_lines), say=screen.say)
    with screen.waiting("planning") as waiting:
        checkpoint = open_checkpoint(model.model, revision=model.revision, weights=False, say=screen.say)
        talk = open_chat(checkpoint, chat_options, say=screen.say)
        look = partial(make_room, checkpoint, model.device, model.dtype, options=engine)
        room = look(kind=KINDS["reference"])
        engine_name, reason = choose_engine(
            engine.engine, checkpoint.outline, sampling.num_beams, room.limits.budget_bytes
        )
        room = look(kind=KINDS[engine_name])
        check_int8(replace(engine, engine=engine_name), room.device, checkpoint.outline, sampling.num_beams)
        plan = forecast(
            checkpoint,
            check_rows(waiting.counted(islice(requests, prompts.limit), "planning")),
            room.limits,
            KINDS[engine_name],
            too_long=too_long,
            parse_special=prompts.parse_special,
            chat=talk,
        )
    if reason and sampling.num_beams == 1:
        screen.say(f"using engine reference, which is slower: {reason}")
    speed = read_speed(room.model, room.device, room.precision, engine_name)
    if as_json:
        seconds = plan.seconds(speed) if speed else None
        print(to_json({**room.to_dict(), "blank_lines": next(blank_lines), **plan.to_dict(), "seconds": seconds}))
    else:
        print_forecast(OutputConsole(file=sys.stdout, highlight=False), plan, room, next(blank_lines), speed)
