"""Turn an engine's results for a row's passages into texts with their log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from batchgen.model.token_texts import told_logprobs
from batchgen.records import RowScore, ScoredText, Sequence, TokenLogprob
from batchgen.records.logprobs import rounded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def row_score(sequence: Sequence, tokenizer: PreTrainedTokenizerBase) -> RowScore:
    """The scored texts of a finished row; none if the row failed."""
    kind = sequence.request.scored
    assert kind is not None
    if sequence.error is not None:
        return RowScore(kind)
    return RowScore(kind, tuple(_texts(sequence, tokenizer)))


def _texts(sequence: Sequence, tokenizer: PreTrainedTokenizerBase) -> Iterator[ScoredText]:
    request = sequence.request
    if request.replies:
        for place, reply in enumerate(request.replies):
            yield _text(sequence, reply, [place], tokenizer)
    else:
        text = request.messages[-1].text if request.messages else request.prompt
        yield _text(sequence, text, list(range(len(sequence.passages))), tokenizer)


def _text(sequence: Sequence, text: str, passages: list[int], tokenizer: PreTrainedTokenizerBase) -> ScoredText:
    """One text made of these passages, in order."""
    tokens = [token for place in passages for token in sequence.passages[place].scored]
    found = [entry for place in passages for entry in sequence.scores[place]]
    wanted = sequence.sampling.logprobs
    logprobs = None
    if wanted is not None:
        kept = [TokenLogprob(entry.logprob, entry.top[:wanted]) for entry in found]
        logprobs = told_logprobs(tokenizer, tokens, kept, with_texts=True)
    is_greedy = all(entry.top[0][0] == token for entry, token in zip(found, tokens, strict=True))
    total = rounded(sum(rounded(entry.logprob) for entry in found))
    return ScoredText(text, total, len(tokens), is_greedy, logprobs)
