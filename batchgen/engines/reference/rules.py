"""Which rows may share a batch, so that each gets the same result as alone, however a model treats pads and neighbours.

Most models take rows of any length, padded with eos. If a trial (`engines.trial`) shows otherwise, slower ways are
tried.
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
        return by_length, length if self.crosses(row) else self._is_long(row)

    @property
    def lengths(self) -> str:
        """Which rows share a batch, in a few words."""
        return LENGTHS[self.mixing] + (", short and long rows apart" if self.short_limit else "")

    def crosses(self, row: Sequence) -> bool:
        """Whether a row may grow past the limit, so that one forward over it differs from what its steps computed."""
        if self.short_limit is None:
            return False
        return not self._is_long(row) and row.num_prompt_tokens + row.sampling.max_new_tokens - 1 > self.short_limit

    def _is_long(self, row: Sequence) -> bool:
        return self.short_limit is not None and row.num_prompt_tokens > self.short_limit


def short_limit(config: PretrainedConfig) -> int | None:
    """Return how many tokens a row may have before LongRoPE switches its factors; None for other models.

    Other ways of scaling do not depend on neighbouring rows: their factors are fixed up to a model's maximum number of
    positions, and longer rows do not run.
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
