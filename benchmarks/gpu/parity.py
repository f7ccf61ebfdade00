"""Whether rows in a batch get what they get alone: logits of each engine's steps, tokens, and no NaN beside pads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from batchgen.model import Model
from batchgen.model.padding import pad
from batchgen.records import SamplingParams, Sequence
from benchmarks.gpu.models import ENGINES, engine_of, finish, generate, prompt, rows_of

NEW_TOKENS = 4
# Maximum difference of a row's logits from those of the row alone, relative to its largest logit; rounding is less.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2, torch.float16: 1e-2}
WATCHED = 6  # rows of a batch whose logits are also computed alone, at their first and last step


@dataclass(frozen=True, slots=True)
class Case:
    """A number of rows, whose prompts have these lengths in turn."""

    rows: int
    lengths: tuple[int, ...]

    @property
    def prompts(self) -> list[list[int]]:
        """Two different prompts of each length, alternating: rows that are swapped are noticed."""
        count = len(self.lengths)
        return [prompt(self.lengths[i % count], i // count % 2) for i in range(self.rows)]


LENGTHS = (2, 3, 17, 63, 64, 65, 127, 129, 500, 1023, 1025, 2047, 2049, 2100 - NEW_TOKENS)
CASES = (
    *(Case(1, (length,)) for length in (2, 65, 1025, 2100 - NEW_TOKENS)),
    *(Case(rows, LENGTHS) for rows in (2, 7, 32)),
    *(Case(rows, LENGTHS[:8]) for rows in (128, 512)),
)
TINY_CASES = (Case(1, (2,)), Case(1, (65,)), Case(7, (2, 17, 65, 3)))
WIDTHS = (2, 3, 8, 17, 64, 100, 129, 512, 1000, 2100)
TINY_WIDTHS = (2, 17, 65)


@dataclass(frozen=True, slots=True)
class Parity:
    """`difference` is the largest relative one of the watched rows; tokens are compared with unpadded `generate`."""

    model: str
    dtype: str
    engine: str
    rows: int
    longest: int
    difference: float
    tolerance: float
    equal_rows: int
    failed_rows: int

    @property
    def fault(self) -> str:
        where = f"{self.model} {self.dtype}, {self.engine}, {self.rows} rows to {self.longest} tokens"
        if self.failed_rows:
            return f"{where}: {self.failed_rows} rows failed"
        if not self.difference <= self.tolerance:
            return f"{where}: logits differ by {self.difference:.1e} of the largest, more than {self.tolerance:.0e}"
        if self.dtype == "float32" and self.equal_rows < self.rows:
            return f"{where}: {self.rows - self.equal_rows} rows have other tokens than generate"
        return ""


class _Watch:
    """Gets the logits of each step, and compares those of a few rows with what each row gets alone."""

    def __init__(self, model: Model, last_step: int) -> None:
        self.model = model
        self.steps = (0, last_step)
        self.difference = 0.0

    def __call__(self, logits: torch.Tensor, sequences: Iterable[Sequence]) -> None:
        rows = list(sequences)
        for row in range(0, len(rows), max(1, len(rows) // WATCHED)):
            if rows[row].num_output_tokens in self.steps:
                alone = self.model.logits_alone(rows[row]).float()
                apart = ((logits[row].float() - alone).abs().max() / alone.abs().max()).item()
                self.difference = max(self.difference, apart if apart == apart else float("inf"))


def parity(model: Model, cases: Iterable[Case]) -> list[Parity]:
    """Run each case through each engine."""
    told: dict[tuple[int, ...], list[int]] = {}
    found = []
    for case in cases:
        params = SamplingParams(max_new_tokens=NEW_TOKENS)
        for ids in case.prompts:
            if tuple(ids) not in told:
                [told[tuple(ids)]] = generate(model, rows_of([ids], params), NEW_TOKENS)
        for name in ENGINES:
            watch = _Watch(model, NEW_TOKENS - 1)
            rows = finish(engine_of(model, name, case.rows, on_logits=watch), rows_of(case.prompts, params))
            found.append(
                Parity(
                    model.checkpoint.name,
                    model.dtype_name,
                    name,
                    case.rows,
                    max(map(len, case.prompts)),
                    watch.difference,
                    TOLERANCE[model.dtype],
                    sum(row.output_ids == told[tuple(row.input_ids)] for row in rows),
                    sum(row.error is not None for row in rows),
                )
            )
    return found


@dataclass(frozen=True, slots=True)
class NotNumbers:
    """The number of left-padded rows whose logits were NaN or infinite, out of all that were tried."""

    model: str
    dtype: str
    tried: int
    broken: int
    widths: tuple[int, ...]  # where they were

    @property
    def fault(self) -> str:
        where = ", ".join(map(str, self.widths))
        return f"{self.model} {self.dtype}: NaN in {self.broken} padded rows, widths {where}" if self.broken else ""


@torch.inference_mode()
def not_numbers(model: Model, widths: Iterable[int]) -> NotNumbers:
    """Run rows of 1 token to the whole width, padded to it, in one plain forward per width."""
    tried, broken = 0, []
    for width in widths:
        lengths = sorted({1, 2, width // 4 or 1, width // 2 or 1, width - 1, width})
        batch = pad(rows_of((prompt(n) for n in lengths), SamplingParams()), model.checkpoint.pad_token_id)
        is_number = model.forward(batch)[:, -1].isfinite().all(-1).tolist()
        tried += len(lengths)
        broken += [width] * is_number.count(False)
    return NotNumbers(model.checkpoint.name, model.dtype_name, tried, len(broken), tuple(sorted(set(broken))))
