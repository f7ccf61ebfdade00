"""The steps of `batchgen demo`: a title, a few sentences, and a drawing of the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from batchgen.proof.story import HEADS
from batchgen.render.attention import print_attention
from batchgen.render.batch import print_batch
from batchgen.render.screen import print_line
from batchgen.text import escape, visible

if TYPE_CHECKING:
    from batchgen.proof.inspector.sides import RowSides
    from batchgen.proof.story import Story

WIDTH = 76  # of sentences, however wide the terminal

ALONE = """
A language model continues a text: it predicts the next token, appends it, and predicts again. Running one prompt at a
time works, but it is slow: each call reads every weight of the model.
"""
PADDED = """
A call takes a rectangle of token ids, but these prompts have {lengths} tokens. So the shorter rows are filled with
pads. They go on the left, because the model continues a row at its right end. Any token would do as a pad; batchgen
uses the end-of-sequence token, {pad}. The attention mask marks real tokens (1) and pads (0), and the positions count
real tokens only.
"""
MASKED = """
Attention decides how much each token looks at the others. Before the softmax, the score of every pad is replaced by
{least}, the lowest number of float32. Its exponential is 0, so a pad gets no weight at all. The last two columns show
what would happen without the mask.
"""
RIGHT = """
The next token is predicted from the last column. With pads on the right, that column is a pad in every row except the
longest, and the model continues the pad.
"""
INFINITY = """
Minus infinity instead of the lowest number gives every real token the same weights. The two differ for a query that
sees only pads, as the pads' own queries do: with minus infinity, each weight is {infinite}; with the lowest number,
each of the {columns} columns gets {uniform:.3g}. No token reads the result, but NaN would spread from there, because 0
times NaN is NaN.
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One screen of the story."""

    title: str
    text: str
    draw: Callable[[Console], None]


def story_steps(story: Story) -> Iterator[Step]:
    """Yield the steps in order; each text explains what its drawing shows."""
    rows = story.inspection.rows
    yield Step("One prompt at a time", ALONE, lambda console: _print_rows(console, [(rows[0].prompt, story.alone)]))
    yield Step("Three prompts in one call", _on_pads(story), lambda console: print_batch(console, rows))
    yield Step(
        "What the model does with the mask",
        MASKED.format(least=f"{story.masks.least:.2e}"),
        lambda console: print_attention(console, [story.row], [story.attention], HEADS),
    )
    pairs = [(row.prompt, text) for row, text in zip(rows, story.together, strict=True)]
    outcome = "The first is the one that it got alone."
    if story.together[0] != story.alone:
        outcome = "The first is not the one that it got alone: `batchgen verify` says why."
    yield Step(
        "What comes out", f"One call, three continuations. {outcome}", lambda console: _print_rows(console, pairs)
    )
    yield Step("Why not on the right", RIGHT, lambda console: _print_sides(console, story.sides))
    yield Step("Minus infinity?", _on_infinity(story), lambda console: None)


def print_step(console: Console, number: int, of: int, step: Step) -> None:
    """Print a step under its title."""
    console.print()
    console.print(Text(f"{number}/{of}  {step.title}", style="bold cyan"))
    for line in Text(" ".join(step.text.split())).wrap(console, min(WIDTH, console.width)):
        line.rstrip()
        console.print(line, soft_wrap=True)
    step.draw(console)


def _print_rows(console: Console, rows: Iterable[tuple[str, str]]) -> None:
    console.print()
    for prompt, text in rows:
        _print_continuation(console, prompt, text)


def _print_continuation(console: Console, prompt: str, text: str) -> None:
    one_line = escape(text).replace("\n", " ")
    console.print(Text.assemble("  ", prompt, ("▸", "cyan"), (one_line, "green")), soft_wrap=True)


def _print_sides(console: Console, rows: list[RowSides]) -> None:
    for row in rows:
        console.print()
        for name, side in (("left", row.left), ("right", row.right)):
            read = "a pad" if side.is_pad else visible(side.reads)
            print_line(console, f"pads on the {name}, the last column is {read}", style="dim")
            _print_continuation(console, row.prompt, side.text)


def _on_pads(story: Story) -> str:
    *most, last = [row.attention_mask.count(1) for row in story.inspection.rows]
    return PADDED.format(lengths=f"{', '.join(map(str, most))} and {last}", pad=story.inspection.pad_token_id)


def _on_infinity(story: Story) -> str:
    blind, columns = story.masks.fully_masked, story.inspection.num_columns
    infinite = "0/0, not a number" if blind.weight_with_infinity is None else f"{blind.weight_with_infinity:.3g}"
    return INFINITY.format(infinite=infinite, columns=columns, uniform=blind.weight_with_least)
