"""Compare an engine's rows with the oracle: the logits of every step as the engine saw them, and its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import TYPE_CHECKING

from batchgen.engines import finish_all
from batchgen.proof.verify.facts import ErrorBound, RowCheck, Verdict
from batchgen.proof.verify.oracle import Oracle
from batchgen.records import Sequence

if TYPE_CHECKING:
    import torch

    from batchgen.engines import Engine


class LogitRecorder:
    """Keeps the logits that an engine decides from until each row is checked. Pass `on_logits` to the engine."""

    def __init__(self) -> None:
        self.most_rows = 0  # the most that ran together
        self._steps: dict[int, list[torch.Tensor]] = {}  # logits [V] of each step of a sequence, by its identity

    def on_logits(self, logits: torch.Tensor, sequences: Rows[Sequence]) -> None:
        """Copy the logits, because the engine overwrites them later. A row that starts over replaces its old steps."""
        kept = logits.float().cpu().clone()  # [B, V]
        self.most_rows = max(self.most_rows, len(sequences))
        for row, sequence in enumerate(sequences):
            steps = self._steps.setdefault(id(sequence), [])
            del steps[sequence.num_output_tokens :]
            steps.append(kept[row])

    def take(self, sequence: Sequence) -> list[torch.Tensor]:
        """Remove and return the logits of a finished sequence; empty if the engine reused another row's tokens."""
        return self._steps.pop(id(sequence), [])


def check_engine(
    engine: Engine, recorder: LogitRecorder, oracle: Oracle, sequences: Rows[Sequence], bound: ErrorBound
) -> Iterator[RowCheck]:
    """Run greedy sequences through an engine and check each one as it finishes; failed rows have no check.

    Works with any engine: if it does not report its logits to the recorder, only tokens are checked.
    """
    for sequence in finish_all(engine, sequences):
        steps = recorder.take(sequence)
        if sequence.finish_reason != "error":
            yield check_row(oracle, sequence, steps, bound)


def check_row(oracle: Oracle, sequence: Sequence, steps: Rows[torch.Tensor], bound: ErrorBound) -> RowCheck:
    """Compare a finished sequence, and the logits `[V]` of its steps if known, with the oracle.

    The oracle is given the sequence's own tokens, so every step is compared after the same tokens, even after one that
    differs.
    """
    expected = oracle.logits_of(sequence)[:-1]  # [N, V]
    differences = tuple(_difference(found, wanted) for found, wanted in zip(steps, expected, strict=False))
    departure = find_departure(expected, sequence.output_ids)
    return to_check(oracle, sequence, departure, bound, differences=differences, given=sequence.output_ids)


def to_check(
    oracle: Oracle,
    sequence: Sequence,
    departure: Departure | None,
    bound: ErrorBound,
    *,
    differences: tuple[float, ...] = (),
    given: Rows[int] = (),
) -> RowCheck:
    """The check of a row with its verdict; `given` are its tokens, if they are known."""
    tokenizer = oracle.model.checkpoint.codec
    row = RowCheck(
        id=sequence.request.id,
        index=sequence.request.index,
        prompt=sequence.request.prompt,
        verdict=verdict_of(departure, max(differences, default=0.0), bound),
        num_steps=sequence.num_output_tokens,
        num_pads=(sequence.padded_length or sequence.num_prompt_tokens) - sequence.num_prompt_tokens,
        differences=differences,
    )
    if departure is None:
        return row
    return replace(
        row,
        first_differing_step=departure.step,
        margin=departure.margin,
        token=tokenizer.decode([given[departure.step]]) if departure.step < len(given) else None,
        expected=tokenizer.decode([departure.expected]),
    )


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference between logits `[V]`; infinite if any is NaN or infinite."""
    difference: float = (found - expected).abs().max().item()
    return difference if isfinite(difference) else inf


@dataclass(frozen=True, slots=True)
class Departure:
    """The first step at which a row's token differs from the oracle's; `margin` is between the oracle's two best there.

    `expected` is the oracle's token. `worst` is the most that any step's token is below the oracle's best logit.
    """

    step: int
    margin: float
    expected: int
    worst: float


def find_departure(expected: torch.Tensor, token_ids: Rows[int]) -> Departure | None:
    """Find where a row's tokens depart from the greedy ones of the oracle's logits `[N, V]`; None if they never do."""
    import torch

    tokens = torch.tensor(token_ids)  # [N]
    top = expected.topk(2, dim=-1)
    behind = top.values[:, 0] - expected.gather(-1, tokens[:, None])[:, 0]  # [N]: 0 for the best, or a tie with it
    places = behind.nonzero()[:, 0].tolist()
    if not places:
        return None
    step = places[0]
    margin = (top.values[step, 0] - top.values[step, 1]).item()
    return Departure(step, margin, int(top.indices[step, 0]), behind.max().item())


def verdict_of(departure: Departure | None, difference: float, bound: ErrorBound) -> Verdict:
    """Decide whether rounding explains a row: logits are close, and tokens differ only where two logits were close."""
    if difference > bound.allowed or (departure and departure.worst > bound.allowed):
        return "bug"
    return "rounding" if departure else "identical"
