"""Turn conversations into exactly the token ids that a model was trained on, and its answers into text and reasoning.

A chat template renders. Special tokens written by the template are parsed; those in messages stay plain text. Knows
nothing about files, batches or weights.
"""

from __future__ import annotations

from batchgen.model.chat.answers import Reply, split_constrained, split_reply
from batchgen.model.chat.chat import NO_TEMPLATE, Chat, Rendered, make_chat, open_chat
from batchgen.model.chat.rows import Shorter, render_rows, shorten
from batchgen.model.chat.template import ChatTemplate
from batchgen.model.chat.thoughts import begin_answers, thought_of

__all__ = [
    "NO_TEMPLATE",
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
