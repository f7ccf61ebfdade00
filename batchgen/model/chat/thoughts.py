"""A model's reasoning before its answer: whether the prompt has already begun it, and how to detect its end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from batchgen.model.chat.chat import Chat
from batchgen.model.chat.template import REASONING_FIELDS
from batchgen.records import Conversation, Request, Sequence, Thought

CHANNEL_MARKS = ("<|channel|>", "<|message|>")
FINAL = r"<\|channel\|>final[^<]*(?:<\|constrain\|>\w*)?"
IN_FINAL = re.compile(FINAL + r"<\|message\|>(?!.*(?:<\|channel\|>|<\|start\|>|<\|end\|>))", re.DOTALL)
UNKNOWN = (
    "the model's response template does not mark the beginning of an answer with a plain text, so the answer cannot "
    "be constrained: remove the constraint"
)


def speaks_in_channels(chat: Chat) -> bool:
    """Whether the model answers in channels, as gpt-oss does."""
    return all(mark in chat.control.ids for mark in CHANNEL_MARKS)


def ends_in_thought(prompt: str, conversation: Conversation, marks: tuple[str, str]) -> bool:
    """Whether an answer begins inside a thought, opened by the generation prompt or by the continued message."""
    opening, closing = marks
    if prompt.rstrip().endswith(opening):
        return True
    last = conversation.messages[-1].text
    return conversation.continues and last.rfind(opening) > last.rfind(closing)


def thought_of(chat: Chat, request: Request) -> Thought | None:
    """What the model may write before its answer; None if the answer begins with the first token.

    Raises `ValueError` if the beginning of the answer cannot be detected in what the model writes.
    """
    conversation = request.conversation
    if conversation is None:
        return None
    if speaks_in_channels(chat):
        is_final = conversation.continues and IN_FINAL.search(request.prompt)
        return None if is_final else Thought(CHANNEL_MARKS[1], header=FINAL)
    template = getattr(chat.tokenizer, "response_template", None)
    begins = _content_mark(template) if template else None
    if begins:
        return Thought(begins)
    marks = (_reasoning_marks(template) if template else None) or chat.reasoning_marks
    if marks is None:
        return None
    opening, closing = marks
    if not opening or ends_in_thought(request.prompt, conversation, (opening, closing)):
        return Thought(closing)
    is_over = conversation.continues or request.prompt.rstrip().endswith(closing)
    return None if is_over else Thought(closing, opening)


def _content_mark(template: Mapping[str, Any]) -> str | None:
    """The mark that precedes the answer in a response template; None if there is none."""
    return _literal(_field(template, "content"), "open")


def _reasoning_marks(template: Mapping[str, Any]) -> tuple[str, str] | None:
    """The marks that open ("" for none) and close a thought in a response template; None if it has no closing mark."""
    field = next((found for name in REASONING_FIELDS if (found := _field(template, name))), {})
    closing = _literal(field, "close")
    return (_literal(field, "open") or "", closing) if closing else None


def _field(template: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    fields = template.get("fields")
    found = fields.get(name) if isinstance(fields, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _literal(field: Mapping[str, Any], key: str) -> str | None:
    """A field's mark as text; None if it has none. Raises `ValueError` for a pattern or several texts."""
    given = field.get(key)
    if isinstance(given, list) and len(given) == 1:
        [given] = given
    if f"{key}_pattern" in field or (given is not None and not (isinstance(given, str) and given)):
        raise ValueError(UNKNOWN)
    return given


def begin_answers(chat: Chat, sequences: list[Sequence]) -> None:
    """Set what constrained rows may write before their answers. Rows for which that is unknown fail."""
    for sequence in sequences:
        if not sequence.is_finished and sequence.sampling.is_constrained:
            try:
                sequence.thought = thought_of(chat, sequence.request)
            except ValueError as error:
                sequence.fail(str(error))
