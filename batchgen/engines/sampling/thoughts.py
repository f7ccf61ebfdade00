"""Where a row is in its thought, which is free, and where its answer begins, which is constrained.

Marks are searched in the bytes of tokens, so it does not matter how a model splits them into tokens.
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
LONGEST_HEADER = 256  # bytes, including the closing mark


class Phase(Enum):
    """Phases of a row: `undecided` may open a thought next; `behind` a thought, the answer may begin with any token."""

    undecided = auto()
    inside = auto()
    behind = auto()
    answer = auto()


@dataclass(frozen=True, slots=True)
class Marks:
    """A thought's marks in a model's tokens, by how many bytes of a mark the text already has.

    Tokens in `opening[n]` continue or complete the opening mark. Tokens in `past[n]` complete the closing mark and also
    contain text of the answer, which must come in tokens of its own. `breaks[n]` are tokens of exactly n line breaks.
    """

    thought: Thought
    tokenizer: LLTokenizer
    opening: tuple[tuple[int, ...], ...]
    past: tuple[tuple[int, ...], ...]
    breaks: tuple[tuple[int, ...], ...]


@lru_cache(maxsize=8)
def find_marks(tokenizer: LLTokenizer, thought: Thought) -> Marks:
    """Find the marks in all tokens, once for each model and kind of thought."""
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
    """Whether a token contains the rest of a closing mark (a whole one anywhere) followed by text of the answer."""
    at = text.find(rest)
    gap = text[at + len(rest) :]
    return (at >= 0 if is_whole else at == 0) and (len(gap) > MOST_BREAKS or bool(gap.strip(BREAK)))


@dataclass(slots=True, eq=False)
class Ahead:
    """What a row has written before its answer.

    `said` is the part of it that matters: the beginning of an opening mark, the end of a thought, or the line breaks
    after it. If `is_lost`, the constraint does not allow this text as an answer: it can only become an opening mark.
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
        """How many of the tokens so far do not belong to the answer."""
        return self._num_read if self.phase in (Phase.inside, Phase.behind) else self._num_ahead

    @property
    def is_inside(self) -> bool:
        return self.phase is Phase.inside

    def more(self) -> tuple[int, ...]:
        """Return tokens that the row may take besides those of its constraint."""
        if self.phase is Phase.undecided:
            return self.marks.opening[len(self.said)]
        if self.phase is Phase.behind and not self.marks.thought.header:
            numbers = range(1, MOST_BREAKS + 1 - len(self.said))
            return tuple(token for number in numbers for token in self.marks.breaks[number])
        return ()

    def past(self) -> list[int]:
        """Return tokens that may not continue a thought because the answer would begin inside them."""
        closing = self.marks.thought.closing.encode()
        there = (n for n, past in enumerate(self.marks.past) if past and self.said.endswith(closing[:n]))
        return [token for n in there for token in self.marks.past[n]]

    def take(self, token: int, matcher: LLMatcher) -> None:
        """Process the row's next token. The matcher gets the tokens of the answer."""
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
