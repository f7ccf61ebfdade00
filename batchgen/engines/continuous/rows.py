"""Rows on their way through the slots."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    """A sequence, and its slot while it has one; `num_fed` of its output tokens are there.

    A row whose slot was taken starts again from its prompt and is fed the tokens that it has, one by one: a prefill of
    them would round differently.
    """

    sequence: Sequence
    twins: list[Sequence]
    opening: Opening | None = None
    slot: Slot | None = None
    num_fed: int = 0

    @property
    def prompt(self) -> Sequence:
        """The row as it was before its first token."""
        return replace(self.sequence, output_ids=[])

    def next_fed(self) -> int:
        """The token that the next step feeds, which counts as fed."""
        self.num_fed += 1
        return self.sequence.output_ids[self.num_fed - 1]

    @property
    def is_behind(self) -> bool:
        """Whether it has tokens that its slot does not have yet."""
        return self.num_fed < self.sequence.num_output_tokens

    @property
    def length(self) -> tuple[int, SamplingParams]:
        """Prompt tokens behind the opening, and options: what its memory depends on."""
        shared = len(self.opening.token_ids) if self.opening else 0
        return self.sequence.num_prompt_tokens - shared, self.sequence.sampling
