"""`batchgen demo`: padding and masks on three prompts, step by step."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from batchgen.cli import options as opt
from batchgen.model import open_model
from batchgen.proof.story import tell_story
from batchgen.render.screen import OutputConsole, Screen
from batchgen.render.story import print_step, story_steps

NEXT = """
Next, with your own prompts:

  batchgen run prompts.txt                        a table of continuations
  batchgen inspect prompts.txt --html page.html   all of this as a page
  batchgen verify prompts.txt                     proof that padding changes nothing
"""


def demo(
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="Folder, Hub id, or bundled.", rich_help_panel=opt.MODEL)
    ] = "bundled",
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, max=64, help="New tokens per row.", rich_help_panel=opt.LENGTH)
    ] = 8,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait/--no-wait",
            metavar="",
            help="On a terminal, wait for Enter after each step.",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = True,
) -> None:
    """Show on three prompts what padding and masks do, step by step.

    [bold]batchgen demo[/]              on the small model that comes with batchgen
    [bold]batchgen demo --model gpt2[/]

    It takes a minute. On a terminal, Enter shows the next step and Ctrl-C leaves.
    """
    screen = Screen()
    with screen.waiting("loading the model"):
        loaded = open_model(model, device="cpu", dtype="float32", say=screen.say)
    with screen.waiting("running three prompts"):
        steps = list(story_steps(tell_story(loaded, max_new_tokens)))
    console = OutputConsole(file=sys.stdout, highlight=False)
    waits = wait and console.is_terminal and sys.stdin.isatty()
    for number, step in enumerate(steps, 1):
        print_step(console, number, len(steps), step)
        if waits and number < len(steps):
            console.input("\n[dim]Enter for the next step[/] ")
    console.print(NEXT, soft_wrap=True)
