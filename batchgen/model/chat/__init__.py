"""Conversations to exactly the token ids that a model was trained on, and its answers to text and reasoning.

A chat template renders; special tokens that the template writes are parsed, those in what people wrote stay text.
Knows nothing of files, batches or weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from batchgen.model.chat.control import ControlTokens
from batchgen.model.chat.template import ChatTemplate
from batchgen.model.chat.turns import Turns, find_marks, find_turns
from batchgen.records import LONGEST_PROMPT, Conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Chat", "ChatTemplate", "Rendered", "make_chat", "templates_of"]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text and as token ids, or why it is neither."""

    prompt: str = ""
    input_ids: tuple[int, ...] = ()
    error: str | None = None


class Chat:
    """A chat template and the tokenizer that its text goes through."""

    def __init__(self, template: ChatTemplate, tokenizer: PreTrainedTokenizerBase) -> None:
        self.template = template
        self.tokenizer = tokenizer

    @cached_property
    def turns(self) -> Turns | None:
        return find_turns(self.template)

    @cached_property
    def reasoning_marks(self) -> tuple[str, str] | None:
        """What opens and closes a thought, where the template or the tokenizer has marks for it."""
        source = "\0".join(self.template.sources.values())
        return find_marks(source, {token.content for token in self.tokenizer.added_tokens_decoder.values()})

    @cached_property
    def control(self) -> ControlTokens:
        """Special tokens, and added ones that open or close turns without being declared special."""
        glue = self.turns.glue if self.turns else ""
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values()}
        marks = self.reasoning_marks or ()
        return ControlTokens(self.tokenizer, frozenset(token for token in added - {*marks} if token in glue))

    def encode(self, conversations: list[Conversation], *, parse_special: bool = False) -> list[Rendered]:
        """Text and token ids of each conversation, in order. Text that looks like a special token stays text, unless
        `parse_special` is set.
        """
        rows = [self._render(conversation, parse_special) for conversation in conversations]
        texts = [row.prompt for row in rows if not row.error and not row.input_ids]
        ids = iter(self._tokenize(texts, parse_special))
        return [row if row.error or row.input_ids else Rendered(row.prompt, tuple(next(ids))) for row in rows]

    def _render(self, conversation: Conversation, parse_special: bool) -> Rendered:
        """The text; token ids too where they need more than the tokenizer."""
        try:
            if parse_special or not self.control.is_in(conversation):
                return _bounded(self.template.render(conversation))
            rendered = self._render_hidden(conversation)
            bounded = _bounded(self.control.show(rendered))
            return bounded if bounded.error else Rendered(bounded.prompt, tuple(self.control.encode(rendered)))
        except ValueError as problem:
            return Rendered(error=str(problem))

    def _render_hidden(self, conversation: Conversation) -> str:
        """Rendered with text of special tokens hidden.

        Marks of a thought in the assistant's own messages are shown to a template that takes the thought out.
        """
        rendered = self.template.render(self.control.hide(conversation))
        marks = tuple(mark for mark in self.reasoning_marks or () if mark in self.control.ids)
        said = (message.text for message in conversation.messages if message.role == "assistant")
        if marks and any(mark in text for text in said for mark in marks):
            try:
                shown = self.template.render(self.control.hide(conversation, keep=marks))
            except ValueError:
                return rendered
            return shown if self.control.own(shown) == self.control.own(rendered) else rendered
        return rendered

    def _tokenize(self, texts: list[str], parse_special: bool) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(
            texts,
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            split_special_tokens=False,
            verbose=False,
        )
        rows: list[list[int]] = encoded["input_ids"]
        if parse_special or not self.control.are_made_of_other_text:
            return rows
        pairs = zip(rows, texts, strict=True)
        return [ids if self.control.are_own(ids, text) else self.control.encode(text) for ids, text in pairs]

    @cached_property
    def closing_token_id(self) -> int | None:
        """The token that the template closes the assistant's turn with; None where it is plain text."""
        closing = self.turns.closing.lstrip() if self.turns else ""
        added = {token.content: index for index, token in self.tokenizer.added_tokens_decoder.items()}
        matching = [token for token in added if token and not token.isspace() and closing.startswith(token)]
        return added[max(matching, key=len)] if matching else None


def make_chat(
    tokenizer: PreTrainedTokenizerBase,
    chosen: Mapping[str, str] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Chat | None:
    """The chat template of a tokenizer, or the `chosen` one, with the run's arguments; None where there is none."""
    sources = chosen or templates_of(tokenizer)
    if not sources:
        return None
    variables = {**tokenizer.special_tokens_map, **(arguments or {})}
    return Chat(ChatTemplate(sources, variables=variables), tokenizer)


def templates_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """A tokenizer's chat templates by name; the only one of most is `default`."""
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, Mapping):
        return dict(own)
    return {"default": own} if own else {}


def _bounded(prompt: str) -> Rendered:
    if len(prompt) > LONGEST_PROMPT:
        return Rendered(error=f"the rendered prompt has {len(prompt):,} characters, more than {LONGEST_PROMPT:,}")
    return Rendered(prompt)
