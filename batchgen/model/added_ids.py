"""Ids that a tokenizer's post-processor adds to each text: leading ones are kept, trailing ones are removed.

The model expects a leading mark (bos) in every prompt. A trailing mark (eos, sep) says that the text has ended, so a
model that is to continue the text must not see it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from batchgen.model.guarded import is_choke

if TYPE_CHECKING:
    from batchgen.model.tokenizer import Tokenizer

PROBES = ("a", "1 b")  # two texts, so that no piece of either is mistaken for a mark


@dataclass(frozen=True, slots=True)
class AddedIds:
    """The ids added before and after the tokens of each text."""

    front: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()

    def trim(self, input_ids: list[int], *, parse_special: bool = False) -> list[int]:
        """A text's ids without the trailing added ones, and with the leading ones exactly once.

        With `parse_special`, the text itself may begin with the leading mark; the duplicate is then removed.

        >>> AddedIds((1,), (2,)).trim([1, 1, 7, 2], parse_special=True)
        [1, 7]
        """
        end = len(input_ids) - len(self.behind)
        ids = input_ids[:end] if self.behind and tuple(input_ids[end:]) == self.behind else input_ids
        twice = self._num_written(ids) if parse_special else 0
        return ids[twice:]

    def _num_written(self, ids: list[int]) -> int:
        """The number of leading ids that the text itself repeats right after the added ones: all of them or 0."""
        size = len(self.front)
        if tuple(ids[:size]) != self.front:
            return 0
        return size if size and tuple(ids[size : 2 * size]) == self.front else 0

    def cut(self, input_ids: list[int], num_tokens: int) -> list[int]:
        """A text's ids without its first `num_tokens`; the added leading ids stay."""
        size = self.num_in_front(input_ids)
        return input_ids[:size] + input_ids[size + num_tokens :]

    def num_in_front(self, input_ids: list[int]) -> int:
        size = len(self.front)
        return size if tuple(input_ids[:size]) == self.front else 0


@lru_cache(maxsize=8)
def added_ids(tokenizer: Tokenizer) -> AddedIds:
    """The ids that a tokenizer adds to every text; empty if they differ from text to text."""
    try:
        found = {_around(tokenizer, probe) for probe in PROBES}
    except BaseException as error:
        if not is_choke(error):
            raise
        return AddedIds()  # the error of each prompt will be more specific
    return found.pop() or AddedIds() if len(found) == 1 else AddedIds()


def _around(tokenizer: Tokenizer, text: str) -> AddedIds | None:
    bare = list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    whole = list(tokenizer(text, split_special_tokens=True)["input_ids"])
    num_more = len(whole) - len(bare)
    for start in range(num_more + 1):
        if bare and whole[start : start + len(bare)] == bare:
            return AddedIds(tuple(whole[:start]), tuple(whole[start + len(bare) :]))
    return None


def say_left_out(tokenizer: Tokenizer, say: Callable[[str], object]) -> None:
    """Report which trailing tokens are removed from every prompt, if any."""
    if behind := added_ids(tokenizer).behind:
        names = " ".join(tokenizer.convert_ids_to_tokens(list(behind)))
        say(f"the tokenizer adds {names} after every text: batchgen omits them, so that the model continues the prompt")
