"""Conversations to exactly the token ids that a model was trained on, and its answers to text and reasoning.

A chat template renders; special tokens that the template writes are parsed, those in what people wrote stay text.
Knows nothing of files, batches or weights.
"""

from __future__ import annotations

from batchgen.model.chat.answers import Reply, split_constrained, split_reply
from batchgen.model.chat.chat import Chat, Rendered, make_chat, open_chat
from batchgen.model.chat.rows import Shorter, render_rows, shorten
from batchgen.model.chat.template import ChatTemplate
from batchgen.model.chat.thoughts import begin_answers, thought_of

__all__ = [
    "Chat",
    "ChatTemplate",
    "Rendered",
    "Reply",
    "Shorter",
    "begin_answers",
    "make_chat",
    "open_chat",
    "render_rows",
    "shorten",
    "split_constrained",
    "split_reply",
    "thought_of",
]
