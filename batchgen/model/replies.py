"""Turn a finished row into a reply: its tokens as text, and an answer in a conversation split into its parts."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from batchgen.model.chat import Chat, Reply, split_constrained, split_reply
from batchgen.model.guarded import TokenizerFailure
from batchgen.model.stops import decode, decode_output
from batchgen.records import Sequence

if TYPE_CHECKING:
    from batchgen.model.checkpoint import Checkpoint


def read_reply(sequence: Sequence, checkpoint: Checkpoint, chat: Chat) -> Reply:
    """The reply of a row: empty if it failed. A row whose tokens cannot be decoded fails here."""
    if sequence.finish_reason == "error":
        return Reply("")
    try:
        text = decode_output(checkpoint.codec, sequence)
        answer = _answer(sequence, checkpoint) if sequence.num_thought_tokens else text
    except TokenizerFailure as failure:
        sequence.fail(str(failure))
        return Reply("")
    if not sequence.sampling.is_constrained:
        return split_reply(chat, sequence.output_ids, text, sequence.request)
    if sequence.thought is None or not chat.options.split_reasoning:
        return Reply(text, constrained=answer)
    return split_constrained(chat, sequence, sequence.thought, answer)


def forced_parts(sequence: Sequence, checkpoint: Checkpoint, text: str) -> tuple[tuple[int, int], ...]:
    """The (start, end) parts of the text that the constraint forced; none if decoded pieces do not add up to it."""
    if not sequence.forced:
        return ()
    first, places = sequence.num_thought_tokens, set(sequence.forced)
    numbered = enumerate(sequence.output_ids[first:], first)
    pieces, whole = [], ""
    for is_forced, group in groupby(numbered, key=lambda token: token[0] in places):
        start = len(whole)
        whole += decode(checkpoint.codec, [token for _, token in group])
        if is_forced and start < len(text):
            pieces.append((start, min(len(whole), len(text))))
    return tuple(pieces) if whole.startswith(text) else ()


def _answer(sequence: Sequence, checkpoint: Checkpoint) -> str:
    """What a row wrote after its thought, which is what its constraint applies to."""
    number = sequence.num_thought_tokens
    thought, rest = sequence.output_ids[:number], sequence.output_ids[number:]
    return decode_output(checkpoint.codec, replace(sequence, input_ids=sequence.input_ids + thought, output_ids=rest))
