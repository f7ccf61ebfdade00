"""`batchgen inspect`: the batch as the model sees it, and its attention."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchgen.cli import options as opt
from batchgen.cli.exit_codes import SOME_ROWS_FAILED
from batchgen.cli.settings import came_from
from batchgen.engines.sampling.trying import check_rows
from batchgen.errors import InputError, UsageError
from batchgen.formats.fields import to_json
from batchgen.formats.reading import Source, read_requests
from batchgen.formats.whole import write_at
from batchgen.model import Checkpoint, Model, open_checkpoint, open_model
from batchgen.model.chat import open_chat
from batchgen.proof.inspector import Heads, Inspection, Masks, inspect_batch, inspect_masks, parse_heads
from batchgen.records import SamplingParams
from batchgen.render.attention import print_attention
from batchgen.render.batch import print_batch
from batchgen.render.masks import print_masks
from batchgen.render.screen import OutputConsole, Screen, plural, print_line
from batchgen.render.sides import print_sides
from batchgen.render.svg import to_svg
from batchgen.runs.checks import check_distinct, check_file
from batchgen.text import name_row

if TYPE_CHECKING:
    from rich.console import Console

    from batchgen.proof.inspector.attention import QueryAttention
    from batchgen.proof.inspector.sides import RowSides

DEFAULT_LIMIT = 16
VIEWS = "Views"
LAST = -1  # column


@dataclass(frozen=True, slots=True)
class ViewOptions:
    """What to show besides the batch."""

    mask: Annotated[
        bool,
        typer.Option(
            "--mask", metavar="", help="Draw the mask that is added to the attention scores.", rich_help_panel=VIEWS
        ),
    ] = False
    attention: Annotated[
        str | None,
        typer.Option(
            metavar="LAYER:HEAD",
            help="Show the attention weights of one query: 0:0, 0:mean or mean.",
            rich_help_panel=VIEWS,
        ),
    ] = None
    query: Annotated[
        int | None,
        typer.Option(
            metavar="COLUMN",
            help="Column of the query for --attention; -1 is the last one.",
            rich_help_panel=VIEWS,
            show_default="-1",
        ),
    ] = None
    compare_sides: Annotated[
        bool,
        typer.Option(
            "--compare-sides",
            metavar="",
            help="Generate with left and with right padding, and compare.",
            rich_help_panel=VIEWS,
        ),
    ] = False
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="New tokens per row for --compare-sides.", rich_help_panel=VIEWS)
    ] = 12

    @property
    def sampling(self) -> SamplingParams:
        """Greedy sampling, whatever a row's own options: this command is about padding and masks."""
        return SamplingParams(max_new_tokens=self.max_new_tokens if self.compare_sides else 1)

    def check(self, context: typer.Context) -> None:
        """Reject options that were typed but have no effect."""
        for name, flag, owner, is_given in (
            ("query", "--query", "--attention LAYER:HEAD", self.attention is not None),
            ("max_new_tokens", "--max-new-tokens", "--compare-sides", self.compare_sides),
        ):
            if came_from(context, name, "COMMANDLINE") and not is_given:
                raise UsageError(f"{flag} only works with {owner}: add it")


@dataclass(frozen=True, slots=True)
class DrawOptions:
    """Where the drawing goes: standard output or files."""

    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Print the arrays as JSON.", rich_help_panel=opt.OUTPUT)
    ] = False
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the drawing as SVG.", rich_help_panel=opt.OUTPUT)
    ] = None
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write an HTML page with the attention of all layers and heads.",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", metavar="", help="Replace FILE if it exists.", rich_help_panel=opt.OUTPUT)
    ] = False

    def check(self, sources: list[Source]) -> None:
        """Reject files that exist (without --overwrite), are inputs, or have no folder."""
        named = [(name, path) for name, path in (("svg", self.svg), ("html", self.html)) if path]
        for name, path in named:
            check_file(name, path, sources, overwrite=self.overwrite)
        check_distinct([], named)


@opt.with_groups
def inspect(
    context: typer.Context,
    prompts: Annotated[opt.PromptOptions, opt.Pick(without=("choices_field",), limit=DEFAULT_LIMIT)],
    chat: Annotated[opt.ChatFlags, opt.Pick(without=("split_reasoning",))],
    model: Annotated[opt.ModelOptions, opt.Pick(without=("dtype",))],
    views: ViewOptions,
    draw: DrawOptions,
    quiet: opt.Quiet = False,
) -> None:
    """Show prompts as one left-padded batch: tokens, ids, attention mask, positions.

    [bold]batchgen inspect prompts.txt --mask[/]
    [bold]batchgen inspect -p "My dog is" -p "It will rain in the" --attention 0:0[/]
    [bold]batchgen inspect prompts.txt --html page.html[/]

    --attention, --compare-sides and --html load the weights, in float32.
    """
    views.check(context)
    heads = parse_heads(views.attention) if views.attention is not None else None
    screen = Screen(quiet=quiet)
    reading, chat_options = prompts.reading(), chat.options()
    sources = prompts.sources(context, reading, screen.say)
    draw.check(sources)
    rows = islice(read_requests(sources, options=reading, say=screen.say), prompts.limit)
    needs_weights = heads is not None or views.compare_sides or draw.html is not None
    checkpoint, loaded = _open(model, screen, needs_weights=needs_weights)
    n_positions = checkpoint.n_positions if loaded else None
    inspection = inspect_batch(
        checkpoint,
        (replace(request, sampling=views.sampling) for request in check_rows(rows)),
        n_positions=n_positions,
        parse_special=prompts.parse_special,
        chat=open_chat(checkpoint, chat_options, say=screen.say),
    )
    with screen.waiting("looking"):
        seen = _look(checkpoint, loaded, inspection, heads, views)
        page = _page(loaded, inspection) if draw.html and loaded else None
    for file in _show(seen, draw, page):
        screen.say(f"wrote {file}")
    for failed in inspection.failed:
        screen.error(f"{name_row(failed.request.id)} is not in the batch: {failed.error}")
    raise typer.Exit(SOME_ROWS_FAILED if inspection.failed else 0)


def _open(model: opt.ModelOptions, screen: Screen, *, needs_weights: bool) -> tuple[Checkpoint, Model | None]:
    if not needs_weights:
        with screen.waiting("loading the tokenizer"):
            given = model.model
            return open_checkpoint(given, revision=model.revision, weights=False, runs=False, say=screen.say), None
    with screen.waiting("loading the model"):
        loaded = open_model(model.model, revision=model.revision, device=model.device, dtype="float32", say=screen.say)
    return loaded.checkpoint, loaded


def _show(views: Views, draw: DrawOptions, page: str | None) -> Iterator[Path]:
    """Draw the views; yield the files written."""
    if draw.as_json:
        print(to_json(views.to_dict()))
    elif not (draw.svg or draw.html):
        views.draw(OutputConsole(file=sys.stdout, highlight=False))
    if draw.svg:
        yield _write(draw.svg, to_svg(views.draw, "batchgen inspect"), draw)
    if draw.html and page:
        yield _write(draw.html, page, draw)


@dataclass(frozen=True, slots=True)
class Views:
    """The batch and the requested views."""

    inspection: Inspection
    heads: Heads | None
    masks: Masks | None = None
    attention: list[QueryAttention] | None = None
    sides: list[RowSides] | None = None

    def to_dict(self) -> dict[str, Any]:
        parts = self.inspection.to_dict()
        if self.masks:
            parts["mask"] = self.masks.to_dict()
        if self.attention is not None and self.heads:
            heads = {"layer": self.heads.layer, "head": self.heads.head}
            parts["attention"] = {**heads, "rows": [row.to_dict() for row in self.attention]}
        if self.sides is not None:
            parts["sides"] = [row.to_dict() for row in self.sides]
        return parts

    def draw(self, console: Console) -> None:
        """Print the requested views below the batch's title, or the batch itself if there are none."""
        print_line(console, _title(self.inspection), style="bold")
        if not (self.masks or self.attention is not None or self.sides is not None):
            print_batch(console, self.inspection.rows)
        if self.masks:
            print_masks(console, self.inspection.rows, self.masks)
        if self.attention is not None and self.heads:
            print_attention(console, self.inspection.rows, self.attention, self.heads)
        if self.sides is not None:
            print_sides(console, self.sides)


def _look(
    checkpoint: Checkpoint, model: Model | None, inspection: Inspection, heads: Heads | None, wanted: ViewOptions
) -> Views:
    if not inspection.rows:
        return Views(inspection, heads)
    masks = inspect_masks(checkpoint.config, inspection.batch) if wanted.mask and inspection.batch else None
    attention = sides = None
    if model and heads:
        from batchgen.proof.inspector.attention import inspect_attention

        attention = inspect_attention(model, inspection, heads, LAST if wanted.query is None else wanted.query)
    if model and wanted.compare_sides:
        from batchgen.proof.inspector.sides import compare_sides

        sides = compare_sides(model, inspection, wanted.max_new_tokens)
    return Views(inspection, heads, masks, attention, sides)


def _page(model: Model, inspection: Inspection) -> str:
    from batchgen.proof.inspector.whole import inspect_all
    from batchgen.proof.page import render_page

    if inspection.batch is None:
        raise InputError("--html: there are no rows to show")
    return render_page(inspection, *inspect_all(model, inspection))


def _write(path: Path, text: str, draw: DrawOptions) -> Path:
    write_at(path, text.encode(), overwrite=draw.overwrite)
    return path


def _title(inspection: Inspection) -> str:
    return (
        f"{plural(len(inspection.rows), 'row')}, {plural(inspection.num_columns, 'column')}, "
        f"padding {inspection.padding_share:.0%}, pad = eos = {inspection.pad_token_id}, model {inspection.model}"
    )
