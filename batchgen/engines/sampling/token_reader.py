"""A model's tokenizer as llguidance reads it."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llguidance import LLTokenizer

# What Metaspace does to a text that goes on, spelled out: the library knows decoders by such parts.
SPACES = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ],
}


@lru_cache(maxsize=4)
def token_reader(tokenizer: object, vocab_size: int, eos_token_ids: frozenset[int]) -> LLTokenizer:
    """Built once for each model: that takes a second for 50,000 tokens.

    Raises `ValueError` for a tokenizer that is written in Python, or that the library does not read.
    """
    from llguidance import LLTokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError("constraints need a fast tokenizer (tokenizer.json), which this model does not have")
    state: dict[str, Any] = json.loads(backend.to_str())
    state["padding"] = state["truncation"] = None
    if (state["decoder"] or {}).get("type") == "Metaspace":
        state["decoder"] = SPACES
    ends = sorted(token for token in eos_token_ids if token < vocab_size)
    try:
        return LLTokenizer(json.dumps(state), n_vocab=vocab_size, eos_token=ends or None)
    except ValueError as error:
        raise ValueError(f"constraints do not work with this model's tokenizer: {error}") from None
