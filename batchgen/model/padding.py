"""Turn prompts into token ids, and ids into a left-padded batch with its attention mask and positions.

Padding goes on the left because the rightmost column predicts the next token. The mask is made from lengths, never
from `input_ids != pad`: the pad token is eos, and a prompt may contain a genuine eos. Knows nothing about models or
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from batchgen.model.added_ids import AddedIds, added_ids, say_left_out
from batchgen.model.chat import Chat, Shorter, render_rows, shorten
from batchgen.model.guarded import each_or_why
from batchgen.records import Batch, FieldError, Request, SamplingParams, Sequence, TooLong

if TYPE_CHECKING:
    import torch

    from batchgen.model.tokenizer import Tokenizer

Shorten = Callable[[Request, int], Shorter]


def tokenize(tokenizer: Tokenizer, prompts: list[str], *, parse_special: bool = False) -> list[list[int]]:
    """Token ids of each prompt, unpadded, with the tokenizer's leading special tokens but not its trailing ones.

    `<|endoftext|>` in a prompt stays plain text unless `parse_special` turns such marks into special tokens.
    """
    if not prompts:
        return []
    encoded = tokenizer(
        prompts,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        split_special_tokens=not parse_special,
        verbose=False,
    )
    added = added_ids(tokenizer)
    return [added.trim(ids, parse_special=parse_special) for ids in encoded["input_ids"]]


def encode(
    requests: list[Request],
    tokenizer: Tokenizer,
    *,
    n_positions: int | None = None,
    vocab_size: int | None = None,
    too_long: TooLong = "error",
    parse_special: bool = False,
    chat: Chat | None = None,
) -> list[Sequence]:
    """Turn requests into sequences, `num_samples` for each, in order; a row that cannot run comes back failed.

    `n_positions` is the model's limit. A prompt that leaves no room for `max_new_tokens` fails. With
    `too_long="truncate"` it instead keeps the tokenizer's leading tokens and its right end, and a conversation keeps
    its last turns. `chat` renders conversations and reports what users should know about plain prompts.
    """
    chat = chat or Chat({}, lambda: tokenizer)
    sequences: list[Sequence] = []
    for request, input_ids in _tokenize_rows(requests, tokenizer, chat, parse_special):
        if error := _unrunnable(request):
            failed = Sequence(request, 0, [])
            failed.fail(error)
            sequences.append(failed)
        else:
            drop_turns = partial(shorten, chat, parse_special=parse_special)
            added = AddedIds() if request.conversation else added_ids(tokenizer)
            samples = _samples(request, input_ids, added, n_positions, too_long, drop_turns)
            if vocab_size is not None and (error := _unknown_token(request.sampling, input_ids, vocab_size)):
                samples = samples[:1]
                samples[0].fail(error)
            sequences.extend(samples)
    return sequences


def _tokenize_rows(
    requests: list[Request], tokenizer: Tokenizer, chat: Chat, parse_special: bool
) -> Iterator[tuple[Request, list[int]]]:
    """Each row as the model will get it, conversations rendered, and its token ids."""
    rows = render_rows(chat, requests, parse_special=parse_special)
    plain = [request.prompt for request, _ in rows if not request.conversation and not _unrunnable(request)]
    if plain:
        say_left_out(tokenizer, chat.say_once)
    token_ids = iter(each_or_why(plain, partial(tokenize, tokenizer, parse_special=parse_special)))
    for request, input_ids in rows:
        if request.conversation or _unrunnable(request):
            yield request, list(input_ids)
        elif isinstance(found := next(token_ids), str):
            yield replace(request, error=request.located(found)), []
        else:
            yield request, found


def _unrunnable(request: Request) -> str | None:
    if request.error:
        return request.error
    if not request.prompt:
        return "the prompt is empty: there is no token to continue from"
    return None


def check_named_tokens(sampling: SamplingParams, vocab_size: int) -> None:
    """Raise `FieldError` if an option names a token that the model does not have."""
    named = {"stop_token_ids": sampling.stop_token_ids, "logit_bias": [token for token, _ in sampling.logit_bias]}
    for name, tokens in named.items():
        if max(tokens, default=0) >= vocab_size:
            raise FieldError(f"{{{name}}} names token {max(tokens)}, but the model has tokens 0 to {vocab_size - 1}")


def _unknown_token(sampling: SamplingParams, input_ids: list[int], vocab_size: int) -> str | None:
    """The error of a row that contains or names a token that the model does not have; None if all are known."""
    if max(input_ids, default=0) >= vocab_size:
        return f"the tokenizer gives token {max(input_ids)}, which the model does not have"
    try:
        check_named_tokens(sampling, vocab_size)
    except FieldError as error:
        return str(error)
    return None


def _samples(
    request: Request,
    input_ids: list[int],
    added: AddedIds,
    n_positions: int | None,
    too_long: TooLong,
    drop_turns: Shorten,
) -> list[Sequence]:
    num_fixed = added.num_in_front(input_ids)
    error, cut = _check_length(len(input_ids), num_fixed, request.sampling.max_new_tokens, n_positions, too_long)
    num_dropped = 0
    if cut and request.conversation:
        shorter, whole = drop_turns(request, len(input_ids) - cut), len(input_ids)
        request, input_ids, error = shorter.request, list(shorter.input_ids), shorter.error
        num_dropped, cut = shorter.num_dropped_messages, whole - len(input_ids)
    else:
        input_ids = added.cut(input_ids, cut)
    if error:
        failed = Sequence(request, 0, input_ids)
        failed.fail(error)
        return [failed]
    return [
        Sequence(request, sample_index, list(input_ids), num_truncated_tokens=cut, num_dropped_messages=num_dropped)
        for sample_index in range(request.sampling.num_samples)
    ]


def _check_length(
    num_tokens: int, num_fixed: int, max_new_tokens: int, n_positions: int | None, too_long: TooLong
) -> tuple[str | None, int]:
    """The error about a row's length, if any, and how many tokens to cut after its first `num_fixed`."""
    if not num_tokens:
        return "the prompt has no tokens", 0
    if n_positions is None or num_tokens + max_new_tokens <= n_positions:
        return None, 0
    room = n_positions - max_new_tokens
    if room < 1 + num_fixed:
        return f"{max_new_tokens} new tokens leave no room for a prompt: the model has {n_positions} positions", 0
    if too_long == "truncate":
        return None, num_tokens - room
    return (
        f"the prompt has {num_tokens} tokens; with {max_new_tokens} new ones, that is more than the model's "
        f"{n_positions} positions (shorten it to {room} tokens, or use --too-long truncate)",
        0,
    )


def pad(sequences: Rows[Sequence], pad_token_id: int, *, skip: int = 0) -> Batch:
    """Left-pad sequences (prompt and output so far) to the longest one, T: three int64 tensors `[B, T]` on the CPU.

    `skip` omits the first tokens of every row; positions continue after them.
    """
    import torch

    token_ids = [sequence.token_ids[skip:] for sequence in sequences]
    lengths = torch.tensor([len(ids) for ids in token_ids])  # [B]
    width = int(lengths.max())
    input_ids = torch.tensor([[pad_token_id] * (width - len(ids)) + ids for ids in token_ids])  # [B, T]
    attention_mask = (torch.arange(width) >= width - lengths[:, None]).long()  # [B, T]
    return Batch(tuple(sequences), input_ids, attention_mask, positions(attention_mask) + skip * attention_mask)


def positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position ids `[B, T]` of a mask `[B, T]`: real tokens count from 0, pads stay at 0.

    >>> import torch
    >>> positions(torch.tensor([[0, 0, 1, 1, 1]])).tolist()
    [[0, 0, 0, 1, 2]]
    """
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)
