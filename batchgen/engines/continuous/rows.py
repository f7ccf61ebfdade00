"""Rows on their way through the slots."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from batchgen.engines.continuous.drafts import Drafts
from batchgen.engines.continuous.prefixes import shared_prefixes, twins
from batchgen.model.long_rope import LongRope, crosses, is_long
from batchgen.planning.batches import longest_first
from batchgen.records import SamplingParams, Sequence

if TYPE_CHECKING:
    from batchgen.engines.continuous.slots import Prefix, Slot


@dataclass(slots=True, eq=False)
class Opening:
    """Tokens that several rows begin with; their keys and values are computed when the first row is prefilled."""

    token_ids: list[int]
    is_long: bool = False  # whether its rows are beyond the limit of LongRoPE
    prefix: Prefix | None = None


@dataclass(slots=True, eq=False)
class SlotRow:
    """A sequence, and its slot while it has one; the slot holds `num_fed` of its output tokens.

    A row that lost its slot starts again from its prompt, and its existing tokens are fed in steps: a prefill would
    round them differently. A row that grows beyond `renews_at` tokens is prefilled again, once, with its tokens up to
    there and one more: plain `generate` computes their keys anew, with the long factors of LongRoPE.
    """

    sequence: Sequence
    twins: list[Sequence]
    opening: Opening | None = None
    slot: Slot | None = None
    num_fed: int = 0
    drafts: Drafts | None = None
    renews_at: int = sys.maxsize

    @property
    def num_tokens(self) -> int:
        return self.sequence.num_prompt_tokens + self.sequence.num_output_tokens

    @property
    def start(self) -> Sequence:
        """The row as a prefill takes it: its prompt, and its first output tokens if it has grown beyond a limit."""
        return replace(self.sequence, output_ids=self.sequence.output_ids[: self.num_prefilled])

    @property
    def num_prefilled(self) -> int:
        """How many of its output tokens a prefill takes."""
        return self.renews_at + 1 - self.sequence.num_prompt_tokens if self.num_tokens > self.renews_at else 0

    @property
    def is_outgrown(self) -> bool:
        """Whether its slot holds keys that are to be computed anew."""
        return self.slot is not None and self.slot.num_tokens <= self.renews_at < self.num_tokens

    def lose_slot(self) -> None:
        """Take its slot away, and its opening if that was computed below the limit that the row has outgrown."""
        self.slot = None
        if self.num_prefilled:
            self.opening = None

    def guess(self, most: int) -> list[int]:
        """Return at most `most` tokens that may come next, without the row's last token, which is never fed.

        None of them goes beyond the limit where its keys are computed anew.
        """
        most = min(most, self.sequence.sampling.max_new_tokens - self.sequence.num_output_tokens - 1)
        if self.num_tokens <= self.renews_at:
            most = min(most, self.renews_at - self.num_tokens)
        if most <= 0:
            return []
        self.drafts = self.drafts or Drafts()
        return self.drafts.guess(self.sequence.token_ids, most)

    @property
    def num_columns(self) -> int:
        """Tokens that a prefill computes for it: those after the opening."""
        return self._num_own + self.num_prefilled

    @property
    def length(self) -> tuple[int, SamplingParams]:
        """Tokens of its longest prefill, and options: what its memory depends on."""
        its, sampling = self.sequence, self.sequence.sampling
        if self.renews_at == sys.maxsize:
            return self._num_own, sampling
        longest = self.renews_at + 1  # then without an opening, and with fewer tokens to come
        num_left = sampling.max_new_tokens - (longest - its.num_prompt_tokens)
        return longest, replace(sampling, max_new_tokens=num_left, min_new_tokens=0)

    @property
    def _num_own(self) -> int:
        shared = len(self.opening.token_ids) if self.opening else 0
        return self.sequence.num_prompt_tokens - shared


def groups_of(
    sequences: list[Sequence], rope: LongRope | None, *, share: bool, shares_prefixes: bool
) -> Iterator[list[SlotRow]]:
    """Yield groups of rows with a common beginning, longest first; each is on one side of the limit of LongRoPE.

    Rows that must get the same answer become one row.
    """
    limit = rope.limit if rope else None
    others = {id(lead): rest for lead, *rest in twins(sequences)} if share else {id(s): [] for s in sequences}
    leads = [sequence for sequence in sequences if id(sequence) in others]
    for on_long_side in (False, True):
        side = [sequence for sequence in leads if is_long(sequence, limit) == on_long_side]
        for num_tokens, group in shared_prefixes(side) if share and shares_prefixes else [(0, side)]:
            opening = Opening(group[0].input_ids[:num_tokens], on_long_side) if num_tokens else None
            rows = [SlotRow(sequence, others[id(sequence)], opening) for sequence in longest_first(group)]
            for row in rows:
                if rope and rope.renews_keys and crosses(row.sequence, limit):
                    row.renews_at = rope.limit
            if rows:
                yield rows
