"""The text of single tokens, as they appear after other tokens, and log-probabilities with these texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from batchgen.model.stops import decode
from batchgen.records import Logprobs, TokenLogprob
from batchgen.records.logprobs import rounded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANCHOR = "a"  # some tokenizers drop the space before a text's first token, so no token is decoded first


@lru_cache(maxsize=8)
def _anchor(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], str]:
    """The ids of `ANCHOR`, after which other tokens are decoded, and their text."""
    ids = list(tokenizer(ANCHOR, add_special_tokens=False)["input_ids"])
    return ids, decode(tokenizer, ids, with_special=True)


@lru_cache(maxsize=2**17)
def token_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """The text of one token; special tokens as they are written, U+FFFD if the token is part of a character."""
    ids, text = _anchor(tokenizer)
    whole = decode(tokenizer, [*ids, token_id], with_special=True)
    return whole[len(text) :] if whole.startswith(text) else decode(tokenizer, [token_id], with_special=True)


def told_logprobs(
    tokenizer: PreTrainedTokenizerBase,
    token_ids: Iterable[int],
    found: Sequence[TokenLogprob],
    *,
    with_texts: bool = False,
) -> Logprobs:
    """The log-probabilities of tokens with the tokens' texts; `with_texts` adds the texts of the alternatives."""
    ids = tuple(token_ids)
    top = tuple(tuple((token, rounded(logprob)) for token, logprob in entry.top) for entry in found)
    texts = tuple(tuple(token_text(tokenizer, token) for token, _ in pairs) for pairs in top)
    return Logprobs(
        ids,
        tuple(token_text(tokenizer, token) for token in ids),
        tuple(rounded(entry.logprob) for entry in found),
        top,
        texts if with_texts else (),
    )
