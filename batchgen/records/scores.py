"""How likely given texts are: what is scored of a row, and what was found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from batchgen.records.logprobs import Logprobs

# A text by itself, what follows a prompt, several of that, the last reply of a conversation.
ScoredKind = Literal["text", "continuation", "choices", "reply"]
# In float32 a token's log-probability is the same to this in any batch; what lies closer is as good as equal.
TOKEN_MARGIN = 1e-4


@dataclass(frozen=True, slots=True)
class Passage:
    """Tokens of which those from `start` on are scored, each by all that are ahead of it. `start` is 1 at least."""

    token_ids: tuple[int, ...]
    start: int

    @property
    def fed(self) -> tuple[int, ...]:
        """What the model sees: all but the last, which nothing is behind."""
        return self.token_ids[:-1]

    @property
    def scored(self) -> tuple[int, ...]:
        return self.token_ids[self.start :]


@dataclass(frozen=True, slots=True)
class ScoredText:
    """A text and the log-probability of all its tokens together; of each of them too where the row asks for that.

    `is_greedy` says whether each token is the likeliest in its place.
    """

    text: str
    logprob: float
    num_tokens: int
    is_greedy: bool
    logprobs: Logprobs | None = None

    @property
    def per_token(self) -> float:
        return self.logprob / self.num_tokens

    @property
    def num_bytes(self) -> int:
        """Of UTF-8."""
        return len(self.text.encode())

    @property
    def per_byte(self) -> float:
        return self.logprob / self.num_bytes

    @property
    def perplexity(self) -> float:
        return math.exp(min(-self.per_token, 700.0))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScoredText:
        """What `asdict` made of it, back from JSON."""
        found = values["logprobs"]
        return cls(**{**values, "logprobs": None if found is None else Logprobs.from_dict(found)})


@dataclass(frozen=True, slots=True)
class RowScore:
    """What was found of a row: one text, or each of several choices; none where the row failed."""

    kind: ScoredKind
    texts: tuple[ScoredText, ...] = ()

    @property
    def best(self) -> int:
        """The choice that is likeliest as a whole; of equal ones the first. So in the next two."""
        return self._best(lambda text: text.logprob)

    @property
    def best_per_token(self) -> int:
        return self._best(lambda text: text.per_token)

    @property
    def best_per_byte(self) -> int:
        return self._best(lambda text: text.per_byte)

    @property
    def is_tie(self) -> bool:
        """Whether rounding alone could make another choice the best, by any of the three measures."""
        return any(
            self._is_close(measure, share)
            for measure, share in (
                (lambda text: text.logprob, lambda text: text.num_tokens),
                (lambda text: text.per_token, lambda text: 1),
                (lambda text: text.per_byte, lambda text: text.num_tokens / text.num_bytes),
            )
        )

    def _best(self, measure: Callable[[ScoredText], float]) -> int:
        return max(range(len(self.texts)), key=lambda place: (measure(self.texts[place]), -place))

    def _is_close(self, measure: Callable[[ScoredText], float], share: Callable[[ScoredText], float]) -> bool:
        """Whether the best two lie within what their tokens may stray."""
        if len(self.texts) < 2:
            return False
        first, second = sorted(self.texts, key=measure, reverse=True)[:2]
        return measure(first) - measure(second) < TOKEN_MARGIN * max(share(first), share(second))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RowScore:
        """What `asdict` made of it, back from JSON."""
        return cls(values["kind"], tuple(map(ScoredText.from_dict, values["texts"])))


@dataclass(frozen=True, slots=True)
class ScoringOptions:
    """How texts are scored. Texts longer than the model go through it in windows, each scoring `stride` tokens more.

    `by` is the column whose values have sums of their own.
    """

    stride: int | None = None
    by: str | None = None
