"""Which rows may share a batch, so that each gets what it gets alone, whatever a model makes of pads and neighbours.

Most models take rows of any length, padded with eos. What a trial finds otherwise (`engines.trial`) goes down a ladder.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from batchgen.records import Sequence

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Mixing(StrEnum):
    """How unlike the rows of a batch may be, from the fastest way to the slowest."""

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
    """How batches are made: `pad_token_id` fills them, and rows share one only where their keys are equal.

    `short_limit` is where rotary factors change that depend on the longest row of a batch (LongRoPE): rows on its two
    sides never meet, and a row that crosses it as it grows meets only rows that cross it with it.
    """

    mixing: Mixing
    pad_token_id: int
    short_limit: int | None = None

    def key(self, row: Sequence) -> Hashable:
        """What rows of one batch have in common."""
        if self.mixing is Mixing.alone:
            return id(row)
        length = len(row.token_ids)
        by_length = length if self.mixing is Mixing.equal_lengths else None
        return by_length, length if self.crosses(row) else self._is_long(row)

    @property
    def lengths(self) -> str:
        """Which rows share a batch, in a few words."""
        return LENGTHS[self.mixing] + (", short and long rows apart" if self.short_limit else "")

    def crosses(self, row: Sequence) -> bool:
        """Whether a row may grow over the limit: a forward of the whole row is then not what its steps computed."""
        if self.short_limit is None:
            return False
        return not self._is_long(row) and row.num_prompt_tokens + row.sampling.max_new_tokens - 1 > self.short_limit

    def _is_long(self, row: Sequence) -> bool:
        return self.short_limit is not None and row.num_prompt_tokens > self.short_limit


def short_limit(config: PretrainedConfig) -> int | None:
    """How many tokens a row may have before LongRoPE takes its other factors; None where a model has none.

    Rows beside it do not matter to other ways of scaling: their factors are fixed up to the most positions of a model,
    and longer rows do not run.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    parts = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    for part in parts:
        if part.get("rope_type") == "longrope":
            limit = part.get("original_max_position_embeddings") or getattr(
                text, "original_max_position_embeddings", None
            )
            return int(limit or text.max_position_embeddings)
    return None
