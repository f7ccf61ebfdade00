"""Negative controls: padding done wrong on purpose must break the batch; otherwise an unbroken batch proves nothing."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import TYPE_CHECKING, Literal, TypeVar

from batchgen.model.long_rope import of_one_side, short_limit
from batchgen.model.padding import pad
from batchgen.proof.mistakes import last_logits, pad_right, with_pad, without_mask, without_positions
from batchgen.proof.verify.facts import Control, Controls
from batchgen.proof.verify.oracle import Oracle
from batchgen.records import Sequence

if TYPE_CHECKING:
    import torch

    from batchgen.records import Batch

Item = TypeVar("Item")
Must = Literal["break", "hold", "may break"]

MOST_ROWS = 8
# A batch is broken if, on average over its padded rows, at least this share of the next token's probability has moved.
# Rounding moves about 1e-6.
BROKEN = 0.01


def pick_rows(sequences: Rows[Sequence], most: int = MOST_ROWS) -> list[Sequence]:
    """At most `most` rows of all lengths, from the shortest to the longest; always the same ones."""
    ordered = sorted(sequences, key=lambda sequence: (sequence.num_prompt_tokens, sequence.request.index))
    return spread(ordered, most)


def spread(items: Rows[Item], most: int) -> list[Item]:
    """At most `most` evenly spaced items, including the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)] if most > 1 else [items[-1]]


def run_controls(oracle: Oracle, sequences: Rows[Sequence]) -> Controls:
    """Compare the next token of a few rows in one batch, padded correctly and wrongly, with the same rows alone."""
    import torch

    checkpoint = oracle.model.checkpoint
    rows = pick_rows(of_one_side(sequences, short_limit(checkpoint.config)))
    batch = pad(rows, checkpoint.pad_token_id)
    padded = (batch.attention_mask == 0).any(-1)  # [B]
    alone = torch.cat([oracle.logits(row.input_ids, 1) for row in rows])[padded]  # [P, V]
    other_pad = (checkpoint.pad_token_id + 1) % checkpoint.vocab_size
    ways: list[tuple[str, Must, Batch]] = [
        ("as batchgen pads", "hold", batch),
        ("another pad token", "hold", with_pad(batch, other_pad)),
        ("without the mask", "break", without_mask(batch)),
        ("padded right", "break", pad_right(rows, checkpoint.pad_token_id)),
    ]
    if oracle.model.takes_position_ids:
        must: Must = "break" if checkpoint.position_kind == "absolute" else "may break"
        ways.append(("without position ids", must, without_positions(batch)))
    controls = [
        _control(name, must, last_logits(oracle.model, way)[padded], alone) for name, must, way in ways if len(alone)
    ]
    return Controls(len(rows), len(alone), checkpoint.position_kind, tuple(controls))


def _control(name: str, must: Must, found: torch.Tensor, alone: torch.Tensor) -> Control:
    """Compare next-token logits `[P, V]` of the padded rows with those of the rows alone."""
    moved = (found.softmax(-1) - alone.softmax(-1)).abs().sum(-1) / 2  # [P]
    variation = moved.mean().item()
    return Control(
        name=name,
        must=must,
        total_variation=variation,
        flips=(found.argmax(-1) != alone.argmax(-1)).float().mean().item(),
        max_difference=(found - alone).abs().max().item(),
        broke=variation >= BROKEN,
    )
