"""Scores of given texts: which tokens of a row are scored, and the results."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from batchgen.records.logprobs import Logprobs

# A text alone, a continuation of a prompt, several continuations, the last reply of a conversation.
ScoredKind = Literal["text", "continuation", "choices", "reply"]
# In float32, a token's log-probability varies by less than this between batches; a smaller difference is a tie.
TOKEN_MARGIN = 1e-4


@dataclass(frozen=True, slots=True)
class Passage:
    """Tokens; those from `start` on are scored, each given all tokens before it. `start` is at least 1."""

    token_ids: tuple[int, ...]
    start: int

    @property
    def fed(self) -> tuple[int, ...]:
        """The tokens that the model sees: all but the last, because nothing follows it."""
        return self.token_ids[:-1]

    @property
    def scored(self) -> tuple[int, ...]:
        return self.token_ids[self.start :]


@dataclass(frozen=True, slots=True)
class ScoredText:
    """A text and its total log-probability; `logprobs` has each token's, if the row asks for them.

    `is_greedy` says whether each token is the most likely one at its position.
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
        """The length of the text in UTF-8."""
        return len(self.text.encode())

    @property
    def per_byte(self) -> float:
        return self.logprob / self.num_bytes

    @property
    def perplexity(self) -> float:
        return math.exp(min(-self.per_token, 700.0))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScoredText:
        """Rebuild from JSON what `asdict` made."""
        found = values["logprobs"]
        return cls(**{**values, "logprobs": None if found is None else Logprobs.from_dict(found)})


@dataclass(frozen=True, slots=True)
class RowScore:
    """The scores of a row: of one text or of several choices; none if the row failed."""

    kind: ScoredKind
    texts: tuple[ScoredText, ...] = ()

    @property
    def best(self) -> int:
        """The index of the choice with the highest log-probability; the first one in a tie, as for the next two."""
        return self._best(lambda text: text.logprob)

    @property
    def best_per_token(self) -> int:
        return self._best(lambda text: text.per_token)

    @property
    def best_per_byte(self) -> int:
        return self._best(lambda text: text.per_byte)

    @property
    def is_tie(self) -> bool:
        """Whether rounding alone could make another choice the best by any of the three measures."""
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
        """Whether the best two differ by less than rounding may change them."""
        if len(self.texts) < 2:
            return False
        first, second = sorted(self.texts, key=measure, reverse=True)[:2]
        return measure(first) - measure(second) < TOKEN_MARGIN * max(share(first), share(second))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RowScore:
        """Rebuild from JSON what `asdict` made."""
        return cls(values["kind"], tuple(map(ScoredText.from_dict, values["texts"])))


@dataclass(frozen=True, slots=True)
class ScoringOptions:
    """How texts are scored. Texts too long for the model are scored in windows, each scoring `stride` more tokens.

    `by` is the column by whose values results are also summed up.
    """

    stride: int | None = None
    by: str | None = None
