"""Conversations as rows give them, and what a run says about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from batchgen.records.field_error import FieldError


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it was given; `more` are its other fields: tool_calls, tool_call_id, name, …"""

    role: str
    content: str | list[dict[str, Any]] | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"role": self.role, "content": self.content, **self.more}

    @property
    def text(self) -> str:
        """The content's text, that of its parts in one."""
        if isinstance(self.content, list):
            return "".join(part["text"] for part in self.content)
        return self.content or ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, and what a row gives to the chat template beside them.

    Where neither of the last two is said, a conversation that ends with the assistant is continued, and any other one
    gets the generation prompt.
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
        """Whether the template is asked for the generation prompt."""
        return not self.continues if self.add_generation_prompt is None else self.add_generation_prompt

    @property
    def num_characters(self) -> int:
        return sum(len(message.text) for message in self.messages)


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What a run says about conversations.

    `chat` makes a plain prompt a user's message; False says that it shall stay as it is, None that nobody said.
    `system` goes before conversations that have none, and makes plain prompts conversations too. `template` is one of
    the model's own by name, or a file. Raises `FieldError` if they conflict.
    """

    chat: bool | None = None
    system: str | None = None
    template: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    split_reasoning: bool = True

    def __post_init__(self) -> None:
        if self.chat is False and self.system is not None:
            raise FieldError("{system} turns prompts into conversations, but {no_chat} is also given: choose one")

    @property
    def wraps_prompts(self) -> bool:
        """Whether a plain prompt is a user's message."""
        return bool(self.chat) or self.system is not None
