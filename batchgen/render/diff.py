"""The differences between two outputs: rows as they are found, then the counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from batchgen.proof.diff import Cause, Comparison, RowDifference
from batchgen.render.screen import plural, print_line, print_section
from batchgen.text import name_row, visible

BEFORE, AFTER = 24, 60  # characters shown before and after the first difference of two texts
LABEL_WIDTH = 14
SHOWN = 48  # maximum length of a cause's value


def print_difference(console: Console, row: RowDifference) -> None:
    """Print a row: where the two differ first, and how each continues."""
    sample = f", sample {row.sample_index}" if row.sample_index else ""
    print_line(console, f"{name_row(row.id)}{sample}: {_where(row)}", style="bold")
    for name, result in (("A", row.a), ("B", row.b)):
        if result.error is not None:
            print_line(console, f"  {name} failed: {result.error}")
        else:
            console.print(_around(name, result.text, row.character), soft_wrap=True)


def _where(row: RowDifference) -> str:
    places = []
    if row.token is not None:
        places.append(f"token {row.token}")
    if row.character is not None:
        places.append(f"character {row.character}")
    others = [part for part in row.parts if part not in ("text", "tokens")]
    if "finish_reason" in others:
        others[others.index("finish_reason")] = f"{row.a.finish_reason} / {row.b.finish_reason}"
    if "scores" in others:
        others[others.index("scores")] = f"scores differ by {row.score:.2g}"
    return ", ".join([f"first difference: {' = '.join(places)}"] * bool(places) + others)


def _around(name: str, text: str, place: int | None) -> Text:
    place = len(text) if place is None else place
    start = max(0, place - BEFORE)
    before = ("…" if start else "") + visible(text[start:place])
    after = visible(text[place : place + AFTER]) + ("…" if len(text) > place + AFTER else "")
    return Text.assemble(f"  {name} ", (before, "dim"), "▸", (after, "red" if name == "A" else "green"))


def print_comparison(console: Console, comparison: Comparison, causes: list[Cause], num_shown: int) -> None:
    """Print the counts over all rows."""
    if comparison.different > num_shown:
        print_line(console, f"… and {plural(comparison.different - num_shown, 'more row')} (--limit shows more)")
    print_section(console, headline(comparison), _lines(comparison, causes), LABEL_WIDTH)


def headline(comparison: Comparison) -> str:
    """Return how many rows differ, and how many are in only one output."""
    share = f" ({comparison.same / comparison.compared:.1%} the same)" if comparison.compared else ""
    return (
        f"{comparison.different:,} of {plural(comparison.compared, 'row')} differ{share}, "
        f"{comparison.only_in_a:,} only in A, {comparison.only_in_b:,} only in B"
    )


def _lines(comparison: Comparison, causes: list[Cause]) -> Iterator[tuple[str, str]]:
    for side, names, number in (
        ("only in A", comparison.named_in_a, comparison.only_in_a),
        ("only in B", comparison.named_in_b, comparison.only_in_b),
    ):
        if names:
            yield side, ", ".join(names) + (", …" if number > len(names) else "")
    if comparison.other_prompts:
        yield "prompts", f"{plural(comparison.other_prompts, 'row')} with different prompts"
    if comparison.first_tokens:
        yield "first token", ", ".join(f"{name}: {rows:,}" for name, rows in buckets(comparison.first_tokens))
    if comparison.tokens_a != comparison.tokens_b:
        yield "new tokens", f"{comparison.tokens_a:,} in A, {comparison.tokens_b:,} in B"
    changed = {pair: rows for pair, rows in comparison.finish_reasons.items() if pair[0] != pair[1]}
    if changed:
        yield "finish reason", ", ".join(f"{a} / {b}: {rows:,}" for (a, b), rows in sorted(changed.items()))
    if comparison.compared_scores:
        rows = plural(comparison.compared_scores, "row")
        yield "scores", f"of {rows}, by at most {comparison.largest_score:.2g}"
    for number, cause in enumerate(causes):
        yield "" if number else "likely cause", f"{cause.name} {_shown(cause.a)} / {_shown(cause.b)}"


def _shown(value: Any) -> str:
    text = "(none)" if value is None else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def buckets(tokens: Counter[int]) -> Iterable[tuple[str, int]]:
    """Group positions into ranges that double in width; yield each with its number of rows.

    >>> list(buckets(Counter({0: 2, 1: 1, 5: 1, 6: 3})))
    [('0', 2), ('1', 1), ('4-7', 4)]
    """
    counts: Counter[int] = Counter()
    for token, rows in tokens.items():
        counts[token.bit_length()] += rows
    for bits, rows in sorted(counts.items()):
        first, last = (1 << bits) >> 1, (1 << bits) - 1
        yield (str(first) if first == last else f"{first}-{last}"), rows
