"""What changes logits before a token is chosen: biases, penalties and bans, on each row's real tokens, in place.

Order and meaning are those of transformers' `LogitsProcessorList` and of vLLM, which agree: biases, repetition,
presence and frequency, bans.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from collections.abc import Sequence as Rows

import torch

from batchgen.records import SamplingParams, Sequence

# A row, a token, and what is added to its logit.
Change = tuple[int, int, float]


def penalize(logits: torch.Tensor, sequences: Rows[Sequence], eos_token_ids: Collection[int]) -> None:
    """Change float32 logits `[B, V]` of rows as their options ask, based on their prompt and output so far."""
    _add(logits, biases(sequences))
    penalties = [sequence.sampling.repetition_penalty for sequence in sequences]
    if any(penalty != 1 for penalty in penalties):
        token_ids = [sequence.token_ids for sequence in sequences]
        penalize_repetition(logits, token_ids, torch.tensor(penalties, device=logits.device))
    _add(logits, additive_penalties(sequences))
    for row, sequence in enumerate(sequences):
        params = sequence.sampling
        if params.no_repeat_ngram_size or params.min_new_tokens > sequence.num_output_tokens:
            tokens = forbidden_tokens(params, sequence.token_ids, sequence.num_output_tokens, eos_token_ids)
            logits[row, tokens] = -torch.inf


def _add(logits: torch.Tensor, changes: Iterator[Change]) -> None:
    """Add to logits; each pair of row and token occurs at most once, so the order does not matter."""
    listed = list(changes)
    if not listed:
        return
    rows, tokens, amounts = zip(*listed, strict=True)
    places = torch.tensor([rows, tokens], device=logits.device)  # [2, N]
    logits[places[0], places[1]] += torch.tensor(amounts, dtype=logits.dtype, device=logits.device)


def biases(sequences: Rows[Sequence]) -> Iterator[Change]:
    """Yield what `logit_bias` adds."""
    for row, sequence in enumerate(sequences):
        for token, bias in sequence.sampling.logit_bias:
            yield row, token, bias


def additive_penalties(sequences: Rows[Sequence]) -> Iterator[Change]:
    """Yield what presence and frequency penalties subtract for generated tokens (the prompt does not count).

    `-(count * frequency_penalty + presence_penalty)`, as in OpenAI's documentation and vLLM's `apply_penalties`.
    """
    for row, sequence in enumerate(sequences):
        presence, frequency = sequence.sampling.presence_penalty, sequence.sampling.frequency_penalty
        if presence or frequency:
            for token, count in Counter(sequence.output_ids).items():
                yield row, token, -(count * frequency + presence)


def penalize_repetition(logits: torch.Tensor, token_ids: list[list[int]], penalty: torch.Tensor) -> None:
    """Divide positive and multiply negative logits of tokens already seen (CTRL, arXiv:1909.05858), in place.

    logits `[B, V]`; token_ids are the rows' prompt and output tokens; penalty `[B]` (1 changes nothing).
    """
    longest = max(map(len, token_ids))
    # A shorter row repeats its first token: all copies get the same value.
    padded = [ids + ids[:1] * (longest - len(ids)) for ids in token_ids]
    seen = torch.tensor(padded, device=logits.device)  # [B, L]
    values, penalty = logits.gather(-1, seen), penalty[:, None]
    logits.scatter_(-1, seen, torch.where(values < 0, values * penalty, values / penalty))


def banned_tokens(token_ids: list[int], ngram_size: int) -> list[int]:
    """Return the tokens that would complete an n-gram that `token_ids` already contain.

    >>> banned_tokens([1, 2, 3, 1, 2], 3)
    [3]
    """
    if len(token_ids) + 1 < ngram_size:
        return []
    prefix = token_ids[len(token_ids) - ngram_size + 1 :]
    width = ngram_size - 1
    starts = range(len(token_ids) - width)
    return sorted({token_ids[i + width] for i in starts if token_ids[i : i + width] == prefix})


def forbidden_tokens(
    params: SamplingParams, token_ids: list[int], num_output_tokens: int, eos_token_ids: Iterable[int]
) -> list[int]:
    """Return the tokens that n-gram bans and `min_new_tokens` forbid after `token_ids` (prompt and output, no pads)."""
    tokens: list[int] = []
    if params.no_repeat_ngram_size:
        tokens += banned_tokens(token_ids, params.no_repeat_ngram_size)
    if num_output_tokens < params.min_new_tokens:
        tokens += [*eos_token_ids, *params.stop_token_ids]
    return tokens
