"""An engine's rows against the oracle: logits of every step as the engine saw them, tokens as it gave them."""

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
    """Keeps what an engine decides from, row by row, until the row is checked. Give `on_logits` to the engine."""

    def __init__(self) -> None:
        self.most_rows = 0  # that ran together
        self._steps: dict[int, list[torch.Tensor]] = {}  # logits [V] of each step of a sequence, by its identity

    def on_logits(self, logits: torch.Tensor, sequences: Rows[Sequence]) -> None:
        """Copies them, since the engine goes on to overwrite them. A row that starts again replaces what it had."""
        kept = logits.float().cpu().clone()  # [B, V]
        self.most_rows = max(self.most_rows, len(sequences))
        for row, sequence in enumerate(sequences):
            steps = self._steps.setdefault(id(sequence), [])
            del steps[sequence.num_output_tokens :]
            steps.append(kept[row])

    def take(self, sequence: Sequence) -> list[torch.Tensor]:
        """The logits of a finished sequence's steps; none where the engine answered it with another one's tokens."""
        return self._steps.pop(id(sequence), [])


def check_engine(
    engine: Engine, recorder: LogitRecorder, oracle: Oracle, sequences: Rows[Sequence], bound: ErrorBound
) -> Iterator[RowCheck]:
    """Runs greedy sequences through an engine and checks each as it is finished; those that fail have no check.

    The engine may be any: without a recorder that it tells its logits, tokens alone are checked.
    """
    for sequence in finish_all(engine, sequences):
        steps = recorder.take(sequence)
        if sequence.finish_reason != "error":
            yield check_row(oracle, sequence, steps, bound)


def check_row(oracle: Oracle, sequence: Sequence, steps: Rows[torch.Tensor], bound: ErrorBound) -> RowCheck:
    """A finished sequence, with the logits `[V]` of its steps where they are known, against the oracle.

    The oracle is fed the sequence's own tokens, so every step is compared after the same ones, also behind a token
    that differs.
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
    """What was found of a row, with its verdict; `given` are its tokens, where it came as tokens."""
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
    """The largest difference of two logits `[V]`; infinite where one is not a number."""
    difference: float = (found - expected).abs().max().item()
    return difference if isfinite(difference) else inf


@dataclass(frozen=True, slots=True)
class Departure:
    """The first step at which a row's token is not the oracle's, the margin of the oracle's two best there, its token.

    `worst` is how far below the oracle's best the row's token lies, at the step where that is most.
    """

    step: int
    margin: float
    expected: int
    worst: float


def find_departure(expected: torch.Tensor, token_ids: Rows[int]) -> Departure | None:
    """Where a row's tokens leave the greedy ones of the oracle's logits `[N, V]`; None where they never do."""
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
    """What rounding explains is no bug: logits that lie close, and another token only where two were that close."""
    if difference > bound.allowed or (departure and departure.worst > bound.allowed):
        return "bug"
    return "rounding" if departure else "identical"
