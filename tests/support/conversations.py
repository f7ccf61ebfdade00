"""Random conversations, and how transformers renders and encodes them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from transformers import PreTrainedTokenizerFast

from batchgen.model.chat import Chat
from batchgen.model.padding import encode
from batchgen.records import Conversation, Message, Request, SamplingParams, Sequence

PIECES = [
    "the", "cat", " ", " \n", "\n\n", "café", "東京", "\U0001f600", "a<b", "|>", "12", "def f(x):\n    ", "think",
    "  lead", "trail  ", "'s", "{'a': 1}", '"q"', "\\n", "> quoted", "{{ x }}", "{% if %}", "</b>", "x = [1]",
]  # fmt: skip
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds numbers.",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "integer"}, "ys": {"type": "array", "items": {"type": "string"}}},
        },
    },
}
CALL = [{"type": "function", "id": "abcdefghi", "function": {"name": "add", "arguments": {"x": 1}}}]


def write(random: Random) -> str:
    return "".join(random.choice(PIECES) + random.choice(["", " "]) for _ in range(random.randint(1, 8)))


def draw_conversation(random: Random, write: Callable[[Random], str] = write) -> Conversation:
    messages = [Message("system", write(random))] if random.random() < 0.4 else []
    for turn in reversed(range(random.randint(1, 3))):
        messages.append(Message("user", write(random)))
        if turn or random.random() < 0.3:
            more = {"reasoning_content": write(random)} if random.random() < 0.2 else {}
            messages.append(Message("assistant", write(random), more))
    if messages[-1].role == "user" and random.random() < 0.1:
        messages += [
            Message("assistant", None, {"tool_calls": CALL}),
            Message("tool", "3", {"tool_call_id": "abcdefghi"}),
        ]
    tools = [TOOL] if random.random() < 0.2 else None
    documents = [{"title": "a", "text": write(random)}] if random.random() < 0.1 else None
    return Conversation(tuple(messages), tools, documents)


def transformers_ids(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> list[int] | None:
    """Return the ids from `apply_chat_template`; None if the template refuses the conversation."""
    messages = conversation.messages
    try:
        ids: list[int] = tokenizer.apply_chat_template(
            [_as_later_versions_read(message.to_dict()) for message in messages],
            tools=conversation.tools,
            documents=conversation.documents,
            add_generation_prompt=conversation.prompts,
            continue_final_message=conversation.continues,
            tokenize=True,
            return_dict=False,
        )
    except Exception:  # noqa: BLE001 - a template can raise anything
        return None
    return ids


def _as_later_versions_read(message: dict[str, Any]) -> dict[str, Any]:
    """Drop null values, and put thoughts under the name that gpt-oss reads: transformers 5.17 does neither."""
    given = {key: value for key, value in message.items() if value is not None}
    return {"thinking": given["reasoning_content"], **given} if "reasoning_content" in given else given


def encode_rows(chat: Chat, conversations: list[Conversation]) -> list[Sequence]:
    """Encode the conversations as rows of a run, as they go to an engine."""
    sampling = SamplingParams()
    rows = [Request(index, str(index), "", sampling, conversation=row) for index, row in enumerate(conversations)]
    return encode(rows, chat.tokenizer, chat=chat)


def different_ids(chat: Chat, conversations: list[Conversation]) -> list[Conversation]:
    """Return the conversations whose ids differ from `apply_chat_template`'s, or that fail only in one of the two."""
    rows = encode_rows(chat, conversations)
    wanted = [transformers_ids(chat.tokenizer, conversation) for conversation in conversations]
    given = [None if row.error else row.input_ids for row in rows]
    return [row for row, ids, right in zip(conversations, given, wanted, strict=True) if ids != right]


def broken_by_marks(chat: Chat, special: tuple[str, ...], seed: object, number: int) -> list[Conversation]:
    """Return the conversations whose special ids or errors differ from those of the same conversations in plain words.

    The `number` drawn conversations are full of the text of special tokens, and of halves of it.
    """
    halves = [part for token in special for part in (token[: len(token) // 2], token[len(token) // 2 :])]
    marks = [*special, *halves, "cat", "a"]
    hostile, plain = _drawn(marks, seed, number), _drawn([f"w{place}" for place in range(len(marks))], seed, number)
    rows = zip(hostile, encode_rows(chat, hostile), encode_rows(chat, plain), strict=True)
    known = _special(chat.tokenizer)
    return [
        conversation
        for conversation, one, other in rows
        if (one.error, known(one.input_ids)) != (other.error, known(other.input_ids))
    ]


def _drawn(words: list[str], seed: object, number: int) -> list[Conversation]:
    """Draw conversations with these words. The same draws with as many other words differ only in the words."""
    random = Random(repr(seed))

    def write(random: Random) -> str:
        return "".join(random.choice(words) + random.choice(["", " "]) for _ in range(4))

    return [draw_conversation(random, write) for _ in range(number)]


def _special(tokenizer: PreTrainedTokenizerFast) -> Callable[[list[int]], list[int]]:
    added = tokenizer.added_tokens_decoder.items()
    special = {index for index, token in added if token.special and token.content != "<unk>"}
    return lambda ids: [index for index in ids if index in special]
