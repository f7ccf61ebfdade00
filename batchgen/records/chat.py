"""Conversations as rows contain them, and a run's options for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from batchgen.records.field_error import FieldError


@dataclass(frozen=True, slots=True)
class Message:
    """One message as given; `more` has its other fields: tool_calls, tool_call_id, name, …"""

    role: str
    content: str | list[dict[str, Any]] | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"role": self.role, "content": self.content, **self.more}

    @property
    def text(self) -> str:
        """The text of the content; parts are joined."""
        if isinstance(self.content, list):
            return "".join(part["text"] for part in self.content)
        return self.content or ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, and everything else that a row passes to the chat template.

    If neither of the last two fields is set, a conversation that ends with an assistant message is continued, and any
    other conversation gets the generation prompt.
    """

    messages: tuple[Message, ...]
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    @property
    def continues(self) -> bool:
        """Whether the answer continues the last message."""
        if self.continue_final_message is None:
            return not self.add_generation_prompt and self.messages[-1].role == "assistant"
        return self.continue_final_message

    @property
    def prompts(self) -> bool:
        """Whether the template adds the generation prompt."""
        return not self.continues if self.add_generation_prompt is None else self.add_generation_prompt

    @property
    def num_characters(self) -> int:
        return sum(len(message.text) for message in self.messages)


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """A run's options for conversations.

    `chat` turns a plain prompt into a user message; False keeps it as it is, None means that the user did not choose.
    `system` is added to conversations without a system message, and also turns plain prompts into conversations.
    `template` names one of the model's own templates, or a file. Raises `FieldError` if options conflict, or for a
    `system` that cannot be encoded.
    """

    chat: bool | None = None
    system: str | None = None
    template: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    split_reasoning: bool = True

    def __post_init__(self) -> None:
        if self.chat is False and self.system is not None:
            raise FieldError("{system} turns prompts into conversations, but {no_chat} is also given: choose one")
        if any("\ud800" <= sign <= "\udfff" for sign in self.system or ""):
            raise FieldError("{system} has a lone surrogate (half a character)")

    @property
    def wraps_prompts(self) -> bool:
        """Whether plain prompts become user messages."""
        return bool(self.chat) or self.system is not None
