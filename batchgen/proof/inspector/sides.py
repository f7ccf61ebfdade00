"""Why padding goes on the left: the same rows padded on either side, what predicts the next token, and the text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from batchgen.model import Model
from batchgen.model.stops import decode_output
from batchgen.proof.inspector.batch import Inspection
from batchgen.proof.mistakes import generate_as_is, logits_at, pad_right
from batchgen.records import Batch, RowId


@dataclass(frozen=True, slots=True)
class Side:
    """A row padded on one side: the column that the next token is read from, its token, and the output."""

    column: int
    reads: str
    is_pad: bool
    next_token: str
    text: str


@dataclass(frozen=True, slots=True)
class RowSides:
    """A row padded on the left and on the right; `own_column` is the column of its last token if padded right.

    `own_next_token` is what that column predicts.
    """

    id: RowId | None
    prompt: str
    left: Side
    right: Side
    own_column: int
    own_next_token: str

    def to_dict(self) -> dict[str, Any]:
        sides = {
            name: {field: getattr(side, field) for field in ("column", "reads", "is_pad", "next_token", "text")}
            for name, side in (("left", self.left), ("right", self.right))
        }
        own = {"own_column": self.own_column, "own_next_token": self.own_next_token}
        return {"id": self.id, "prompt": self.prompt, **sides, **own}


def compare_sides(model: Model, inspection: Inspection, max_new_tokens: int) -> list[RowSides]:
    """Run the batch padded left and padded right, with correct mask and positions both times.

    `generate` reads the logits of the last column: padded right, that is padding in every row but the longest.
    """
    assert inspection.batch is not None
    left = inspection.batch
    right = pad_right(left.sequences, model.checkpoint.pad_token_id)
    last = inspection.num_columns - 1
    own_columns = [sequence.num_prompt_tokens - 1 for sequence in left.sequences]
    left_next = logits_at(model, left, [last]).argmax(-1)  # [B, 1]
    right_next = logits_at(model, right, [last, *own_columns]).argmax(-1)  # [B, 1 + B]
    lefts = _sides(model, left, left_next[:, 0].tolist(), max_new_tokens)
    rights = _sides(model, right, right_next[:, 0].tolist(), max_new_tokens)
    return [
        RowSides(
            id=sequence.request.id,
            prompt=sequence.request.prompt,
            left=lefts[row],
            right=rights[row],
            own_column=own_columns[row],
            own_next_token=_piece(model, int(right_next[row, 1 + row])),
        )
        for row, sequence in enumerate(left.sequences)
    ]


def _sides(model: Model, batch: Batch, next_tokens: list[int], max_new_tokens: int) -> list[Side]:
    generated = generate_as_is(model, batch, max_new_tokens)
    last = batch.input_ids.shape[1] - 1
    is_pad = (batch.attention_mask[:, last] == 0).tolist()
    return [
        Side(
            column=last,
            reads="pad" if is_pad[row] else _piece(model, int(batch.input_ids[row, last])),
            is_pad=is_pad[row],
            next_token=_piece(model, next_tokens[row]),
            text=decode_output(model.checkpoint.codec, replace(sequence, output_ids=generated[row])),
        )
        for row, sequence in enumerate(batch.sequences)
    ]


def _piece(model: Model, token_id: int) -> str:
    return str(model.checkpoint.codec.decode([token_id], clean_up_tokenization_spaces=False))
