"""Find which part of a rendered conversation each token comes from: the template, a role's name, or a message."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from batchgen.records import Conversation

if TYPE_CHECKING:
    from batchgen.model.chat.chat import Chat

Part = Literal["template", "role", "content"]
Span = tuple[int, int, Part]
# Other names that templates use for a role.
ALIASES = {"assistant": ("assistant", "model"), "user": ("user", "human"), "tool": ("tool", "ipython", "user")}


def find_spans(prompt: str, conversation: Conversation) -> Iterator[Span]:
    """The character spans of roles and contents, in order; all other characters belong to the template.

    Each content is searched after the previous one, trimmed as templates do. A content that the template omits or
    changes is not found, and counts as part of the template.
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
    """The part that each token belongs to; a token that overlaps a content belongs to the content."""
    offsets = chat.offsets(prompt, ids, conversation)
    parts: list[Part] = ["template"] * len(ids)
    for start, end, part in find_spans(prompt, chat.with_system(conversation)):
        for place, (first, last) in enumerate(offsets):
            if first < end and last > start:
                parts[place] = part
    return parts
