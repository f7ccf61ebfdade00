"""Split what a model said into parts: its reasoning, the text, its tool calls.

Uses the tokenizer's response template if it has one, otherwise gpt-oss's channels or the marks around the reasoning.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchgen.model.chat.chat import Chat
from batchgen.model.chat.responses import parse_in_time
from batchgen.model.chat.template import REASONING_FIELDS
from batchgen.model.chat.thoughts import CHANNEL_MARKS, ends_in_thought, speaks_in_channels
from batchgen.records import Request, Sequence, Thought
from batchgen.text import name_row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHANNEL = re.compile(
    r"(?:<\|start\|>assistant)?[^<]*<\|channel\|>(?P<name>\w+)[^<]*(?:<\|constrain\|>\w*)?<\|message\|>"
    r"(?P<text>.*?)(?P<end><\|end\|>|<\|call\|>|<\|return\|>|\Z)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer in parts; `reasoning` and `tool_calls` are None if there are none.

    If a constraint applied only to the text after the thought, `constrained` is that text, and `text` may include the
    thought.
    """

    text: str
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    constrained: str | None = None

    @property
    def answer(self) -> str:
        return self.text if self.constrained is None else self.constrained


def split_thought(text: str, marks: tuple[str, str], *, is_open: bool = False) -> Reply:
    """Split an answer into reasoning and text. `is_open` means that the prompt ends inside the thought.

    If the thought was cut short, the text is empty.
    >>> split_thought("<think>\\nhm\\n</think>\\n\\nYes.", ("<think>", "</think>"))
    Reply(text='Yes.', reasoning='hm', tool_calls=None, constrained=None)
    """
    opening, closing = marks
    begun = text.lstrip()
    if begun.startswith(opening):
        begun = begun[len(opening) :]
    elif not is_open:
        return Reply(text)
    thought, _, rest = begun.partition(closing)
    return Reply(rest.lstrip(), thought.strip())


def split_channels(text: str) -> Reply:
    """Split an answer in channels into reasoning (`analysis`) and text (`final`, and anything in no channel).
    >>> split_channels("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.")
    Reply(text='Yes.', reasoning='Hm.', tool_calls=None, constrained=None)
    """
    thoughts, texts, end = [], [], 0
    for match in CHANNEL.finditer(text):
        texts.append(text[end : match.start()])
        if match["name"] == "analysis":
            thoughts.append(match["text"].strip())
        elif match["name"] == "final":
            texts.append(match["text"])
        else:  # a tool call, or the text before one: unchanged
            texts.append(match[0])
        end = match.end()
    rest = text[end:]
    texts.append("" if CHANNEL_MARKS[0] in rest or rest.strip() == "<|start|>assistant" else rest)
    return Reply("".join(texts), "\n".join(thoughts) if thoughts else None)


def parse_by_template(chat: Chat, text: str, request: Request) -> Reply | None:
    """The parts according to the tokenizer's response template; None if it does not fit or takes too long."""
    assert request.conversation
    tools = request.conversation.tools
    try:
        parsed = parse_in_time(chat.tokenizer.response_template, text, request.prompt, tools)
    except TimeoutError:
        chat.say_once(
            f"warning: the model's response template does not finish parsing the answer to {name_row(request.id)}: "
            "such answers are not split"
        )
        return None
    except Exception:  # noqa: BLE001 - a model's own patterns may raise anything; the text must not be lost
        return None
    reasoning = next((parsed[name] for name in REASONING_FIELDS if parsed.get(name) is not None), None)
    content = parsed.get("content")
    calls = parsed.get("tool_calls")
    return Reply(
        content if isinstance(content, str) else "",
        reasoning if isinstance(reasoning, str) else None,
        calls if isinstance(calls, list) and calls else None,
    )


def split_reply(chat: Chat, ids: list[int], text: str, request: Request) -> Reply:
    """Split an answer into parts. `ids` are its tokens, `text` their text without special tokens.

    `request` has the conversation and its rendered prompt.
    """
    conversation, stops, tokenizer = request.conversation, request.sampling.stop, chat.tokenizer
    if conversation is None or not chat.options.split_reasoning:
        return Reply(text)
    if getattr(tokenizer, "response_template", None) is not None:
        raw = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        return parse_by_template(chat, cut_at_stops(raw, stops), request) or Reply(text)
    if speaks_in_channels(chat):
        return split_channels(cut_at_stops(decode_with_marks(tokenizer, ids, chat.control.ids), stops))
    if (marks := chat.reasoning_marks) is None:
        return Reply(text)
    if any(mark in chat.control.ids for mark in marks):
        text = cut_at_stops(decode_with_marks(tokenizer, ids, marks), stops)
    return split_thought(text, marks, is_open=ends_in_thought(request.prompt, conversation, marks))


def split_constrained(chat: Chat, sequence: Sequence, thought: Thought, text: str) -> Reply:
    """The reply of a row whose constraint began after its thought: exactly `text`, and the reasoning."""
    number = sequence.num_thought_tokens
    if not number:
        return Reply(text)
    is_marked = thought.header is None
    marks = (thought.closing, thought.opening, *(chat.reasoning_marks or ())) if is_marked else chat.control.ids
    ids = sequence.output_ids[:number]
    shown = decode_with_marks(chat.tokenizer, ids, {mark for mark in marks if mark in chat.control.ids})
    said = cut_at_stops(shown, sequence.sampling.stop)
    if is_marked:
        begun = said.strip().removeprefix(thought.opening or "")
        return Reply(text, begun.rpartition(thought.closing)[0].strip() if thought.closing in begun else begun.strip())
    parts = split_channels(said)
    return Reply(text, "\n".join(part for part in (parts.reasoning, parts.text.strip()) if part))


def cut_at_stops(text: str, stops: Collection[str]) -> str:
    """The text up to the first stop in it."""
    cuts = [text.find(stop) for stop in stops]
    return text[: min((cut for cut in cuts if cut >= 0), default=len(text))]


def decode_with_marks(tokenizer: PreTrainedTokenizerBase, ids: Rows[int], marks: Collection[str]) -> str:
    """The text of token ids without special tokens, except these marks."""
    shown = {tokenizer.convert_tokens_to_ids(mark): mark for mark in marks}
    pieces: list[str] = []
    piece: list[int] = []
    for index in ids:
        if index in shown:
            pieces += [_decode(tokenizer, piece), shown[index]]
            piece = []
        else:
            piece.append(index)
    return "".join([*pieces, _decode(tokenizer, piece)])


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)) if ids else ""
