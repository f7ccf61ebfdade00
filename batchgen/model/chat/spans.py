"""Which part of a rendered conversation each token comes from: the template, a role's name, what somebody wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from batchgen.records import Conversation

if TYPE_CHECKING:
    from batchgen.model.chat.chat import Chat

Part = Literal["template", "role", "content"]
Span = tuple[int, int, Part]
# What templates call a role, where they call it otherwise.
ALIASES = {"assistant": ("assistant", "model"), "user": ("user", "human"), "tool": ("tool", "ipython", "user")}


def find_spans(prompt: str, conversation: Conversation) -> Iterator[Span]:
    """Characters of roles and contents, in order; all others are the template's.

    A content is looked for behind the one before it, trimmed as templates do. One that the template left out or
    changed is not found, and counts as the template's.
    """
    end = 0
    for message in conversation.messages:
        text = message.text.strip()
        start = prompt.find(text, end) if text else -1
        if start < 0:
            continue
        names = "|".join(ALIASES.get(message.role, (message.role,)))
        roles = list(re.finditer(rf"(?<!\w)(?:{names})(?!\w)", prompt[end:start], re.IGNORECASE))
        if roles:
            yield end + roles[-1].start(), end + roles[-1].end(), "role"
        yield start, start + len(text), "content"
        end = start + len(text)
    if conversation.prompts and (asked := re.search(r"(?<!\w)(?:assistant|model)(?!\w)", prompt[end:], re.IGNORECASE)):
        yield end + asked.start(), end + asked.end(), "role"


def token_parts(chat: Chat, prompt: str, ids: Sequence[int], conversation: Conversation) -> list[Part]:
    """The part of each token; a token that reaches into a content is the content's."""
    offsets = chat.offsets(prompt, ids, conversation)
    parts: list[Part] = ["template"] * len(ids)
    for start, end, part in find_spans(prompt, chat.with_system(conversation)):
        for place, (first, last) in enumerate(offsets):
            if first < end and last > start:
                parts[place] = part
    return parts
