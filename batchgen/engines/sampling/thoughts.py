"""Where a row stands in its thought, which is free, and where its answer begins, which is constrained.

Marks are found in the bytes of tokens, so that it does not matter how a model spells them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from batchgen.records import Thought

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MOST_BREAKS = 2  # between a thought and the answer, as templates write them
BREAK = b"\n"
LONGEST_HEADER = 256  # bytes, the closing included


class Phase(Enum):
    """`undecided` is a row that may be about to open a thought, `behind` one whose answer may begin with any token."""

    undecided = auto()
    inside = auto()
    behind = auto()
    answer = auto()


@dataclass(frozen=True, slots=True)
class Marks:
    """A thought's marks in the tokens of a model, by how many bytes of a mark are there already.

    `opening[n]` continue the opening or complete it; `past[n]` complete the closing with text of the answer behind
    it, which must be left to tokens of its own. `breaks[n]` are tokens of n line breaks, and nothing else.
    """

    thought: Thought
    tokenizer: LLTokenizer
    opening: tuple[tuple[int, ...], ...]
    past: tuple[tuple[int, ...], ...]
    breaks: tuple[tuple[int, ...], ...]


@lru_cache(maxsize=8)
def find_marks(tokenizer: LLTokenizer, thought: Thought) -> Marks:
    """Reads all tokens, once for each model and kind of thought."""
    texts = [tokenizer.decode_bytes([token]) for token in range(tokenizer.vocab_size)]
    opening, closing = (thought.opening or "").encode(), thought.closing.encode()

    def where(holds: Callable[[bytes], bool]) -> tuple[int, ...]:
        return tuple(token for token, text in enumerate(texts) if text and holds(text))

    return Marks(
        thought,
        tokenizer,
        tuple(where(partial(_goes_on, opening[n:])) for n in range(len(opening))),
        tuple(where(partial(_goes_past, closing[n:], n == 0)) for n in range(len(closing))),
        tuple(where((BREAK * n).__eq__) for n in range(MOST_BREAKS + 1)),
    )


def _goes_on(rest: bytes, text: bytes) -> bool:
    return text.startswith(rest) or rest.startswith(text)


def _goes_past(rest: bytes, is_whole: bool, text: bytes) -> bool:
    """Whether a token holds the rest of a closing, a whole one anywhere, and text of the answer behind it."""
    at = text.find(rest)
    gap = text[at + len(rest) :]
    return (at >= 0 if is_whole else at == 0) and (len(gap) > MOST_BREAKS or bool(gap.strip(BREAK)))


@dataclass(slots=True, eq=False)
class Ahead:
    """What a row has written ahead of its answer.

    `said` is what matters of it: of an opening, the last of a thought, line breaks behind it. The constraint of a row
    that `is_lost` does not allow this as an answer: it can only become the opening.
    """

    marks: Marks
    phase: Phase
    said: bytes = b""
    is_lost: bool = False
    _num_read: int = 0
    _num_ahead: int = 0

    @classmethod
    def of(cls, marks: Marks) -> Ahead:
        return cls(marks, Phase.undecided if marks.thought.opening else Phase.inside)

    @property
    def num_tokens(self) -> int:
        """How many of the tokens so far are not the answer's."""
        return self._num_read if self.phase in (Phase.inside, Phase.behind) else self._num_ahead

    @property
    def is_inside(self) -> bool:
        return self.phase is Phase.inside

    def more(self) -> tuple[int, ...]:
        """Tokens that the row may take beside those of its constraint."""
        if self.phase is Phase.undecided:
            return self.marks.opening[len(self.said)]
        if self.phase is Phase.behind and not self.marks.thought.header:
            numbers = range(1, MOST_BREAKS + 1 - len(self.said))
            return tuple(token for number in numbers for token in self.marks.breaks[number])
        return ()

    def past(self) -> list[int]:
        """Tokens that may not continue a thought, since the answer would begin inside of them."""
        closing = self.marks.thought.closing.encode()
        there = (n for n, past in enumerate(self.marks.past) if past and self.said.endswith(closing[:n]))
        return [token for n in there for token in self.marks.past[n]]

    def take(self, token: int, matcher: LLMatcher) -> None:
        """Reads the row's next token. The matcher takes those of the answer."""
        text = self.marks.tokenizer.decode_bytes([token])
        if self.phase is Phase.inside:
            self._look_for_closing(text)
        elif self.phase is Phase.undecided:
            self._look_for_opening(token, text, matcher)
        elif self.phase is Phase.answer or matcher.validate_tokens([token]):
            if self.phase is Phase.behind:
                self._num_ahead, self.phase = self._num_read, Phase.answer
            matcher.consume_token(token)
        else:
            self.said += text
        self._num_read += 1

    def _look_for_opening(self, token: int, text: bytes, matcher: LLMatcher) -> None:
        opening = (self.marks.thought.opening or "").encode()
        self.said += text
        if self.said.startswith(opening):
            matcher.reset()
            self.is_lost = False
            self.phase, self.said, rest = Phase.inside, b"", self.said[len(opening) :]
            self._look_for_closing(rest)
            return
        if not opening.startswith(self.said):
            self.phase = Phase.answer
        self.is_lost = self.is_lost or not matcher.validate_tokens([token])
        if not self.is_lost or self.phase is Phase.answer:
            matcher.consume_token(token)

    def _look_for_closing(self, text: bytes) -> None:
        closing, header = self.marks.thought.closing.encode(), self.marks.thought.header
        at = max(0, len(self.said) - len(closing) + 1)
        self.said += text
        while (at := self.said.find(closing, at)) >= 0:
            if header is None or re.search(header.encode() + rb"\Z", self.said[:at]):
                self.phase, self.said = Phase.behind, self.said[at + len(closing) :]
                return
            at += 1
        self.said = self.said[-LONGEST_HEADER:]
