"""Which rows may share a batch, so that each gets the same result as alone, however a model treats pads and neighbours.

Most models take rows of any length, padded with eos. If a trial (`engines.trial`) shows otherwise, slower ways are
tried.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum

from batchgen.model.long_rope import crosses, is_long
from batchgen.records import Sequence


class Mixing(StrEnum):
    """How different the rows of a batch may be, from the fastest way to the slowest."""

    padded = "padded"
    own_pad = "padded with the model's own pad"
    equal_lengths = "only rows of the same length together"
    alone = "one row at a time"


LENGTHS = {
    Mixing.padded: "any lengths",
    Mixing.own_pad: "any lengths, the model's own pad",
    Mixing.equal_lengths: "equal lengths only",
    Mixing.alone: "one row at a time",
}


@dataclass(frozen=True, slots=True)
class BatchRule:
    """How batches are formed: `pad_token_id` fills them, and only rows with equal keys share one.

    `short_limit` is the length where rotary factors change that depend on the longest row of a batch (LongRoPE): rows
    below and above it never share a batch, and a row that crosses it as it grows only shares one with rows that cross
    it at the same step.
    """

    mixing: Mixing
    pad_token_id: int
    short_limit: int | None = None

    def key(self, row: Sequence) -> Hashable:
        """Return a key that is equal for rows that may share a batch."""
        if self.mixing is Mixing.alone:
            return id(row)
        length = len(row.token_ids)
        by_length = length if self.mixing is Mixing.equal_lengths else None
        crossing = length if crosses(row, self.short_limit) else None
        return by_length, is_long(row, self.short_limit), crossing

    @property
    def lengths(self) -> str:
        """Which rows share a batch, in a few words."""
        return LENGTHS[self.mixing] + (", short and long rows apart" if self.short_limit else "")
