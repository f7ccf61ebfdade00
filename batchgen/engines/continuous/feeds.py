"""What a step feeds its rows, and which come out of it: one for each row, or several where rows are few.

A row that lacks tokens in its slot, which were chosen without a step, is fed several of these. So are drafts, which are
kept as far as they are what the row's own logits choose: an answer is the same with and without them.
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
    """The tokens of one row that a forward takes: the first of those that its slot lacks, and drafts behind them.

    In the forward's logits those behind each token stand from `first` on. A prefill feeds none, and has one before.
    """

    row: SlotRow
    first: int
    tokens: list[int] = field(default_factory=list)
    num_drafts: int = 0

    @property
    def next_logits(self) -> int | None:
        """Where the logits of the row's next token stand; None if it is finished, or was not fed all that it has."""
        own = self.row.sequence.output_ids[self.row.num_fed :]
        if self.row.sequence.is_finished or own != self.tokens[: len(own)]:
            return None
        return self.first + len(own) - 1

    def settle(self) -> int:
        """Counts the tokens as fed, except those that turned out wrong: how many these are."""
        kept = common_length(self.tokens, self.row.sequence.output_ids[self.row.num_fed :])
        if self.row.drafts and self.num_drafts:
            self.row.drafts.note(self.num_drafts, max(0, kept + self.num_drafts - len(self.tokens)))
        self.row.num_fed += kept
        return len(self.tokens) - kept

    def reject_drafts(self) -> None:
        if self.row.drafts and self.num_drafts:
            self.row.drafts.note(self.num_drafts, 0)


def feed(rows: Rows[SlotRow], room: int) -> list[Feed]:
    """What a step feeds the rows: one token each, and up to `room` more, of those that rows have and of drafts."""
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
    """Feeds rows, and gives them the tokens that `sampler` chooses; counts them, and drafts.

    Steps feed one token per row; with `several` also those that rows lack, and drafts.
    """

    def __init__(self, slot_model: SlotModel, sampler: Sampler, *, several: bool = False) -> None:
        self.slot_model = slot_model
        self.sampler = sampler
        self.several = several
        self.new_tokens = self.drafted = self.accepted = 0

    def choose_first(self, rows: Rows[SlotRow], logits: torch.Tensor) -> None:
        """Gives rows that were prefilled the first of their tokens, where they have none yet."""
        for row in rows:
            row.num_fed = 0
        self._choose([Feed(row, place + 1) for place, row in enumerate(rows)], logits)

    def step(self, rows: Rows[SlotRow]) -> None:
        """One forward. If it fails, rows keep the tokens that they got, and its columns are to be undone."""
        feeds = feed(rows, self.slot_model.room_beside(len(rows)) if self.several else 0)
        logits = self._forward(feeds)
        if any(its.num_drafts for its in feeds) and not logits[:, 0].isfinite().all():
            # A draft may be to blame: what is no number spoils its row's sums also where it is hidden.
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
        """Gives rows the tokens that come next: one, and more as long as each is the one that was fed."""
        while places := {place: its.row.sequence for its in feeds if (place := its.next_logits) is not None}:
            is_all = len(places) == len(logits)
            tokens = self.sampler.choose(logits if is_all else logits[list(places)], list(places.values()))
            for sequence, token in zip(places.values(), tokens, strict=True):
                if token is None:
                    sequence.fail(sequence.error or self.slot_model.model.nan_message)
                else:
                    self.new_tokens += self.sampler.extend(sequence, token)

    def _settle(self, its: Feed) -> None:
        """Takes back what a row was fed and did not choose."""
        num_wrong = its.settle()
        self.drafted += its.num_drafts
        self.accepted += its.num_drafts - num_wrong
        if num_wrong and its.row.slot:
            self.slot_model.cache.take_back(its.row.slot, num_wrong)
