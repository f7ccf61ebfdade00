"""What a step feeds its rows, and which tokens come out: one per row, or several if few rows run.

If a slot lacks tokens that its row already has, a step feeds several of them. It also feeds drafts, and keeps those
that match what the row's own logits choose: the answer is the same with and without drafts.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batchgen.engines.continuous.prefixes import common_length

if TYPE_CHECKING:
    import torch

    from batchgen.engines.continuous.rows import SlotRow
    from batchgen.engines.continuous.slot_model import SlotModel
    from batchgen.engines.sampling.sampler import Sampler


@dataclass(slots=True, eq=False)
class Feed:
    """The tokens of one row that a forward takes: the first ones that its slot lacks, followed by drafts.

    The logits after each of these tokens start at row `first` of the forward's logits. A prefill feeds no tokens here;
    the row of its logits is `first - 1`.
    """

    row: SlotRow
    first: int
    tokens: list[int] = field(default_factory=list)
    num_drafts: int = 0

    @property
    def next_logits(self) -> int | None:
        """The row of logits for the row's next token; None if the row is finished or was not fed all of its tokens."""
        own = self.row.sequence.output_ids[self.row.num_fed :]
        if self.row.sequence.is_finished or own != self.tokens[: len(own)]:
            return None
        return self.first + len(own) - 1

    def settle(self) -> int:
        """Count the tokens as fed, except wrong drafts, and return the number of those."""
        kept = common_length(self.tokens, self.row.sequence.output_ids[self.row.num_fed :])
        if self.row.drafts and self.num_drafts:
            self.row.drafts.note(self.num_drafts, max(0, kept + self.num_drafts - len(self.tokens)))
        self.row.num_fed += kept
        return len(self.tokens) - kept

    def reject_drafts(self) -> None:
        if self.row.drafts and self.num_drafts:
            self.row.drafts.note(self.num_drafts, 0)


def feed(rows: Rows[SlotRow], room: int) -> list[Feed]:
    """Return what a step feeds the rows: one token each, and up to `room` more: own tokens of rows, then drafts."""
    feeds: list[Feed] = []
    first = 0
    for num_left, row in zip(range(len(rows), 0, -1), rows, strict=True):
        most = 1 + room // num_left
        tokens = row.sequence.output_ids[row.num_fed : row.num_fed + most]
        drafts = row.guess(most - len(tokens))
        feeds.append(Feed(row, first, tokens + drafts, len(drafts)))
        num_fed = len(tokens) + len(drafts)
        first += num_fed
        room -= num_fed - 1
    return feeds


class Feeder:
    """Feeds rows, appends the tokens that `sampler` chooses, and counts new tokens and drafts.

    A step feeds one token per row; with `several` also more of the tokens that slots lack, and drafts.
    """

    def __init__(self, slot_model: SlotModel, sampler: Sampler, *, several: bool = False) -> None:
        self.slot_model = slot_model
        self.sampler = sampler
        self.several = several
        self.new_tokens = self.drafted = self.accepted = 0

    def choose_first(self, rows: Rows[SlotRow], logits: torch.Tensor) -> None:
        """Choose the first token of rows that were prefilled, unless they already have one."""
        for row in rows:
            row.num_fed = row.num_prefilled
        self._choose([Feed(row, place + 1) for place, row in enumerate(rows)], logits)

    def step(self, rows: Rows[SlotRow]) -> None:
        """Run one forward. After a failure, rows keep the tokens that they got, and the columns must be undone."""
        feeds = feed(rows, self.slot_model.room_beside(len(rows)) if self.several else 0)
        logits = self._forward(feeds)
        if any(its.num_drafts for its in feeds) and not logits[:, 0].isfinite().all():
            # A draft may be to blame: NaN in a hidden column also spoils its row's sums.
            self.slot_model.cache.undo_step()
            for its in feeds:
                its.reject_drafts()
            feeds = feed(rows, 0)
            logits = self._forward(feeds)
        self._choose(feeds, logits)
        for its in feeds:
            self._settle(its)
        self.slot_model.cache.end_step()

    def _forward(self, feeds: list[Feed]) -> torch.Tensor:
        slots = [its.row.slot for its in feeds for _ in its.tokens if its.row.slot]
        return self.slot_model.step([token for its in feeds for token in its.tokens], slots)

    def _choose(self, feeds: list[Feed], logits: torch.Tensor) -> None:
        """Append the next tokens of rows: one, and more as long as each one is the token that was fed."""
        while places := {place: its.row.sequence for its in feeds if (place := its.next_logits) is not None}:
            is_all = len(places) == len(logits)
            tokens = self.sampler.choose(logits if is_all else logits[list(places)], list(places.values()))
            for sequence, token in zip(places.values(), tokens, strict=True):
                if token is None:
                    sequence.fail(sequence.error or self.slot_model.model.nan_message)
                else:
                    self.new_tokens += self.sampler.extend(sequence, token)

    def _settle(self, its: Feed) -> None:
        """Count what a row was fed, and remove wrong drafts from its slot."""
        num_wrong = its.settle()
        self.drafted += its.num_drafts
        self.accepted += its.num_drafts - num_wrong
        if num_wrong and its.row.slot:
            self.slot_model.cache.take_back(its.row.slot, num_wrong)
