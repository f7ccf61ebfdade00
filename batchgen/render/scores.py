"""Scores for display: the sums of all rows, a table of groups, and texts with tokens coloured by surprise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from batchgen.records import Result, ScoredText
from batchgen.render.screen import plural
from batchgen.runs.sums import ScoreSums
from batchgen.text import escape, whole_pieces

# Upper limits of a token's bits, from its log-probability, and its colour: from plain to red.
HEAT = ((1.0, ""), (3.0, "yellow"), (6.0, "dark_orange"), (10.0, "red"), (float("inf"), "bold white on red"))
BITS = 1.4426950408889634  # 1 / ln 2
# Sums of a group: their names in `--stats`, and their table headings.
TEXT_COLUMNS = {"scored_tokens": "tokens", "token_perplexity": "perplexity", "bits_per_byte": "bits/byte"}
CHOICE_COLUMNS = {
    "num_answered": "rows",
    "accuracy": "accuracy",
    "accuracy_per_token": "per token",
    "accuracy_per_byte": "per byte",
}


def sums_line(facts: Mapping[str, Any]) -> str:
    """Return the sums as one line."""
    parts = []
    if "token_perplexity" in facts:
        token, word, byte = (facts[f"{unit}_perplexity"] for unit in ("token", "word", "byte"))
        parts.append(f"perplexity {token:.4g} per token, {word:.4g} per word, {byte:.4g} per byte")
        parts.append(f"{facts['bits_per_byte']:.4g} bits per byte")
    if "accuracy" in facts:
        by_sum, token, byte = (facts[name] for name in ("accuracy", "accuracy_per_token", "accuracy_per_byte"))
        rows = plural(facts["num_answered"], "row")
        parts.append(f"accuracy {by_sum:.2%} (per token {token:.2%}, per byte {byte:.2%}) of {rows}")
    return ", ".join(parts)


def left_out_lines(sums: ScoreSums) -> Iterator[str]:
    """Yield lines on rows that some of the sums leave out."""
    if sums.unknown_answers:
        rows = f"{plural(sums.unknown_answers, 'row')} (the first: {sums.unknown_at})"
        yield f"{rows} without accuracy: the answer is neither one of the choices nor the place of one, from 0"
    if sums.num_ungrouped:
        yield f"{plural(sums.num_ungrouped, 'row')} in no group: --by sums up {sums.most_groups:,} values at most"


def print_groups(console: Console, column: str, facts: Mapping[str, Any]) -> None:
    """Print a table of each group's sums."""
    groups: Mapping[str, Mapping[str, Any]] = facts.get("by", {})
    has_texts = any("token_perplexity" in group for group in groups.values())
    has_choices = any("accuracy" in group for group in groups.values())
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(escape(column), overflow="fold")
    names = (TEXT_COLUMNS if has_texts else {}) | (CHOICE_COLUMNS if has_choices else {})
    for title in names.values():
        table.add_column(title, justify="right", no_wrap=True)
    for name, group in groups.items():
        table.add_row(Text(escape(name)), *(_number(group.get(fact)) for fact in names))
    console.print(table)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def print_score(console: Console, result: Result) -> None:
    """Print a row with its numbers, its text coloured by token."""
    name = f"row {result.index if result.id is None else result.id}"
    if result.error is not None or result.score is None:
        console.print(Text.assemble((f"{escape(name)}  ", "cyan"), (escape(f"error: {result.error}"), "bold red")))
        return
    score = result.score
    console.print(Text.assemble((f"{escape(name)}  ", "cyan"), (escape(result.prompt[-160:]), "dim")))
    for place, text in enumerate(score.texts):
        mark = "*" if score.kind == "choices" and place == score.best else " "
        tie = "  tie" if mark == "*" and score.is_tie else ""
        console.print(Text.assemble(f"{mark} ", (_numbers(text) + tie, "dim"), "  ", heat(text)))


def _numbers(text: ScoredText) -> str:
    each = f"{text.logprob:.3f} in {plural(text.num_tokens, 'token')}, {text.per_token:.3f} each"
    return f"{each}, perplexity {text.perplexity:.4g}"


def heat(text: ScoredText) -> Text:
    """Return the text with each token in the colour of its surprise."""
    if text.logprobs is None:
        return Text(escape(text.text))
    pieces = whole_pieces(text.text, text.logprobs.tokens)
    found = ((piece, sum(text.logprobs.token_logprobs[start:end])) for piece, start, end in pieces)
    return Text.assemble(*((escape(piece), colour_of(logprob)) for piece, logprob in found))


def colour_of(logprob: float) -> str:
    """Return the style of a token with this log-probability.

    >>> [colour_of(logprob) for logprob in (-0.1, -1.0, -20.0)]
    ['', 'yellow', 'bold white on red']
    """
    return next(style for bits, style in HEAT if -logprob * BITS <= bits)
