"""Rows on their way through the slots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchgen.records import SamplingParams, Sequence

if TYPE_CHECKING:
    from batchgen.engines.continuous.slots import Prefix, Slot


@dataclass(slots=True, eq=False)
class Opening:
    """Tokens that several rows begin with; their keys and values are computed when the first row is prefilled."""

    token_ids: list[int]
    prefix: Prefix | None = None


@dataclass(slots=True, eq=False)
class SlotRow:
    """A sequence, and its slot while it has one."""

    sequence: Sequence
    twins: list[Sequence]
    opening: Opening | None = None
    slot: Slot | None = None

    @property
    def length(self) -> tuple[int, SamplingParams]:
        """Prompt tokens behind the opening, and options: what its memory depends on."""
        shared = len(self.opening.token_ids) if self.opening else 0
        return self.sequence.num_prompt_tokens - shared, self.sequence.sampling
