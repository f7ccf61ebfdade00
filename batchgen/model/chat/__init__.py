"""Conversations to exactly the token ids that a model was trained on, and its answers to text and reasoning.

A chat template renders; special tokens that the template writes are parsed, those in what people wrote stay text.
Knows nothing of files, batches or weights.
"""

from __future__ import annotations

from batchgen.model.chat.answers import Reply, refuse_unconstrained, split_reply, why_unconstrained
from batchgen.model.chat.chat import Chat, Rendered, make_chat, open_chat
from batchgen.model.chat.rows import Shorter, render_rows, shorten
from batchgen.model.chat.template import ChatTemplate

__all__ = [
    "Chat",
    "ChatTemplate",
    "Rendered",
    "Reply",
    "Shorter",
    "make_chat",
    "open_chat",
    "refuse_unconstrained",
    "render_rows",
    "shorten",
    "split_reply",
    "why_unconstrained",
]
