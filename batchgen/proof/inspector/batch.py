"""Prompts as one left-padded batch: tokens, padded ids, mask, positions. Does not load weights."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

from batchgen.model import Checkpoint
from batchgen.model.chat import Chat
from batchgen.model.chat.spans import Part, token_parts
from batchgen.model.padding import encode, pad
from batchgen.records import Batch, Request, RowId, Sequence

HALF = "\ufffd"  # what bytes of an incomplete character decode to


@dataclass(frozen=True, slots=True)
class InspectedRow:
    """One row of the padded batch; every list has one entry for each of its T columns.

    `tokens` are the vocabulary's own names, `pieces` the text of each token. For a conversation, `parts` says whether a
    token belongs to the template, a role or a content; all rows of the batch begin with the same `num_shared` tokens.
    """

    id: RowId | None
    prompt: str
    tokens: list[str]
    pieces: list[str]
    input_ids: list[int]
    attention_mask: list[int]
    position_ids: list[int]
    is_eos: list[bool]
    parts: list[Part | None]
    num_shared: int = 0

    @property
    def num_pads(self) -> int:
        return self.attention_mask.count(0)

    @property
    def labels(self) -> list[str]:
        """The label of each column: `pad`, the token's text, or its vocabulary name if it is part of a character."""
        names = [name if HALF in piece else piece for name, piece in zip(self.tokens, self.pieces, strict=True)]
        return [name if real else "pad" for name, real in zip(names, self.attention_mask, strict=True)]


@dataclass(frozen=True)
class Inspection:
    """Rows in input order as one left-padded batch, and the rows that could not be included."""

    model: str
    pad_token_id: int
    rows: list[InspectedRow]
    failed: list[Sequence]
    sequences: list[Sequence]

    @cached_property
    def batch(self) -> Batch | None:
        """The same rows as tensors; None if there are no rows."""
        return pad(self.sequences, self.pad_token_id) if self.sequences else None

    @property
    def num_columns(self) -> int:
        return len(self.rows[0].input_ids) if self.rows else 0

    @property
    def padding_share(self) -> float:
        columns = sum(len(row.input_ids) for row in self.rows)
        return sum(row.num_pads for row in self.rows) / columns if columns else 0.0

    def to_dict(self) -> dict[str, Any]:
        names = ["id", "prompt", "tokens", "input_ids", "attention_mask", "position_ids"]
        if any(part for row in self.rows for part in row.parts):
            names += ["parts", "num_shared"]
        rows = [{name: getattr(row, name) for name in names} for row in self.rows]
        return {"model": self.model, "pad_token_id": self.pad_token_id, "rows": rows}


def inspect_batch(
    checkpoint: Checkpoint,
    requests: Iterable[Request],
    *,
    n_positions: int | None = None,
    parse_special: bool = False,
    chat: Chat | None = None,
) -> Inspection:
    """Encode and pad the requests as one batch, in input order.

    With `n_positions`, which is set if a model will run the batch, rows that are too long fail.
    """
    sequences = encode(
        list(requests), checkpoint.codec, n_positions=n_positions, parse_special=parse_special, chat=chat
    )
    failed = [sequence for sequence in sequences if sequence.is_finished]
    good = [sequence for sequence in sequences if not sequence.is_finished]
    return Inspection(checkpoint.name, checkpoint.pad_token_id, _rows(checkpoint, good, chat), failed, good)


def _rows(checkpoint: Checkpoint, sequences: list[Sequence], chat: Chat | None) -> list[InspectedRow]:
    width = max((sequence.num_prompt_tokens for sequence in sequences), default=0)
    num_shared = _num_shared(sequences)
    return [_row(checkpoint, sequence, width, chat, num_shared) for sequence in sequences]


def _row(checkpoint: Checkpoint, sequence: Sequence, width: int, chat: Chat | None, num_shared: int) -> InspectedRow:
    """The same as `pad` for one row, without tensors."""
    length = sequence.num_prompt_tokens
    num_pads = width - length
    input_ids = [checkpoint.pad_token_id] * num_pads + sequence.input_ids
    return InspectedRow(
        id=sequence.request.id,
        prompt=sequence.request.prompt,
        tokens=checkpoint.codec.convert_ids_to_tokens(input_ids),
        pieces=[checkpoint.codec.decode([i], clean_up_tokenization_spaces=False) for i in input_ids],
        input_ids=input_ids,
        attention_mask=[0] * num_pads + [1] * length,
        position_ids=[0] * num_pads + list(range(length)),
        is_eos=[i in checkpoint.eos_token_ids for i in input_ids],
        parts=_parts(sequence, width, chat),
        num_shared=num_shared,
    )


def _parts(sequence: Sequence, num_columns: int, chat: Chat | None) -> list[Part | None]:
    """The part that each column of a conversation belongs to; None for padding and plain prompts."""
    conversation = sequence.request.conversation
    if not conversation or not chat:
        return [None] * num_columns
    parts = token_parts(chat, sequence.request.prompt, sequence.input_ids, conversation)
    return [*[None] * (num_columns - len(parts)), *parts]


def _num_shared(sequences: Rows[Sequence]) -> int:
    """The number of leading tokens that all conversations share; 0 for a single row, or if any is a plain prompt."""
    if len(sequences) < 2 or not all(sequence.request.conversation for sequence in sequences):
        return 0
    same = takewhile(lambda ids: len(set(ids)) == 1, zip(*(sequence.input_ids for sequence in sequences), strict=False))
    return sum(1 for _ in same)
