"""How likely tokens are: natural logarithms of the model's own probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

MOST_ALTERNATIVES = 20
DIGITS = 6  # behind the point: float32 has no more of them that are the same on every machine
LEAST_LOGPROB = -9999.0  # in place of minus infinity, which JSON does not have; OpenAI's number
Alternative = tuple[int, float]  # a token id and its log-probability


def rounded(logprob: float) -> float:
    """A log-probability as it is written.

    >>> rounded(-1.23456789), rounded(float("-inf")), rounded(-0.0)
    (-1.234568, -9999.0, 0.0)
    """
    return round(max(logprob, LEAST_LOGPROB), DIGITS) + 0.0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of one token in its place, and the likeliest tokens there, best first."""

    logprob: float
    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of a row's tokens, in order, and the likeliest alternatives of each, best first.

    `tokens` are their texts, special tokens as they are spelled. `top_tokens` are the texts of the alternatives, where
    somebody needs them.
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
        """As records have it."""
        return {name: value for name, value in asdict(self).items() if name != "top_tokens"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Logprobs:
        """What `asdict` made of it, back from JSON."""
        return cls(
            tuple(values["token_ids"]),
            tuple(values["tokens"]),
            tuple(values["token_logprobs"]),
            tuple(tuple((token, logprob) for token, logprob in pairs) for pairs in values["top"]),
            tuple(map(tuple, values["top_tokens"])),
        )
