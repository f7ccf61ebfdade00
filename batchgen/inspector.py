"""Facts about the batch that a model will see: tokens, padded ids, mask, positions. Draws nothing, loads no weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from batchgen.model import Checkpoint
from batchgen.padding import encode, pad
from batchgen.records import Request, RowId, Sequence


@dataclass(frozen=True, slots=True)
class InspectedRow:
    """One row of the padded batch; every list has one entry for each of its T columns.

    `tokens` are the vocabulary's own names, `pieces` the text each token stands for.
    """

    id: RowId
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


@dataclass(frozen=True, slots=True)
class Inspection:
    """Rows in input order as one left-padded batch, and the rows that cannot be in it."""

    model: str
    pad_token_id: int
    rows: list[InspectedRow]
    failed: list[Sequence]

    @property
    def padding_share(self) -> float:
        columns = sum(len(row.input_ids) for row in self.rows)
        return sum(row.num_pads for row in self.rows) / columns if columns else 0.0

    def to_dict(self) -> dict[str, Any]:
        names = ("id", "prompt", "tokens", "input_ids", "attention_mask", "position_ids")
        rows = [{name: getattr(row, name) for name in names} for row in self.rows]
        return {"model": self.model, "pad_token_id": self.pad_token_id, "rows": rows}


def inspect_batch(checkpoint: Checkpoint, requests: Iterable[Request], *, parse_special: bool = False) -> Inspection:
    """Encodes and pads the requests as one batch, in their own order."""
    sequences = encode(list(requests), checkpoint.tokenizer, parse_special=parse_special)
    failed = [sequence for sequence in sequences if sequence.is_finished]
    good = [sequence for sequence in sequences if not sequence.is_finished]
    rows = _rows(checkpoint, good) if good else []
    return Inspection(checkpoint.name, checkpoint.pad_token_id, rows, failed)


def _rows(checkpoint: Checkpoint, sequences: list[Sequence]) -> list[InspectedRow]:
    batch = pad(sequences, checkpoint.pad_token_id)
    tokenizer = checkpoint.tokenizer
    columns = zip(
        sequences, batch.input_ids.tolist(), batch.attention_mask.tolist(), batch.position_ids.tolist(), strict=True
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
