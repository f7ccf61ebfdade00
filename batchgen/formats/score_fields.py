"""The fields of a scored row that are written, by its kind."""

from __future__ import annotations

from typing import Any

from batchgen.formats.fields import LOGPROBS, SOURCE
from batchgen.records import Result, RowScore, ScoredText

BEST = ("best", "best_per_token", "best_per_byte", "is_tie")


def score_dict(result: Result) -> dict[str, Any]:
    """The fields of a scored row in the order in which they are written; the scores of a failed row are null."""
    score = result.score
    assert score is not None
    head: dict[str, Any] = {"id": result.id, "index": result.index}
    if result.messages is not None:
        head["messages"] = result.messages
    if score.kind == "choices":
        found: dict[str, Any] = {"prompt": result.prompt, **_choices(score)}
    elif score.kind == "continuation":
        found = {"prompt": result.prompt, "continuation": result.text, **_numbers(score)}
    else:
        found = ({"prompt": result.prompt} if score.kind == "reply" else {}) | {"text": result.text, **_numbers(score)}
    tail = {"error": result.error, "metadata": result.metadata, "model": result.model, SOURCE: result.source}
    return {**head, **found, **tail}


def _numbers(score: RowScore) -> dict[str, Any]:
    text = score.texts[0] if score.texts else None
    names = ("logprob", "num_tokens", "is_greedy", *(() if score.kind == "continuation" else ("perplexity",)))
    return {name: text and getattr(text, name) for name in names} | _tokens(text)


def _tokens(text: ScoredText | None) -> dict[str, Any]:
    return {LOGPROBS: text.logprobs.to_dict()} if text and text.logprobs else {}


def _choices(score: RowScore) -> dict[str, Any]:
    if not score.texts:
        return {"choices": None, **dict.fromkeys(BEST)}
    choices = [
        {
            "text": choice.text,
            "logprob": choice.logprob,
            "num_tokens": choice.num_tokens,
            "is_greedy": choice.is_greedy,
            **_tokens(choice),
        }
        for choice in score.texts
    ]
    return {"choices": choices, **{name: getattr(score, name) for name in BEST}}
