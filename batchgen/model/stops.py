"""Where generated text ends: at a stop, which the text does not hold.

A stop is found in the text as it will be written, behind its prompt and without special tokens; one that holds the
text of a special token, in what the model wrote with them. Knows nothing of engines and logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

from batchgen.records import Request, Sequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from batchgen.model.checkpoint import Checkpoint

CONTEXT = 8  # tokens ahead of some text that it is decoded behind


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: list[int], *, with_special: bool = False) -> str:
    """Text of token ids, without special tokens unless asked for, spaces exactly as they stand."""
    text = tokenizer.decode(token_ids, skip_special_tokens=not with_special, clean_up_tokenization_spaces=False)
    return str(text)


@lru_cache(maxsize=8)
def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokens that decoding leaves out, by their text."""
    added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return {text: token for text, token in (named | added).items() if text}


def output_text(tokenizer: PreTrainedTokenizerBase, sequence: Sequence) -> str:
    """Text that was generated, with whatever ended it.

    Decoded behind its prompt, since some tokenizers drop the space before the first token of a text.
    """
    special = set(special_tokens(tokenizer).values())
    real = (token for token in reversed(sequence.input_ids) if token not in special)
    prompt_ids = list(islice(real, CONTEXT))[::-1]
    prompt, whole = decode(tokenizer, prompt_ids), decode(tokenizer, prompt_ids + sequence.output_ids)
    return whole[len(prompt) :] if whole.startswith(prompt) else decode(tokenizer, sequence.output_ids)


def decode_output(tokenizer: PreTrainedTokenizerBase, sequence: Sequence) -> str:
    """Text that was generated, up to the stop or the token that ended it."""
    text = output_text(tokenizer, sequence)
    texts = [text, *(text[: text.find(stop)] for stop in sequence.sampling.stop if stop in text)]
    last = sequence.output_ids[-1:]
    if sequence.finish_reason == "stop" and last and last[0] in sequence.sampling.stop_token_ids:
        texts.append(output_text(tokenizer, replace(sequence, output_ids=sequence.output_ids[:-1])))
    befores = (_before(tokenizer, sequence, stop, 0) for stop in sequence.sampling.stop)
    return min([*texts, *(before for before in befores if before is not None)], key=len)


def ends_in_stop(tokenizer: PreTrainedTokenizerBase, sequence: Sequence) -> bool:
    """Whether the last token completed a stop. Looks at the last tokens only, as each stands for at least a byte."""
    stops = sequence.sampling.stop
    if not stops:
        return False
    reach = max(len(stop.encode()) for stop in stops)
    special = set(special_tokens(tokenizer).values())
    real = [token for token in sequence.output_ids if token not in special]
    if len(real) > reach + CONTEXT:
        text = decode(tokenizer, real[-reach - CONTEXT :])
    else:
        text = output_text(tokenizer, sequence)
    start = max(0, sequence.num_output_tokens - reach)
    return any(stop in text or _before(tokenizer, sequence, stop, start) is not None for stop in stops)


def _before(tokenizer: PreTrainedTokenizerBase, sequence: Sequence, stop: str, start: int) -> str | None:
    """The text ahead of a stop that holds a special token; None where there is none from output token `start` on."""
    held = {text: token for text, token in special_tokens(tokenizer).items() if text in stop}
    if not held:
        return None
    first = min(held, key=lambda text: (stop.find(text), -len(text)))
    place, token = stop.find(first), held[first]
    output_ids = sequence.output_ids
    for at in (at for at in range(start, len(output_ids)) if output_ids[at] == token):
        ahead = output_text(tokenizer, replace(sequence, output_ids=output_ids[:at]))
        behind = decode(tokenizer, output_ids[at:], with_special=True)
        if ahead.endswith(stop[:place]) and behind.startswith(stop[place:]):
            return ahead.removesuffix(stop[:place])
    return None


def watch_stops(requests: Iterable[Request], checkpoint: Checkpoint, say: Callable[[str], None]) -> Iterator[Request]:
    """Passes requests on, and says of each stop that no output of this model can hold, once."""
    seen: set[tuple[str, bool]] = set()
    for request in requests:
        for stop in request.sampling.stop:
            ignores_eos = request.sampling.ignore_eos
            if (stop, ignores_eos) not in seen:
                seen.add((stop, ignores_eos))
                ends = frozenset() if ignores_eos else checkpoint.eos_token_ids
                if why := why_never(checkpoint.tokenizer, stop, ends):
                    say(f"stop {stop!r} can never match: {why}")
        yield request


def why_never(tokenizer: PreTrainedTokenizerBase, stop: str, eos_token_ids: frozenset[int]) -> str | None:
    """Why no output can hold a stop, where that is certain; rows end at `eos_token_ids`."""
    ends = [text for text, token in special_tokens(tokenizer).items() if token in eos_token_ids]
    early = next((text for text in ends if text in stop[:-1]), None)
    if early:
        return f"a row ends at {early}"
    if stop in decode(tokenizer, tokenizer(stop, add_special_tokens=False)["input_ids"], with_special=True):
        return None
    missing = [sign for sign in stop if sign not in _signs(tokenizer)]
    return f"the model has no token with {missing[0]!r}" if missing and not _has_bytes(tokenizer) else None


@lru_cache(maxsize=2)
def _signs(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """All characters that stand in tokens."""
    return frozenset("".join(tokenizer.get_vocab())) | {" "}


def _has_bytes(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether tokens can spell any text byte by byte."""
    vocab = tokenizer.get_vocab()
    return "<0x0A>" in vocab or "\u010a" in vocab  # as sentencepiece and byte-level BPE write a newline
