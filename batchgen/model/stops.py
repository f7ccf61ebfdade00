"""Find where generated text ends: before a stop, which is not part of the text.

A stop is searched in the text as it will be written: decoded after its prompt, without special tokens. A stop that
contains a special token is searched in the text with special tokens. Knows nothing about engines or logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

from batchgen.model.guarded import is_choke
from batchgen.records import Request, Sequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from batchgen.model.checkpoint import Checkpoint

CONTEXT = 8  # number of prompt tokens that a text is decoded after


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: list[int], *, with_special: bool = False) -> str:
    """The text of token ids with spaces exactly as they are; special tokens only if `with_special`."""
    text = tokenizer.decode(token_ids, skip_special_tokens=not with_special, clean_up_tokenization_spaces=False)
    return str(text)


@lru_cache(maxsize=8)
def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Ids of the special tokens, which decoding omits, by their text."""
    added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return {text: token for text, token in (named | added).items() if text}


@dataclass(frozen=True, slots=True)
class Stops:
    """Stops prepared for a tokenizer: `special` are the ids that decoding omits. `marked` are the stops that contain
    such a token, each with the first one's id and the text before it. `reach` is the most tokens that a stop can have.
    """

    special: frozenset[int]
    marked: tuple[tuple[str, int, str], ...]
    reach: int

    def last_real(self, token_ids: list[int], number: int) -> list[int]:
        """The last tokens that decoding does not omit, at most `number`."""
        return list(islice((token for token in reversed(token_ids) if token not in self.special), number))[::-1]


@lru_cache(maxsize=1024)
def stops_of(tokenizer: PreTrainedTokenizerBase, stops: tuple[str, ...]) -> Stops:
    """Prepare stops for the search. Each token stands for at least one byte, which bounds `reach`."""
    special, marked = special_tokens(tokenizer), []
    for stop in stops:
        held = [text for text in special if text in stop]
        if held:
            first = min(held, key=lambda text: (stop.find(text), -len(text)))
            marked.append((stop, special[first], stop[: stop.find(first)]))
    reach = max((len(stop.encode()) for stop in stops), default=0)
    return Stops(frozenset(special.values()), tuple(marked), reach)


def output_text(tokenizer: PreTrainedTokenizerBase, sequence: Sequence) -> str:
    """The generated text, including the stop that ended it.

    It is decoded after its prompt, because some tokenizers drop the space before a text's first token.
    """
    prompt_ids = stops_of(tokenizer, ()).last_real(sequence.input_ids, CONTEXT)
    prompt, whole = decode(tokenizer, prompt_ids), decode(tokenizer, prompt_ids + sequence.output_ids)
    return whole[len(prompt) :] if whole.startswith(prompt) else decode(tokenizer, sequence.output_ids)


def decode_output(tokenizer: PreTrainedTokenizerBase, sequence: Sequence) -> str:
    """The generated text up to the stop or the token that ended it."""
    sampling, output_ids = sequence.sampling, sequence.output_ids
    text = output_text(tokenizer, sequence)
    texts = [text, *(text[: text.find(stop)] for stop in sampling.stop if stop in text)]
    if sequence.finish_reason == "stop" and output_ids and output_ids[-1] in sampling.stop_token_ids:
        texts.append(output_text(tokenizer, replace(sequence, output_ids=output_ids[:-1])))
    texts += _ahead_of_marked(tokenizer, sequence, 0)
    return min(texts, key=len)


def ends_in_stop(tokenizer: PreTrainedTokenizerBase, sequence: Sequence) -> bool:
    """Whether the last token completed a stop. Looks only at the last tokens: earlier ones were checked before."""
    if not sequence.sampling.stop:
        return False
    stops = stops_of(tokenizer, sequence.sampling.stop)
    tail = stops.last_real(sequence.output_ids, stops.reach + 1)  # some tokenizers drop the first token's space
    text = decode(tokenizer, tail) if len(tail) > stops.reach else output_text(tokenizer, sequence)
    if any(stop in text for stop in sequence.sampling.stop):
        return True
    start = max(0, sequence.num_output_tokens - stops.reach)
    return next(_ahead_of_marked(tokenizer, sequence, start), None) is not None


def _ahead_of_marked(tokenizer: PreTrainedTokenizerBase, sequence: Sequence, start: int) -> Iterator[str]:
    """The text before each stop with a special token, if that token is at output position `start` or later."""
    output_ids = sequence.output_ids
    for stop, token, beginning in stops_of(tokenizer, sequence.sampling.stop).marked:
        for at in (at for at in range(start, len(output_ids)) if output_ids[at] == token):
            ahead = output_text(tokenizer, replace(sequence, output_ids=output_ids[:at]))
            behind = decode(tokenizer, output_ids[at:], with_special=True)
            if ahead.endswith(beginning) and behind.startswith(stop.removeprefix(beginning)):
                yield ahead.removesuffix(beginning)
                break


def watch_stops(requests: Iterable[Request], checkpoint: Checkpoint, say: Callable[[str], None]) -> Iterator[Request]:
    """Pass requests on, and report once each stop that no output of this model can contain."""
    seen: set[tuple[str, bool]] = set()
    for request in requests:
        for stop in request.sampling.stop:
            ignores_eos = request.sampling.ignore_eos
            if (stop, ignores_eos) not in seen:
                seen.add((stop, ignores_eos))
                ends = frozenset() if ignores_eos else checkpoint.eos_token_ids
                if why := why_never(checkpoint.codec, stop, ends):
                    say(f"stop {stop!r} can never match: {why}")
        yield request


def why_never(tokenizer: PreTrainedTokenizerBase, stop: str, eos_token_ids: frozenset[int]) -> str | None:
    """Why no output can ever contain a stop; None if that is not certain. Rows end at `eos_token_ids`."""
    ends = [text for text, token in special_tokens(tokenizer).items() if token in eos_token_ids]
    early = next((text for text in ends if text in stop[:-1]), None)
    if early:
        return f"a row ends at {early}"
    try:
        ids = tokenizer(stop, add_special_tokens=False)["input_ids"]
    except BaseException as error:
        if not is_choke(error):
            raise
        return None
    if stop in decode(tokenizer, ids, with_special=True):
        return None
    missing = [sign for sign in stop if sign not in _signs(tokenizer)]
    return f"the model has no token with {missing[0]!r}" if missing and not _has_bytes(tokenizer) else None


@lru_cache(maxsize=2)
def _signs(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """All characters that occur in tokens, and the space."""
    return frozenset("".join(tokenizer.get_vocab())) | {" "}


def _has_bytes(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether tokens can spell any text byte by byte."""
    vocab = tokenizer.get_vocab()
    return "<0x0A>" in vocab or "\u010a" in vocab  # as sentencepiece and byte-level BPE write a newline
