"""The table of a run: each row's padded ids, mask and continuation, drawn as results arrive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.box import Box
from rich.console import Console
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from batchgen.records import Result
from batchgen.render.grid import LABEL_WIDTH, GridLine, column_widths, elide, fold_grid
from batchgen.render.screen import plural
from batchgen.text import escape

# Number of rows drawn with ids and mask; later rows show only the continuation.
FULL_ROWS = 20
# Maximum number of columns; the middle of longer rows is left out.
FULL_COLUMNS = 16
PROMPT_TAIL = 160
SHORT_PROMPT_TAIL = 40
BOX_FIRST = Box("╭─┬╮\n│ ││\n├─┼┤\n│ ││\n├─┼┤\n├─┼┤\n│ ││\n╰─┴╯\n")
BOX_NEXT = Box("├─┼┤\n│ ││\n├─┼┤\n│ ││\n├─┼┤\n├─┼┤\n│ ││\n╰─┴╯\n")


class ResultTable:
    """A table that grows row by row as results arrive: each row's padded ids, mask and continuation."""

    def __init__(self, console: Console, pad_token_id: int, *, all_ids: bool = False) -> None:
        self.console = console
        self.pad_token_id = pad_token_id
        self.all_ids = all_ids
        self.num_rows = 0

    def write(self, results: Iterable[Result]) -> None:
        try:
            for result in results:
                self._draw(self._row(result), BOX_NEXT if self.num_rows else BOX_FIRST)
                self.num_rows += 1
        finally:
            if self.num_rows:
                self._draw_bottom()

    @property
    def _value_width(self) -> int:
        return max(20, self.console.width - LABEL_WIDTH - 7)

    def _row(self, result: Result) -> list[tuple[str, Text]]:
        label = escape("" if result.id is None else str(result.id)).replace("\n", " ")
        if self.num_rows >= FULL_ROWS and not self.all_ids:
            return [(label, _continuation(result, SHORT_PROMPT_TAIL, self._marker))]
        rows = [(label, Text(_counts(result), style="dim"))]
        if result.padded_length is not None:
            rows += self._grid(result)
        return [*rows, ("text", _continuation(result, PROMPT_TAIL, self._marker))]

    def _grid(self, result: Result) -> Iterator[tuple[str, Text]]:
        pads, real = result.num_pads, result.num_prompt_tokens
        styles = ["dim"] * pads + [""] * real
        ids = [self.pad_token_id] * pads + list(result.input_ids)
        lines = [
            elide(GridLine("input_ids", [str(i) for i in ids], styles), FULL_COLUMNS),
            elide(GridLine("attention_mask", ["0"] * pads + ["1"] * real, styles), FULL_COLUMNS),
        ]
        # At least as wide as the pad, so that the columns of all rows line up.
        widths = [max(width, len(str(self.pad_token_id))) for width in column_widths(lines)]
        return fold_grid(lines, widths, self._value_width)

    @property
    def _marker(self) -> str:
        """The mark for the end of the prompt, used if there are no colours."""
        return "" if self.console.color_system else "▸"

    def _draw(self, rows: list[tuple[str, Text]], box: Box) -> None:
        self.console.print(Segments(_joined(self._lines(rows, box)[:-1])), end="")
        self.console.file.flush()

    def _draw_bottom(self) -> None:
        self.console.print(Segments(_joined(self._lines([("", Text())], BOX_FIRST)[-1:])), end="")

    def _lines(self, rows: list[tuple[str, Text]], box: Box) -> list[list[Segment]]:
        table = Table(box=box, show_header=False, border_style="dim")
        table.add_column(width=LABEL_WIDTH, no_wrap=True, overflow="ellipsis", style="cyan")
        table.add_column(width=self._value_width, overflow="fold")
        for label, value in rows:
            table.add_row(Text(label), value)
        return self.console.render_lines(table, pad=False)


def _joined(lines: list[list[Segment]]) -> Iterator[Segment]:
    for line in lines:
        yield from line
        yield Segment.line()


def _counts(result: Result) -> str:
    if result.padded_length is None:
        return plural(result.num_prompt_tokens, "token")
    sample = f", sample {result.sample_index}" if result.sample_index else ""
    prompt = f"{plural(result.num_pads, 'pad')} + {plural(result.num_prompt_tokens, 'token')}"
    columns = plural(result.padded_length, "column")
    forced = f", {sum(end - start for start, end in result.forced)} characters forced" if result.forced else ""
    likely = "" if result.cumulative_logprob is None else f", logprob {result.cumulative_logprob:.3f}"
    return f"{prompt} = {columns}; {result.num_output_tokens} new ({result.finish_reason}){forced}{likely}{sample}"


def _continuation(result: Result, prompt_tail: int, marker: str) -> Text:
    prompt = _last_turn(result)
    text = Text(escape(prompt if len(prompt) <= prompt_tail else "…" + prompt[-prompt_tail:]))
    if result.error is not None:
        return text.append("  " if prompt else "").append(escape(f"error: {result.error}"), style="bold red")
    text.append(marker, style="dim")
    if result.reasoning:
        text.append(escape(_shortened(result.reasoning, prompt_tail)) + " ", style="dim italic")
    for start, end, style in _parts(result):
        text.append(escape(result.text[start:end]), style=style)
    return text


def _parts(result: Result) -> Iterator[tuple[int, int, str]]:
    """Yield the parts of the text with their styles: chosen by the model, or forced by its constraint."""
    chosen_from = 0
    for start, end in result.forced:
        yield chosen_from, start, "bold green"
        yield start, end, "dim green"
        chosen_from = end
    yield chosen_from, len(result.text), "bold green"


def _last_turn(result: Result) -> str:
    """Return the prompt, or the last message of a conversation, which the answer follows."""
    if not result.messages:
        return result.prompt
    message = result.messages[-1]
    content = message["content"]
    text = "".join(part["text"] for part in content) if isinstance(content, list) else content or ""
    return f"{message['role']}: {text} " if message["role"] != "assistant" else text


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"
