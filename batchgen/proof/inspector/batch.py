"""Prompts as one left-padded batch: tokens, padded ids, mask, positions. Loads no weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from batchgen.model import Checkpoint
from batchgen.model.padding import encode, pad
from batchgen.records import Batch, Request, RowId, Sequence

HALF = "\ufffd"  # what decoding makes of bytes that are no whole character


@dataclass(frozen=True, slots=True)
class InspectedRow:
    """One row of the padded batch; every list has one entry for each of its T columns.

    `tokens` are the vocabulary's own names, `pieces` the text each token stands for.
    """

    id: RowId | None
    prompt: str
    tokens: list[str]
    pieces: list[str]
    input_ids: list[int]
    attention_mask: list[int]
    position_ids: list[int]
    is_eos: list[bool]

    @property
    def num_pads(self) -> int:
        return self.attention_mask.count(0)

    @property
    def labels(self) -> list[str]:
        """What a column is called: `pad`, or the text of its token; its name where it is only part of a character."""
        names = [name if HALF in piece else piece for name, piece in zip(self.tokens, self.pieces, strict=True)]
        return [name if real else "pad" for name, real in zip(names, self.attention_mask, strict=True)]


@dataclass(frozen=True, slots=True)
class Inspection:
    """Rows in input order as one left-padded batch, and the rows that cannot be in it.

    `batch` holds the same rows as tensors; None where there are none.
    """

    model: str
    pad_token_id: int
    rows: list[InspectedRow]
    failed: list[Sequence]
    batch: Batch | None

    @property
    def num_columns(self) -> int:
        return len(self.rows[0].input_ids) if self.rows else 0

    @property
    def padding_share(self) -> float:
        columns = sum(len(row.input_ids) for row in self.rows)
        return sum(row.num_pads for row in self.rows) / columns if columns else 0.0

    def to_dict(self) -> dict[str, Any]:
        names = ("id", "prompt", "tokens", "input_ids", "attention_mask", "position_ids")
        rows = [{name: getattr(row, name) for name in names} for row in self.rows]
        return {"model": self.model, "pad_token_id": self.pad_token_id, "rows": rows}


def inspect_batch(
    checkpoint: Checkpoint,
    requests: Iterable[Request],
    *,
    n_positions: int | None = None,
    parse_special: bool = False,
) -> Inspection:
    """Encodes and pads the requests as one batch, in their own order.

    With `n_positions`, for a batch that a model will run, rows that are too long for it fail.
    """
    sequences = encode(list(requests), checkpoint.tokenizer, n_positions=n_positions, parse_special=parse_special)
    failed = [sequence for sequence in sequences if sequence.is_finished]
    good = [sequence for sequence in sequences if not sequence.is_finished]
    batch = pad(good, checkpoint.pad_token_id) if good else None
    rows = _rows(checkpoint, batch) if batch else []
    return Inspection(checkpoint.name, checkpoint.pad_token_id, rows, failed, batch)


def _rows(checkpoint: Checkpoint, batch: Batch) -> list[InspectedRow]:
    tokenizer = checkpoint.tokenizer
    columns = zip(
        batch.sequences,
        batch.input_ids.tolist(),
        batch.attention_mask.tolist(),
        batch.position_ids.tolist(),
        strict=True,
    )
    return [
        InspectedRow(
            id=sequence.request.id,
            prompt=sequence.request.prompt,
            tokens=tokenizer.convert_ids_to_tokens(input_ids),
            pieces=[tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in input_ids],
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            is_eos=[i in checkpoint.eos_token_ids for i in input_ids],
        )
        for sequence, input_ids, attention_mask, position_ids in columns
    ]
