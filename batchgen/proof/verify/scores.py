"""Compare the scores of padded rows with those of each row alone."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from math import inf, isfinite
from typing import TYPE_CHECKING

from batchgen.engines import finish_all
from batchgen.proof.verify.facts import ErrorBound, ScoreCheck
from batchgen.proof.verify.oracle import Oracle
from batchgen.records import Passage, Request, Sequence
from batchgen.records.scores import TOKEN_MARGIN

if TYPE_CHECKING:
    from batchgen.engines import Engine

MOST_TOKENS = 128  # last tokens of a row: each needs a row of the oracle's logits


def check_scores(
    engine: Engine, oracle: Oracle, sequences: Rows[Sequence], bound: ErrorBound, dtype: str
) -> ScoreCheck:
    """Score rows (prompts with their generated tokens) in `engine`'s batches and each alone, and compare.

    In float32, a token's log-probability may differ by 1e-4, or by twice what rounding does without padding; in other
    precisions, by twice what is allowed for logits.
    """
    rows = [_scored_row(sequence) for sequence in sequences if len(sequence.token_ids) > 1]
    allowed = max(TOKEN_MARGIN, 2 * bound.measured if dtype == "float32" else 2 * bound.allowed)
    num_rows = num_tokens = 0
    largest = 0.0
    for row in finish_all(engine, rows):
        if row.error is None:
            num_rows += 1
            num_tokens += len(row.passages[0].scored)
            largest = max(largest, _difference(oracle, row))
    engine.close()
    return ScoreCheck(num_rows, num_tokens, largest, allowed)


def _scored_row(sequence: Sequence) -> Sequence:
    tokens = tuple(sequence.token_ids)
    passage = Passage(tokens, max(1, len(tokens) - MOST_TOKENS))
    request = Request(sequence.request.index, sequence.request.id, sequence.request.prompt, scored="text")
    return Sequence(request, 0, list(passage.fed), passages=(passage,))


def _difference(oracle: Oracle, row: Sequence) -> float:
    """The largest difference of a token's log-probability; infinite if any is NaN or infinite."""
    import torch

    [passage] = row.passages
    scored = torch.tensor(passage.scored)[:, None]  # [N, 1]
    logprobs = oracle.logits(list(passage.fed), len(passage.scored)).log_softmax(-1)  # [N, V]
    found = torch.tensor([entry.logprob for entry in row.scores[0]])
    difference: float = (logprobs.gather(-1, scored)[:, 0] - found).abs().max().item()
    return difference if isfinite(difference) else inf
