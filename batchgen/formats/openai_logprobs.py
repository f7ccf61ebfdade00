"""Log-probabilities as in OpenAI's two APIs: parallel lists for completions, one object per token for chats."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from batchgen.formats.fields import REPLACEMENT
from batchgen.records import Logprobs, Result

Json = dict[str, Any]


def text_logprobs(sample: Result) -> Json | None:
    """Log-probabilities for `/v1/completions`: `top_logprobs` by text, always including the token itself.

    If several alternatives have the same text, as parts of characters may, the most likely one counts. Offsets are in
    characters from the start of the prompt.
    """
    echo = sample.score.texts[0].logprobs if sample.score and sample.score.texts else None
    found = echo or sample.logprobs
    if found is None:
        return None
    lengths = [len(token) for token in found.tokens]
    numbers: list[float | None] = list(found.token_logprobs)
    best: list[dict[str, float] | None] = _by_text(found)
    if echo:  # OpenAI gives null for the first token of a prompt
        numbers[0] = best[0] = None
    return {
        "tokens": list(found.tokens),
        "token_logprobs": numbers,
        "top_logprobs": best if any(found.top) else None,
        "text_offset": list(accumulate(lengths[:-1], initial=len(sample.prompt)))[: len(lengths)],
    }


def _by_text(found: Logprobs) -> list[dict[str, float] | None]:
    places: list[dict[str, float] | None] = []
    for token, logprob, texts, pairs in zip(
        found.tokens, found.token_logprobs, found.top_tokens, found.top, strict=True
    ):
        best: dict[str, float] = {}
        for text, (_, other) in zip(texts, pairs, strict=True):
            best.setdefault(text, other)
        best.setdefault(token, logprob)
        places.append(best)
    return places


def chat_logprobs(sample: Result) -> Json | None:
    """Log-probabilities for `/v1/chat/completions`: each token with its bytes and its alternatives."""
    found = sample.logprobs
    if found is None:
        return None
    content = []
    for place, (token, logprob) in enumerate(zip(found.tokens, found.token_logprobs, strict=True)):
        texts = found.top_tokens[place] if found.top_tokens else ()
        top = [_entry(text, other) for text, (_, other) in zip(texts, found.top[place], strict=True)]
        content.append({**_entry(token, logprob), "top_logprobs": top})
    return {"content": content, "refusal": None}


def _entry(token: str, logprob: float) -> Json:
    """One token; `bytes` is null if the token is part of a character."""
    return {"token": token, "logprob": logprob, "bytes": None if REPLACEMENT in token else list(token.encode())}
