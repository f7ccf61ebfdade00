"""Sums over scored rows: the perplexity of all texts, and how often the best choice was the right one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from batchgen.records import Request, Result, RowScore, ScoringOptions

ANSWER = "answer"  # the column that names the right choice
MOST_GROUPS = 1000  # the maximum number of a column's values that get their own sums
WHOLE_NUMBER = re.compile(r"[0-9]{1,9}")
NO_VALUE = "(none)"  # the group of rows that do not have the column


@dataclass(slots=True)
class ScoreSums:
    """Sums over rows. Words are separated by whitespace; bytes are UTF-8.

    `unknown_answers` counts rows whose answer is not one of their choices, `unknown_at` is the first of them.
    `num_ungrouped` counts rows whose value would need a group beyond `most_groups`.
    """

    num_rows: int = 0
    logprob: float = 0.0
    num_tokens: int = 0
    num_words: int = 0
    num_bytes: int = 0
    num_answered: int = 0
    right: int = 0
    right_per_token: int = 0
    right_per_byte: int = 0
    unknown_answers: int = 0
    unknown_at: str = ""
    num_ungrouped: int = 0
    most_groups: int = MOST_GROUPS
    groups: dict[str, ScoreSums] = field(default_factory=dict)

    def add(self, result: Result) -> None:
        """Add a row; a failed row adds nothing."""
        score = result.score
        if score is None or not score.texts:
            return
        self.num_rows += 1
        if score.kind != "choices":
            [text] = score.texts
            self.logprob += text.logprob
            self.num_tokens += text.num_tokens
            self.num_words += len(re.split(r"\s+", text.text))
            self.num_bytes += text.num_bytes
        elif (given := result.metadata.get(ANSWER)) not in (None, ""):
            self._compare(score, right_choice(score, given), result.source or f"row {result.index}")

    def _compare(self, score: RowScore, answer: int | None, place: str) -> None:
        if answer is None:
            self.unknown_answers += 1
            self.unknown_at = self.unknown_at or place
            return
        self.num_answered += 1
        self.right += score.best == answer
        self.right_per_token += score.best_per_token == answer
        self.right_per_byte += score.best_per_byte == answer

    def group(self, name: str) -> ScoreSums | None:
        """Return the sums of a value; None if there are already `most_groups` groups."""
        if name in self.groups or len(self.groups) < self.most_groups:
            return self.groups.setdefault(name, ScoreSums())
        return None

    def merge(self, other: ScoreSums) -> None:
        """Add the sums of the rows that come next."""
        for name in ADDED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.unknown_at = self.unknown_at or other.unknown_at
        for name, sums in other.groups.items():
            if (own := self.group(name)) is not None:
                own.merge(sums)
            else:
                self.num_ungrouped += sums.num_rows

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScoreSums:
        """Restore the sums from JSON that was made with `asdict`."""
        return cls(**{**values, "groups": {name: cls.from_dict(group) for name, group in values["groups"].items()}})

    @property
    def facts(self) -> dict[str, Any]:
        """The sums under the names used by `--stats`, and those of each group."""
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
        if self.unknown_answers:
            found["unknown_answers"] = self.unknown_answers
        return found | ({"by": {name: group.facts for name, group in self.groups.items()}} if self.groups else {})


ADDED = [item.name for item in fields(ScoreSums) if item.type in ("int", "float") and item.name != "most_groups"]


def sum_up(results: Iterable[Result], by: str | None = None) -> ScoreSums:
    """Return the sums of all rows and, with `by`, those for each value of a column."""
    sums = ScoreSums()
    for _ in summing(results, sums, by):
        pass
    return sums


def summing(results: Iterable[Result], sums: ScoreSums, by: str | None = None) -> Iterator[Result]:
    """Pass on rows and add them to the sums."""
    for result in results:
        sums.add(result)
        if by is not None:
            value = result.metadata.get(by)
            group = sums.group(NO_VALUE if value is None else str(value))
            if group is not None:
                group.add(result)
            elif result.score and result.score.texts:
                sums.num_ungrouped += 1
        yield result


def watch_groups(
    requests: Iterable[Request], scoring: ScoringOptions | None, say: Callable[[str], None]
) -> Iterator[Request]:
    """Pass on rows; warn through `say` about the first one that lacks the grouping column."""
    by = scoring.by if scoring else None
    has_said = by is None
    for request in requests:
        if not has_said and by not in request.metadata and not request.error:
            say(f"{request.place} has no column {by} (--by): such rows are summed up under {NO_VALUE}")
            has_said = True
        yield request


def right_choice(score: RowScore, answer: object) -> int | None:
    """Return the index of the right choice; `answer` is its text or its index. Return None if it is neither.

    A table may have turned an index into a decimal number, 1.0.
    """
    texts = [text.text for text in score.texts]
    if isinstance(answer, str):
        if answer in texts:
            return texts.index(answer)
        stripped = [text.strip() for text in texts]
        if answer.strip() in stripped:
            return stripped.index(answer.strip())
        answer = int(answer) if WHOLE_NUMBER.fullmatch(answer := answer.strip().removesuffix(".0")) else None
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(texts):
        return answer
    return None


def _perplexity(logprob: float, number: int) -> float:
    return math.exp(min(-logprob / number, 700.0))
