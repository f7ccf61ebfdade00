"""The differences between two outputs, per row and in total. Knows nothing about files: takes results and manifests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchgen.proof.pairs import join_results
from batchgen.records import Result

NAMED = 10  # rows in only one output that are listed by name
NOTED = ("model", "options", "engine", "versions", "machine")  # parts of a manifest that can change a token
NOT_CAUSES = {"memory_bytes", "revision"}


@dataclass(frozen=True, slots=True)
class RowDifference:
    """A row with different answers. `character` and `token` are the first positions that differ, counted from 0.

    `token` is None if one of the outputs has no token ids, or if all tokens are equal. `parts` names what differs.
    `score` is the largest difference of log-probabilities.
    """

    id: str | None
    index: int
    sample_index: int
    token: int | None
    character: int | None
    parts: tuple[str, ...]
    a: Result
    b: Result
    score: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The difference as JSON values; texts start at the first difference."""
        place = self.character or 0
        return {
            "id": self.id,
            "index": self.index,
            "sample_index": self.sample_index,
            "token": self.token,
            "character": self.character,
            "parts": list(self.parts),
            "a": {"text": self.a.text[place:], "finish_reason": self.a.finish_reason, "error": self.a.error},
            "b": {"text": self.b.text[place:], "finish_reason": self.b.finish_reason, "error": self.b.error},
            "score": self.score,
        }


@dataclass(slots=True)
class Comparison:
    """Counts over all rows, updated as rows are compared. Each sample counts as a row."""

    rows_a: int = 0
    rows_b: int = 0
    same: int = 0
    different: int = 0
    only_in_a: int = 0
    only_in_b: int = 0
    other_prompts: int = 0
    named_in_a: list[str] = field(default_factory=list)
    named_in_b: list[str] = field(default_factory=list)
    parts: Counter[str] = field(default_factory=Counter)
    first_tokens: Counter[int] = field(default_factory=Counter)
    tokens_a: int = 0
    tokens_b: int = 0
    finish_reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    compared_scores: int = 0
    largest_score: float = 0.0

    @property
    def compared(self) -> int:
        return self.same + self.different

    @property
    def is_same(self) -> bool:
        return not (self.different or self.only_in_a or self.only_in_b)

    @property
    def problem(self) -> str | None:
        """Why the two outputs cannot be compared, or None."""
        if not self.compared and (self.rows_a or self.rows_b):
            return "they have no rows in common"
        if self.compared and self.other_prompts == self.compared:
            return "their rows have the same ids but different prompts"
        return None

    def to_dict(self) -> dict[str, Any]:
        reasons = [{"a": a, "b": b, "rows": rows} for (a, b), rows in sorted(self.finish_reasons.items())]
        return {
            "rows_a": self.rows_a,
            "rows_b": self.rows_b,
            "compared": self.compared,
            "same": self.same,
            "different": self.different,
            "only_in_a": self.only_in_a,
            "only_in_b": self.only_in_b,
            "share_same": self.same / self.compared if self.compared else None,
            "other_prompts": self.other_prompts,
            "parts": dict(self.parts),
            "first_difference": [{"token": at, "rows": rows} for at, rows in sorted(self.first_tokens.items())],
            "output_tokens": {"a": self.tokens_a, "b": self.tokens_b},
            "finish_reasons": reasons,
            "scores": {"compared": self.compared_scores, "largest": self.largest_score},
        }


def diff_results(
    a: Iterable[Result],
    b: Iterable[Result],
    comparison: Comparison,
    *,
    tolerance: float = 0.0,
    normal: Callable[[str], str] = str,
) -> Iterator[RowDifference]:
    """Every row that differs; updates the counts in `comparison`. Log-probabilities may differ by `tolerance`.

    `normal` removes from texts what one of the formats cannot represent.
    """
    for left, right in join_results(a, b):
        comparison.rows_a += left is not None
        comparison.rows_b += right is not None
        if left is None or right is None:
            _count_alone(left, right, comparison)
            continue
        comparison.tokens_a += left.num_output_tokens
        comparison.tokens_b += right.num_output_tokens
        comparison.finish_reasons[left.finish_reason, right.finish_reason] += 1
        comparison.other_prompts += bool(left.prompt and right.prompt and normal(left.prompt) != normal(right.prompt))
        found = compare_rows(left, right, comparison, tolerance, normal)
        if found is None:
            comparison.same += 1
            continue
        comparison.different += 1
        comparison.parts.update(found.parts)
        if found.token is not None:
            comparison.first_tokens[found.token] += 1
        yield found


def _count_alone(left: Result | None, right: Result | None, comparison: Comparison) -> None:
    named, result = (comparison.named_in_a, left) if left else (comparison.named_in_b, right)
    comparison.only_in_a += left is not None
    comparison.only_in_b += right is not None
    if result and len(named) < NAMED:
        named.append(str(result.index if result.id is None else result.id))


def compare_rows(
    a: Result, b: Result, comparison: Comparison, tolerance: float, normal: Callable[[str], str]
) -> RowDifference | None:
    """The difference between two answers to one row; None if there is none."""
    if a == b:
        has_scores = a.logprobs is not None or a.cumulative_logprob is not None or a.score is not None
        comparison.compared_scores += has_scores
        return None
    texts = normal(a.text), normal(b.text)
    tokens = tokens_of(a), tokens_of(b)
    score = _score_difference(a, b)
    if score is not None:
        comparison.compared_scores += 1
        comparison.largest_score = max(comparison.largest_score, score)
    has_tokens = None not in tokens
    differs = {
        "text": texts[0] != texts[1],
        "tokens": has_tokens and tokens[0] != tokens[1],
        "finish_reason": a.finish_reason != b.finish_reason,
        "error": (a.error is None) != (b.error is None),
        "reasoning": normal(a.reasoning or "") != normal(b.reasoning or ""),
        "best": _best_of(a) != _best_of(b),
        "scores": score is not None and score > tolerance,
    }
    parts = tuple(name for name, is_different in differs.items() if is_different)
    if not parts:
        return None
    name = None if a.id is None else str(a.id)
    token = _parting(tokens[0] or (), tokens[1] or ()) if differs["tokens"] else None
    character = _parting(*texts) if differs["text"] else None
    return RowDifference(name, a.index, a.sample_index, token, character, parts, a, b, score)


def _best_of(result: Result) -> int | None:
    """The index of a scored row's best choice; None for any other row."""
    score = result.score
    return score.best if score and score.kind == "choices" and score.texts else None


def tokens_of(result: Result) -> tuple[int, ...] | None:
    """The generated tokens; None if the file does not have them."""
    if result.output_ids or not result.num_output_tokens:
        return result.output_ids
    return result.logprobs.token_ids if result.logprobs else None


def _parting(a: Sequence[object], b: Sequence[object]) -> int:
    """The position where two lists or texts begin to differ; the shorter length if one is the start of the other."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _score_difference(a: Result, b: Result) -> float | None:
    """The largest difference of log-probabilities over common tokens, otherwise of the sums of equal texts."""
    if a.score and b.score:
        return max(
            (abs(x.logprob - y.logprob) for x, y in zip(a.score.texts, b.score.texts, strict=False)), default=None
        )
    if a.logprobs and b.logprobs:
        num_equal = _parting(a.logprobs.token_ids, b.logprobs.token_ids)
        pairs = zip(a.logprobs.token_logprobs[:num_equal], b.logprobs.token_logprobs[:num_equal], strict=True)
        return max((abs(x - y) for x, y in pairs), default=0.0)
    if a.cumulative_logprob is None or b.cumulative_logprob is None or a.text != b.text:
        return None
    return abs(a.cumulative_logprob - b.cumulative_logprob)


@dataclass(frozen=True, slots=True)
class Cause:
    """A setting that differs between two runs, which may explain why rows differ."""

    name: str
    a: Any
    b: Any


def likely_causes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Cause]:
    """The differences between two manifests that can change a token."""
    causes = []
    for part in NOTED:
        known, other = a.get(part) or {}, b.get(part) or {}
        for name in known.keys() & other.keys() - NOT_CAUSES:
            if known[name] != other[name]:
                shown = f"engine's {name}" if part == "engine" and name != part else name.removeprefix("--")
                causes.append(Cause(shown, known[name], other[name]))
    return sorted(causes, key=lambda cause: cause.name)
