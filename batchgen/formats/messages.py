"""Read a row's messages into a `Conversation`, from the fields of OpenAI's chat API, transformers, or ShareGPT.

Every error names the field and the position in it. Knows nothing about templates or tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchgen.formats.json_values import is_deeper, parse_json
from batchgen.records import LONGEST_PROMPT, Conversation, Message
from batchgen.records.json_object import DuplicateKeyError

CHAT_FIELDS = ("messages", "conversations")
# Further fields that a row with messages may have.
BESIDE = ("tools", "documents", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")
ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "bing": "assistant", "bard": "assistant", "model": "assistant", "system": "system", "tool": "tool",
    "function_response": "tool", "observation": "tool",
}  # fmt: skip
MOST_LEVELS = 100


def is_conversation(value: object) -> bool:
    """Whether a value looks like messages: a list of objects with a role."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) for item in value)
        and ("role" in value[0] or "from" in value[0])
    )


def read_conversation(columns: Mapping[str, Any], name: str, prefix: str = "") -> Conversation:
    """Read the conversation in the field `name`, with its related fields. `prefix` is put before names in errors.

    Raises a one-line `ValueError`.
    """
    given = columns[name]
    place = f"{prefix}{name}"
    if given is None:
        raise ValueError(f"{place} is empty")
    if not isinstance(given, list):
        raise ValueError(f"{place} is not a list of messages")
    if not given:
        raise ValueError(f"{place} is an empty list")
    messages = tuple(_message(item, f"{place}[{number}]") for number, item in enumerate(given))
    size = sum(len(message.text) for message in messages)
    if size > LONGEST_PROMPT:
        raise ValueError(f"{place} has {size:,} characters, more than {LONGEST_PROMPT:,}")
    conversation = Conversation(
        messages,
        tools=_objects(columns, "tools", prefix),
        documents=_objects(columns, "documents", prefix),
        arguments=_arguments(columns, prefix),
        add_generation_prompt=_flag(columns, "add_generation_prompt", prefix),
        continue_final_message=_flag(columns, "continue_final_message", prefix),
    )
    if conversation.continues and conversation.prompts:
        raise ValueError(f"{prefix}add_generation_prompt and {prefix}continue_final_message cannot both be true")
    return conversation


def conversation_of_prompt(prompt: str, beside: Mapping[str, Any]) -> Conversation:
    """A plain prompt as a user message, with the related columns, whose cells may contain JSON.

    Raises a one-line `ValueError`.
    """
    columns = {**beside, "prompt": [{"role": "user", "content": prompt}]}
    return read_conversation(from_cells(columns, "prompt"), "prompt")


def from_cells(columns: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The columns of a table's row, with the messages and related fields parsed from the JSON in their cells."""
    parsed = dict(columns)
    for key in (name, *BESIDE):
        if isinstance(cell := columns.get(key), str):
            try:
                parsed[key] = parse_json(cell) if cell.strip() else None
            except ValueError as problem:
                raise ValueError(f"{key} is not valid JSON: {problem}") from None
    return parsed


def looks_like_messages(cell: object) -> bool:
    """Whether a cell contains messages as JSON."""
    if (
        not isinstance(cell, str)
        or not cell.lstrip().startswith("[")
        or ('"role"' not in cell and '"from"' not in cell)
    ):
        return False
    try:
        return is_conversation(parse_json(cell))
    except DuplicateKeyError:  # reported when the messages are read
        return True
    except ValueError:
        return False


def _message(item: object, place: str) -> Message:
    if not isinstance(item, dict):
        raise ValueError(f"{place} is not an object with role and content")
    if "from" in item and "role" not in item:
        role = SHAREGPT_ROLES.get(str(item["from"]))
        if role is None:
            raise ValueError(f"{place}.from {_shown(item['from'])} is not one of {', '.join(SHAREGPT_ROLES)}")
        item = {"role": role, "content": item.get("value")} | {
            key: value for key, value in item.items() if key not in ("from", "value", "role", "content")
        }
    role = item.get("role")
    if role not in ROLES:
        problem = f"{_shown(role)} is not one of {', '.join(ROLES)}" if "role" in item else "is missing"
        raise ValueError(f"{place}.role {problem}")
    more = {key: value for key, value in item.items() if key not in ("role", "content") and value is not None}
    calls = _tool_calls(more.get("tool_calls"), f"{place}.tool_calls")
    content = _content(item.get("content"), f"{place}.content", may_be_null=calls)
    for key, value in more.items():
        _check_text(value, f"{place}.{key}")
    return Message(role, content, more)


def _content(content: object, place: str, *, may_be_null: bool) -> str | list[dict[str, Any]] | None:
    if content is None and may_be_null:
        return None
    if content is None:
        raise ValueError(f"{place} is missing: only a message with tool_calls may omit it")
    if isinstance(content, str):
        _check_text(content, place)
        return content
    if not isinstance(content, list):
        raise ValueError(f"{place} is neither a string nor a list of text parts")
    if not content:
        raise ValueError(f"{place} is an empty list")
    return [_part(part, f"{place}[{number}]") for number, part in enumerate(content)]


def _part(part: object, place: str) -> dict[str, Any]:
    if not isinstance(part, dict):
        raise ValueError(f'{place} is not an object such as {{"type": "text", "text": "…"}}')
    kind = part.get("type")
    if kind != "text":
        raise ValueError(f"{place} is a part of type {_shown(kind)}: only text parts are supported")
    if not isinstance(part.get("text"), str):
        raise ValueError(f"{place}.text is not a string")
    _check_text(part["text"], f"{place}.text")
    return {key: value for key, value in part.items() if value is not None}


def _tool_calls(calls: object, place: str) -> bool:
    """Whether there are any tool calls, which are passed on unchanged. Raises `ValueError` for a malformed list."""
    if calls is None:
        return False
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise ValueError(f"{place} is not a list of objects")
    return bool(calls)


def _objects(columns: Mapping[str, Any], name: str, prefix: str) -> list[dict[str, Any]] | None:
    value = columns.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"{prefix}{name} is not a list of objects")
    _check_text(value, f"{prefix}{name}")
    return value


def _arguments(columns: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    value = columns.get("chat_template_kwargs")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f'{prefix}chat_template_kwargs is not an object such as {{"enable_thinking": false}}')
    _check_text(value, f"{prefix}chat_template_kwargs")
    return value


def _flag(columns: Mapping[str, Any], name: str, prefix: str) -> bool | None:
    value = columns.get(name)
    if not isinstance(value, bool | None):
        raise ValueError(f"{prefix}{name} is neither true nor false")
    return value


def _check_text(value: object, place: str) -> None:
    """Raise `ValueError` for a lone surrogate, and for values nested too deeply to be rendered."""
    if is_deeper(value, MOST_LEVELS):
        raise ValueError(f"{place} is nested deeper than {MOST_LEVELS} levels")
    level = [value]
    while level:
        item = level.pop()
        if isinstance(item, str):
            try:
                item.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError(f"a lone surrogate (half a character) at character {error.start} of {place}") from None
        elif isinstance(item, dict):
            level += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            level += item


def _shown(value: object) -> str:
    return repr(str(value)[:40])
