"""Rows on their way through the slots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from batchgen.engines.continuous.drafts import Drafts
from batchgen.engines.continuous.prefixes import shared_prefixes, twins
from batchgen.planning.batches import longest_first
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
    """A sequence, and its slot while it has one; the slot holds `num_fed` of its output tokens.

    A row that lost its slot starts again from its prompt, and its existing tokens are fed in steps: a prefill would
    round them differently.
    """

    sequence: Sequence
    twins: list[Sequence]
    opening: Opening | None = None
    slot: Slot | None = None
    num_fed: int = 0
    drafts: Drafts | None = None

    @property
    def prompt(self) -> Sequence:
        """The row as it was before its first output token."""
        return replace(self.sequence, output_ids=[])

    def guess(self, most: int) -> list[int]:
        """Return at most `most` tokens that may come next, without the row's last token, which is never fed."""
        most = min(most, self.sequence.sampling.max_new_tokens - self.sequence.num_output_tokens - 1)
        if most <= 0:
            return []
        self.drafts = self.drafts or Drafts()
        return self.drafts.guess(self.sequence.token_ids, most)

    @property
    def length(self) -> tuple[int, SamplingParams]:
        """Prompt tokens after the opening, and options: what its memory depends on."""
        shared = len(self.opening.token_ids) if self.opening else 0
        return self.sequence.num_prompt_tokens - shared, self.sequence.sampling


def groups_of(sequences: list[Sequence], *, share: bool, shares_prefixes: bool) -> Iterator[list[SlotRow]]:
    """Yield groups of rows with a common beginning, longest first.

    Rows that must get the same answer become one row.
    """
    others = {id(lead): rest for lead, *rest in twins(sequences)} if share else {id(s): [] for s in sequences}
    leads = [sequence for sequence in sequences if id(sequence) in others]
    for num_tokens, group in shared_prefixes(leads) if share and shares_prefixes else [(0, leads)]:
        opening = Opening(group[0].input_ids[:num_tokens]) if num_tokens else None
        if group:
            yield [SlotRow(sequence, others[id(sequence)], opening) for sequence in longest_first(group)]
