"""Log-probabilities of tokens: natural logarithms of the model's own probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

MOST_ALTERNATIVES = 20
DIGITS = 6  # decimals: float32 gives no more that are the same on every machine
LEAST_LOGPROB = -9999.0  # replaces minus infinity, which JSON does not have; the same number as OpenAI's
Alternative = tuple[int, float]  # a token id and its log-probability


def rounded(logprob: float) -> float:
    """A log-probability as it is written to outputs.
    >>> rounded(-1.23456789), rounded(float("-inf")), rounded(-0.0)
    (-1.234568, -9999.0, 0.0)
    """
    return round(max(logprob, LEAST_LOGPROB), DIGITS) + 0.0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of one token at its position, and the most likely tokens there, best first."""

    logprob: float
    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of a row's tokens, in order, with the most likely alternatives of each, best first.

    `tokens` are their texts, with special tokens as they are written. `top_tokens` are the texts of the alternatives,
    if they are needed.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    token_logprobs: tuple[float, ...]
    top: tuple[tuple[Alternative, ...], ...]
    top_tokens: tuple[tuple[str, ...], ...] = ()

    @property
    def total(self) -> float:
        """The log-probability of all tokens together."""
        return rounded(sum(self.token_logprobs))

    def to_dict(self) -> dict[str, Any]:
        """The log-probabilities as output records have them."""
        return {name: value for name, value in asdict(self).items() if name != "top_tokens"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Logprobs:
        """Rebuild from JSON what `asdict` made."""
        return cls(
            tuple(values["token_ids"]),
            tuple(values["tokens"]),
            tuple(values["token_logprobs"]),
            tuple(tuple((token, logprob) for token, logprob in pairs) for pairs in values["top"]),
            tuple(map(tuple, values["top_tokens"])),
        )
