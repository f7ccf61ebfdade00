"""The screen of `verify`: the summary, differences as a histogram, negative controls, rows that differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from batchgen.render.plan import bar
from batchgen.render.screen import MIN_WIDTH, plural, print_line, print_section
from batchgen.text import short_number, visible

if TYPE_CHECKING:
    from batchgen.proof.verify.bit_check import BitCheck, Way
    from batchgen.proof.verify.cost import QuantizationCost
    from batchgen.proof.verify.facts import Control, Controls, DifferenceBin, RowCheck, ScoreCheck, VerifyReport

LABEL_WIDTH = 12
# At most this many rows that differ are listed, of others only the number; `--json` has all.
MOST_ROWS = 10
STYLES = {"identical": "green", "rounding": "yellow", "bug": "bold red"}
POSITIONS = {
    "rotary": "Rotary positions are relative",
    "alibi": "ALiBi's distances are relative",
}


def print_report(console: Console, report: VerifyReport) -> None:
    """Print everything on one screen of 80 columns, the summary first."""
    verdict = "bug" if report.has_bug else "rounding" if report.count("rounding") else "identical"
    print_line(console, report.summary, style=STYLES[verdict])
    print_line(console, f"model {report.model}, engine {report.engine}, {report.device}")
    if report.bits:
        print_section(console, *_bits(report.bits))
    if bins := report.histogram:
        _print_histogram(console, bins)
    if report.scores:
        _print_scores(console, report.scores)
    if report.cost:
        _print_cost(console, report.cost)
    print_section(console, "What counts as rounding", [("", _bound(report))], 0)
    _print_controls(console, report.controls)
    different = [row for row in report.rows if row.verdict != "identical"]
    if different:
        title = f"{plural(len(different), 'row')} {'differs' if len(different) == 1 else 'differ'}"
        print_section(console, title, _rows(different), 1)


def _print_scores(console: Console, scores: ScoreCheck) -> None:
    tokens = f"{plural(scores.num_tokens, 'token')} of {plural(scores.num_rows, 'row')}"
    found, allowed = short_number(scores.max_difference), short_number(scores.allowed)
    console.print(Text("Log-probabilities, scored in batches against alone", style="bold"))
    verdict = f"  {tokens} differ by up to {found} ({'more than the' if scores.has_bug else 'of'} allowed {allowed})"
    console.print(Text(verdict, style="bold red" if scores.has_bug else ""), soft_wrap=True)


def _bits(bits: BitCheck) -> tuple[str, list[tuple[str, str]], int]:
    """Return a section on the bits of a few rows that were shuffled and run in other ways."""
    title = f"Logits of {plural(bits.num_rows, 'row')} shuffled and run in other ways"
    ways = [(way.name, _way(way)) for way in bits.ways]
    if bits.has_bug:
        ways.append(("", "This is a bug: runs of this model say that a row's bits do not depend on its batch."))
    return title, ways, max(len(way.name) for way in bits.ways) + 1


def _way(way: Way) -> str:
    if not way.num_different:
        return "bit-identical"
    moved = "" if way.max_difference is None else f", by up to {short_number(way.max_difference)}"
    where = f"; {way.parting}" if way.parting else ""
    return f"{plural(way.num_different, 'row')} with other bits{moved}{where}"


def _print_histogram(console: Console, bins: list[DifferenceBin]) -> None:
    console.print(Text("Largest logit difference of each step, in the batch against alone", style="bold"))
    most = max(bin.steps for bin in bins)
    for bin in bins:
        text = Text.assemble(
            "  ", (_range(bin).ljust(LABEL_WIDTH), "cyan"), " ", bar(bin.steps / most), f" {bin.steps:,}"
        )
        console.print(text, soft_wrap=True)


def _range(bin: DifferenceBin) -> str:
    if bin.low == bin.high:
        return "exactly 0" if bin.low == 0 else "not finite"
    return f"{_power(bin.low)} - {_power(bin.high)}"


def _power(number: float) -> str:
    return f"{number:.0e}".replace("e-0", "e-").replace("e+0", "e")


def _bound(report: VerifyReport) -> str:
    measured, allowed = short_number(report.bound.measured), short_number(report.bound.allowed)
    oracle = "those of the row alone" if report.cost else "the float32 oracle"
    return (
        "Even without padding, the shape of a batch (copies side by side, token by token) moves "
        f"{report.precision} logits by up to {measured}. Logits that differ from {oracle} by more than {allowed} "
        "are a bug, and so is another token where no two logits are that close."
    )


def _print_cost(console: Console, cost: QuantizationCost) -> None:
    """Print what differs from float32, and where."""
    table = Table(box=None, padding=(0, 2, 0, 2), show_edge=False, pad_edge=True, show_header=False)
    table.add_column("", style="cyan")
    table.add_column("")
    for name, value in _cost_lines(cost):
        table.add_row(name, value)
    console.print(Text(f"What {cost.quantize} costs, against float32", style="bold"))
    console.print(table)


def _cost_lines(cost: QuantizationCost) -> Iterator[tuple[str, str]]:
    yield "greedy tokens equal", f"{cost.equal_share:.1%}, up to the first that differs"
    yield "rows equal", f"{cost.equal_rows:,} of {len(cost.rows):,}"
    first = sorted(row.first_difference for row in cost.rows if row.first_difference is not None)
    if first:
        yield "first difference", f"step {first[0]} at the earliest, {first[len(first) // 2]} in the middle"
    yield "logits move by", f"{short_number(cost.mean_difference)} in the mean"
    yield "KL divergence", f"{short_number(cost.divergence)} nats a token"
    if cost.perplexity and cost.quantized_perplexity:
        both = f"{cost.perplexity:,.2f} and {cost.quantized_perplexity:,.2f}"
        yield "perplexity", f"{both} of these texts ({cost.perplexity_change:+.1%})"


def _print_controls(console: Console, controls: Controls) -> None:
    rows = f"{plural(controls.num_rows, 'row')}, {controls.num_padded} with pads"
    verdict = ": all as expected" if all(control.is_as_expected for control in controls.controls) else ""
    console.print(Text(f"Deliberate mistakes on {rows}{verdict}", style="bold"))
    if controls.controls:
        console.print(_controls_table(controls))
    for style, line in _notes(controls):
        for part in Text(line, style=style).wrap(console, max(MIN_WIDTH, console.width - 2)):
            part.rstrip()
            console.print(Text("  ").append_text(part), soft_wrap=True)


def _controls_table(controls: Controls) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 2), show_edge=False, pad_edge=True, header_style="")
    table.add_column("", style="cyan")
    table.add_column("total\nvariation", justify="right")
    table.add_column("argmax\nflips", justify="right")
    table.add_column("logits\nmove by", justify="right")
    table.add_column("")
    for control in controls.controls:
        table.add_row(
            control.name,
            short_number(control.total_variation),
            f"{control.flips:.0%}",
            short_number(control.max_difference),
            Text(_outcome(control), style="green" if control.is_as_expected else "bold red"),
        )
    return table


def _outcome(control: Control) -> str:
    outcome = "changed" if control.broke else "unchanged"
    return outcome if control.is_as_expected else f"{outcome}, not expected"


def _notes(controls: Controls) -> Iterator[tuple[str, str]]:
    """Yield notes on the controls, as (style, line)."""
    if positions := _positions(controls):
        yield "", positions
    if not controls.num_padded:
        yield "bold red", "No row has pads: verify cannot detect mistakes on this input. Use rows of different lengths."
    elif not controls.can_see_mistakes:
        names = ", ".join(f"«{control.name}»" for control in controls.controls if not control.is_as_expected)
        yield "bold red", f"{names} did not come out as expected: verify cannot detect such mistakes on this input."


def _positions(controls: Controls) -> str:
    """Explain why a control with wrong positions is missing, or changes nothing."""
    if controls.positions not in POSITIONS or not controls.num_padded:
        return ""
    why = POSITIONS[controls.positions]
    moved = [control.max_difference for control in controls.controls if control.name == "without position ids"]
    if not moved:
        return f"{why}, and the model takes no position ids: there are none to omit."
    return f"{why}: without position ids, counting pads, logits move by only {short_number(moved[0])}."


def _rows(rows: list[RowCheck]) -> Iterator[tuple[str, str]]:
    for row in sorted(rows, key=lambda row: (row.verdict != "bug", row.index))[:MOST_ROWS]:
        yield "-", _row(row)
    if len(rows) > MOST_ROWS:
        yield "-", f"and {len(rows) - MOST_ROWS:,} more (--json has all)"


def _row(row: RowCheck) -> str:
    parts = [f"row {row.id}: {row.verdict}"]
    if row.first_differing_step is not None:
        token = "nothing" if row.token is None else visible(row.token)
        margin = "" if row.margin is None else f", margin {short_number(row.margin)}"
        expected = visible(row.expected or "")
        parts.append(f"step {row.first_differing_step} has {token} instead of {expected}{margin}")
    if row.max_difference is not None:
        parts.append(f"logits differ by up to {short_number(row.max_difference)}")
    return ", ".join(parts)
