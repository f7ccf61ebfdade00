"""An HTML page of results, or of the differences of two outputs: one file, no network, and text never becomes markup.

The template, style sheet and script are next to this file. Rows are embedded as data, and the script draws a few at a
time, so that even ten thousand rows scroll smoothly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import batchgen
from batchgen.proof.answers_page.scores import score_row
from batchgen.proof.diff import RowDifference
from batchgen.proof.page import source_hash
from batchgen.records import Result
from batchgen.text import cell_value, escape

FOLDER = Path(__file__).parent
Json = dict[str, Any]


def render_results(results: Iterable[Result], title: str, facts: Mapping[str, object], *, left_out: int = 0) -> str:
    """Render the page of an output's rows, with `facts` above them; it says that `left_out` rows are not shown."""
    rows = [{**_row(result), "answers": [_answer(result)]} for result in results]
    return _render(rows, title, facts, ["answer"], left_out)


def render_differences(
    differences: Iterable[RowDifference], title: str, facts: Mapping[str, object], *, left_out: int = 0
) -> str:
    """Render the page of the rows that differ between two outputs, side by side, with the first difference marked."""
    rows = [
        {**_row(row.a), "answers": [_answer(row.a), _answer(row.b)], "place": _place(row), "token": row.token}
        for row in differences
    ]
    return _render(rows, title, facts, ["A", "B"], left_out)


def render_scores(results: Iterable[Result], title: str, facts: Mapping[str, object], *, left_out: int = 0) -> str:
    """Render the page of scored rows: tokens are coloured by surprise and show their alternatives."""
    return _render(list(map(score_row, results)), title, facts, ["text"], left_out, is_scored=True)


def _place(row: RowDifference) -> int | None:
    """The position of the first difference in the text as it is written on the page."""
    return None if row.character is None else len(escape(row.a.text[: row.character]))


def _render(
    rows: list[Json],
    title: str,
    facts: Mapping[str, object],
    names: list[str],
    left_out: int,
    *,
    is_scored: bool = False,
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    jinja = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined)
    style, script = (Markup((FOLDER / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    columns = list(dict.fromkeys(name for row in rows for name in row["metadata"]))
    return jinja.get_template("page.html.j2").render(
        title=escape(title),
        facts={name: escape(str(value)) for name, value in facts.items()},
        data={"rows": rows, "names": names, "columns": columns},
        num_rows=len(rows),
        is_scored=is_scored,
        left_out=left_out,
        columns=columns,
        style=style,
        script=script,
        style_hash=source_hash(style),
        script_hash=source_hash(script),
        version=batchgen.__version__,
    )


def _row(result: Result) -> Json:
    """A row's prompt and its other facts, without the answers."""
    row: Json = {
        "id": escape(str(result.index if result.id is None else result.id)),
        "sample": result.sample_index,
        "prompt": escape(result.prompt),
        "metadata": {escape(name): cell_value(value) for name, value in result.metadata.items()},
    }
    if result.messages:
        row["turns"] = [[escape(str(turn.get("role"))), cell_value(turn.get("content"))] for turn in result.messages]
    if result.input_ids:
        row |= {"inputIds": list(result.input_ids), "pads": result.num_pads}
    return row


def _answer(result: Result) -> Json:
    answer: Json = {"text": escape(result.text), "reason": result.finish_reason, "tokens": result.num_output_tokens}
    if result.error is not None:
        answer["error"] = escape(result.error)
    if result.reasoning:
        answer["reasoning"] = escape(result.reasoning)
    if result.output_ids:
        answer["ids"] = list(result.output_ids)
    if result.logprobs:
        pieces = zip(result.logprobs.tokens, result.logprobs.token_logprobs, strict=True)
        answer["pieces"] = [[escape(piece), round(logprob, 3)] for piece, logprob in pieces]
    if result.cumulative_logprob is not None:
        answer["score"] = round(result.cumulative_logprob, 3)
    return answer
