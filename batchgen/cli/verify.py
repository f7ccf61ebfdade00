"""`batchgen verify`: prove that batching does not change a row's tokens."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Annotated

import typer

from batchgen.cli import options as opt
from batchgen.cli.exit_codes import DIFFERENT
from batchgen.engines import make_engine, make_scoring_engine, quantized
from batchgen.engines.int8.support import check_int8
from batchgen.formats.fields import to_json
from batchgen.formats.reading import read_requests
from batchgen.model import Model, load_model, open_checkpoint
from batchgen.model.chat import open_chat
from batchgen.model.weights import choose_device
from batchgen.proof.verify import Oracle, Plain, greedily, spread, verify_rows
from batchgen.proof.verify.layers import MakeEngine
from batchgen.records import EngineOptions, SamplingParams, Sequence
from batchgen.render.screen import OutputConsole, Screen, plural
from batchgen.render.verify import print_report
from batchgen.text import with_id


@opt.with_groups
def verify(
    context: typer.Context,
    prompts: Annotated[opt.PromptOptions, opt.Pick(without=("choices_field",))],
    chat: Annotated[opt.ChatFlags, opt.Pick(without=("split_reasoning",))],
    model: opt.ModelOptions,
    sampling: Annotated[SamplingParams, opt.Pick("max_new_tokens", max_new_tokens=16)],
    engine: Annotated[EngineOptions, opt.Pick(without=("workers",), batch_size=32)],
    sample: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Check N rows, evenly spread over the input.", rich_help_panel=opt.INPUT),
    ] = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Prove that each prompt gets the same tokens in a padded batch as alone.

    [bold]batchgen verify prompts/[/]
    [bold]batchgen verify prompts.txt --sample 100 --dtype bfloat16 --json[/]

    Runs the rows greedily in batches, and compares every step with the row alone,
    unpadded, in float32; then their scores. It also makes deliberate mistakes, which must change some rows;
    if none does, it says that this input proves nothing. The exit code is 4 if it finds a bug.
    With --quantize the row alone is quantised too, and the report says what that costs.
    """
    screen = Screen(quiet=quiet)
    reading, chat_options = prompts.reading(), chat.options()
    sources = prompts.sources(context, reading, screen.say)
    requests = list(islice(read_requests(sources, sampling, reading, say=screen.say), prompts.limit))
    requests, num_changed = greedily(spread(requests, sample) if sample else requests, sampling.max_new_tokens)
    if num_changed:
        screen.say(f"{plural(num_changed, 'row')} with their own options are verified greedily, without those options")
    with screen.waiting("loading the model"):
        runs, oracle = _load(model, engine, screen)
    with screen.waiting("verifying"):
        sides = _sides(runs, oracle, engine, screen)
        report, failed = verify_rows(
            runs,
            sides.oracle,
            requests,
            _maker(runs, engine, screen.say),
            others=_other_ways(runs, engine),
            alone=_maker(runs, replace(engine, batch_size=1, share_prefixes=False)),
            parse_special=prompts.parse_special,
            chat=open_chat(runs.checkpoint, chat_options, say=screen.say),
            scorer=make_scoring_engine(runs, engine, say=screen.say),
            plain=sides.plain,
        )
    if as_json:
        print(to_json(report.to_dict()))
    else:
        print_report(OutputConsole(file=sys.stdout, highlight=False), report)
    if failed:
        _tell_failed(screen, failed)
    raise typer.Exit(DIFFERENT if report.has_bug else 0)


def _tell_failed(screen: Screen, failed: list[Sequence]) -> None:
    first = failed[0]
    screen.error(f"{plural(len(failed), 'row')} could not be run, the first{with_id(first.request.id)}: {first.error}")


def _other_ways(model: Model, options: EngineOptions) -> dict[str, MakeEngine]:
    return {
        "shuffled": _maker(model, options),
        "one at a time": _maker(model, replace(options, batch_size=1)),
        "three at a time": _maker(model, replace(options, batch_size=3)),
        "without shared prefixes": _maker(model, replace(options, share_prefixes=False)),
    }


def _maker(model: Model, options: EngineOptions, say: Callable[[str], None] = lambda line: None) -> MakeEngine:
    """Return a function that makes engines for the same rows; each message about the engine is shown only once."""
    said: set[str] = set()

    def say_once(line: str) -> None:
        if line not in said:
            said.add(line)
            say(line)

    return lambda on_logits: make_engine(model, options, on_logits=on_logits, say=say_once)


def _load(model: opt.ModelOptions, engine: EngineOptions, screen: Screen) -> tuple[Model, Oracle]:
    """Load the model to run and the float32 oracle."""
    checkpoint = open_checkpoint(model.model, revision=model.revision, say=screen.say)
    check_int8(engine, choose_device(model.device).type, checkpoint.outline)
    runs = load_model(checkpoint, model.device, model.dtype, engine.memory)
    is_float32 = runs.dtype_name == "float32"
    return runs, Oracle(runs if is_float32 else load_model(checkpoint, model.device, "float32"))


@dataclass(frozen=True, slots=True)
class _Sides:
    """What rows are compared with and, with `--quantize`, what they would be without it."""

    oracle: Oracle
    plain: Plain | None = None


def _sides(runs: Model, oracle: Oracle, engine: EngineOptions, screen: Screen) -> _Sides:
    if engine.quantize is None:
        return _Sides(oracle)
    without = partial(make_engine, oracle.model, replace(engine, quantize=None), say=screen.say)
    return _Sides(Oracle(quantized(runs, engine), engine.quantize), Plain(oracle, without))
