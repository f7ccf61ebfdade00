"""What scored rows come to together: perplexity of all texts, and how often the best choice was the right one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from batchgen.records import Result, RowScore

ANSWER = "answer"  # the column that names the right choice
MOST_GROUPS = 1000  # values of a column that have sums of their own


@dataclass(slots=True)
class ScoreSums:
    """Sums over rows; words are what spaces separate, bytes those of UTF-8."""

    logprob: float = 0.0
    num_tokens: int = 0
    num_words: int = 0
    num_bytes: int = 0
    num_answered: int = 0
    right: int = 0
    right_per_token: int = 0
    right_per_byte: int = 0
    groups: dict[str, ScoreSums] = field(default_factory=dict)

    def add(self, result: Result) -> None:
        """Counts a row; one that failed counts nothing."""
        score = result.score
        if score is None or not score.texts:
            return
        if score.kind != "choices":
            [text] = score.texts
            self.logprob += text.logprob
            self.num_tokens += text.num_tokens
            self.num_words += len(re.split(r"\s+", text.text))
            self.num_bytes += text.num_bytes
        elif (answer := right_choice(score, result.metadata.get(ANSWER))) is not None:
            self.num_answered += 1
            self.right += score.best == answer
            self.right_per_token += score.best_per_token == answer
            self.right_per_byte += score.best_per_byte == answer

    @property
    def facts(self) -> dict[str, Any]:
        """The sums by the names that `--stats` has, and of each group."""
        found: dict[str, Any] = {}
        if self.num_tokens:
            found |= {
                "token_perplexity": _perplexity(self.logprob, self.num_tokens),
                "word_perplexity": _perplexity(self.logprob, self.num_words),
                "byte_perplexity": _perplexity(self.logprob, self.num_bytes),
                "bits_per_byte": -self.logprob / self.num_bytes / math.log(2),
                "logprob": self.logprob,
                "scored_tokens": self.num_tokens,
                "scored_words": self.num_words,
                "scored_bytes": self.num_bytes,
            }
        if self.num_answered:
            found |= {
                "accuracy": self.right / self.num_answered,
                "accuracy_per_token": self.right_per_token / self.num_answered,
                "accuracy_per_byte": self.right_per_byte / self.num_answered,
                "num_answered": self.num_answered,
            }
        return found | ({"by": {name: group.facts for name, group in self.groups.items()}} if self.groups else {})


def sum_up(results: Iterable[Result], by: str | None = None) -> ScoreSums:
    """The sums of all rows, and with `by` those of each value of a column."""
    sums = ScoreSums()
    for _ in summing(results, sums, by):
        pass
    return sums


def summing(results: Iterable[Result], sums: ScoreSums, by: str | None = None) -> Iterator[Result]:
    """Passes rows on, and counts them."""
    for result in results:
        sums.add(result)
        if by is not None:
            name = str(result.metadata.get(by))
            if name in sums.groups or len(sums.groups) < MOST_GROUPS:
                sums.groups.setdefault(name, ScoreSums()).add(result)
        yield result


def right_choice(score: RowScore, answer: object) -> int | None:
    """The place of the right choice: `answer` is its text, or its place from 0. None where it is neither."""
    texts = [text.text for text in score.texts]
    if isinstance(answer, str):
        if answer in texts:
            return texts.index(answer)
        stripped = [text.strip() for text in texts]
        if answer.strip() in stripped:
            return stripped.index(answer.strip())
        answer = int(answer) if answer.strip().isdecimal() else None
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(texts):
        return answer
    return None


def _perplexity(logprob: float, number: int) -> float:
    return math.exp(min(-logprob / number, 700.0))
