"""Scored rows for the page: each text in pieces, with their log-probabilities and the alternatives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from batchgen.records import Logprobs, Result, RowScore, ScoredText
from batchgen.text import cell_value, escape, whole_pieces

Json = dict[str, Any]
MOST_ROWS, MOST_TOKENS = 10_000, 50_000  # about 5 MB


class ScoredRows:
    """The first scored rows, as many as fit on a page; `left_out` counts the others."""

    def __init__(self) -> None:
        self.rows: list[Result] = []
        self.left_out = 0
        self._tokens = 0

    def watch(self, results: Iterable[Result]) -> Iterator[Result]:
        """Pass rows on, and keep those that the page will show."""
        for result in results:
            has_room = len(self.rows) < MOST_ROWS and self._tokens < MOST_TOKENS
            if has_room and not self.left_out:
                self.rows.append(result)
                self._tokens += result.num_output_tokens
            else:
                self.left_out += 1
            yield result


def score_row(result: Result) -> Json:
    """A scored row as the page shows it: its prompt, and each scored text."""
    score = result.score
    row: Json = {
        "id": escape(str(result.index if result.id is None else result.id)),
        "sample": 0,
        "prompt": escape(result.prompt),
        "metadata": {escape(name): cell_value(value) for name, value in result.metadata.items()},
    }
    if score is None or result.error is not None:
        failed = {"text": "", "reason": "error", "tokens": 0, "head": "failed", "error": escape(str(result.error))}
        return row | {"answers": [failed]}
    return row | {"answers": [_text(score, place, text) for place, text in enumerate(score.texts)]}


def _text(score: RowScore, place: int, text: ScoredText) -> Json:
    numbers = f"log-probability {text.logprob:.3f} in {text.num_tokens} tokens, {text.per_token:.3f} each"
    marks = [f"choice {place}"] if score.kind == "choices" else []
    marks += ["best"] if score.kind == "choices" and place == score.best else []
    marks += ["tie"] if score.kind == "choices" and place == score.best and score.is_tie else []
    marks += ["greedy"] if text.is_greedy else []
    answer: Json = {
        "text": escape(text.text),
        "reason": "stop",
        "tokens": text.num_tokens,
        "score": round(text.logprob, 3),
        "each": round(text.per_token, 3),
        "head": " · ".join([*marks, numbers, f"perplexity {text.perplexity:.4g}"]),
        "best": score.kind == "choices" and place == score.best,
    }
    return answer | ({"pieces": list(_pieces(text.text, text.logprobs))} if text.logprobs else {})


def _pieces(text: str, logprobs: Logprobs) -> Iterator[list[Any]]:
    """Each piece with its log-probability and alternatives; several tokens of one character form one piece."""
    for piece, start, end in whole_pieces(text, logprobs.tokens):
        total = sum(logprobs.token_logprobs[start:end])
        alternatives: list[list[Any]] = []
        if end == start + 1 and logprobs.top_tokens:
            pairs = zip(logprobs.top_tokens[start], logprobs.top[start], strict=True)
            alternatives = [[escape(token), round(logprob, 3)] for token, (_, logprob) in pairs]
        yield [escape(piece), round(total, 3), *([alternatives] if alternatives else [])]


def facts_of_sums(sums: Mapping[str, Any]) -> dict[str, str]:
    """The facts shown above the rows."""
    shown = {
        "perplexity per token": ("token_perplexity", ".4g"),
        "bits per byte": ("bits_per_byte", ".4g"),
        "accuracy": ("accuracy", ".2%"),
        "accuracy per token": ("accuracy_per_token", ".2%"),
        "accuracy per byte": ("accuracy_per_byte", ".2%"),
    }
    return {title: format(sums[name], form) for title, (name, form) in shown.items() if name in sums}
