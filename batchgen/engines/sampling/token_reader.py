"""A model's tokenizer in llguidance's form."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from tokenizers import Tokenizer

# What Metaspace does to text that continues, spelled out in decoders that the library knows.
SPACES = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ],
}


@dataclass(frozen=True, slots=True)
class _Source:
    """A tokenizer's JSON. Compared by hash, because a model may be opened again."""

    sha256: str
    text: str = field(compare=False, repr=False)


@lru_cache(maxsize=4)
def token_reader(tokenizer: object, vocab_size: int, eos_token_ids: frozenset[int]) -> LLTokenizer:
    """Return the library's tokenizer, built once per model: that takes a second for 50,000 tokens.

    Raises `ValueError` if the tokenizer is written in Python, or if the library cannot read it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError("constraints need a fast tokenizer (tokenizer.json), which this model does not have")
    text = _plain(backend)
    return _read(
        _Source(sha256(text.encode()).hexdigest(), text),
        vocab_size,
        tuple(sorted(token for token in eos_token_ids if token < vocab_size)),
    )


@lru_cache(maxsize=4)
def _read(source: _Source, vocab_size: int, ends: tuple[int, ...]) -> LLTokenizer:
    from llguidance import LLTokenizer

    try:
        return LLTokenizer(source.text, n_vocab=vocab_size, eos_token=list(ends) or None)
    except ValueError as error:
        raise ValueError(f"constraints do not work with this model's tokenizer: {error}") from None


def _plain(backend: Tokenizer) -> str:
    """Return the tokenizer's JSON without padding and truncation, with a decoder that the library knows."""
    text: str = backend.to_str()
    is_spaced = type(backend.decoder).__name__ == "Metaspace"
    if not (is_spaced or backend.padding or backend.truncation):
        return text
    state: dict[str, Any] = json.loads(text)
    state["padding"] = state["truncation"] = None
    if is_spaced:
        state["decoder"] = SPACES
    return json.dumps(state)
