"""Rows of messages: which ones are read, in every format, and what is wrong with the others."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchgen.records import Request
from tests.support.reading import read

HI = [{"role": "user", "content": "hi"}]


def read_rows(tmp_path: Path, *rows: object, **options: str) -> list[Request]:
    content = "".join(json.dumps(row) + "\n" for row in rows)
    return read(tmp_path / "rows.jsonl", content.encode(), **options)


def dicts(request: Request) -> list[dict[str, object]]:
    return [message.to_dict() for message in request.messages]


def test_messages_are_kept_as_they_came(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": "hi", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "3", "tool_call_id": "1"},
    ]
    [row] = read_rows(tmp_path, {"messages": messages, "topic": "x"})
    assert (row.error, dicts(row), row.metadata, row.prompt) == (None, messages, {"topic": "x"}, "")


def test_what_stands_beside_messages_goes_to_the_template(tmp_path: Path) -> None:
    beside = {"tools": [{"type": "function"}], "documents": [{"text": "a"}], "add_generation_prompt": False}
    row = {"messages": HI, **beside, "chat_template_kwargs": {"a": 1}, "continue_final_message": False}
    [request] = read_rows(tmp_path, row)
    told = request.conversation
    assert told is not None
    assert {name: getattr(told, name) for name in beside} == beside
    assert (told.arguments, told.continue_final_message, request.metadata) == ({"a": 1}, False, {})


def test_sharegpt_conversations_are_messages(tmp_path: Path) -> None:
    told = [{"from": "system", "value": "s"}, {"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]
    [row] = read_rows(tmp_path, {"conversations": told})
    assert dicts(row) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
    ]


def test_field_names_another_column(tmp_path: Path) -> None:
    plain, told = read_rows(tmp_path, {"talk": "hi"}, {"talk": HI}, field="talk")
    assert (plain.prompt, plain.conversation, dicts(told)) == ("hi", None, HI)


def test_messages_win_over_a_prompt_but_other_values_of_that_name_do_not(tmp_path: Path) -> None:
    told, plain = read_rows(tmp_path, {"prompt": "a", "messages": HI}, {"prompt": "a", "messages": 3})
    assert (dicts(told), told.metadata) == (HI, {"prompt": "a"})
    assert (plain.prompt, plain.metadata) == ("a", {"messages": 3})


@pytest.mark.parametrize(("column", "field"), [("messages", None), ("talk", "talk")])
def test_a_cell_of_csv_holds_messages_as_json(tmp_path: Path, column: str, field: str | None) -> None:
    cell = json.dumps(HI).replace('"', '""')
    tools = '[{""type"": ""function""}]'
    content = f'{column},tools\n"{cell}","{tools}"\n"{cell}",\n'
    first, second = read(tmp_path / "rows.csv", content.encode(), field=field)
    assert (dicts(first), dicts(second)) == (HI, HI)
    assert first.conversation is not None
    assert first.conversation.tools == [{"type": "function"}]


def test_parquet_holds_messages_as_lists_of_structs(tmp_path: Path) -> None:
    messages = [*HI, {"role": "assistant", "content": "yes", "name": "Bo"}]
    file = BytesIO()
    pq.write_table(pa.table({"messages": [messages, HI]}), file)
    first, second = read(tmp_path / "rows.parquet", file.getvalue())
    assert (dicts(first), dicts(second)) == (messages, HI)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": "hi"}, "messages is not a list of messages"),
        ({"messages": []}, "messages is an empty list"),
        ({"messages": ["hi"]}, "messages[0] is not an object with role and content"),
        ({"messages": [{"content": "a"}]}, "messages[0].role is missing"),
        (
            {"messages": [*HI, {"role": "bot", "content": "a"}]},
            "messages[1].role 'bot' is not one of system, developer, user, assistant, tool",
        ),
        (
            {"messages": [{"role": "user"}]},
            "messages[0].content is missing: only a message with tool_calls may omit it",
        ),
        (
            {"messages": [{"role": "user", "content": 1}]},
            "messages[0].content is neither a string nor a list of text parts",
        ),
        ({"messages": None}, "messages is empty"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content is an empty list"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0] is a part of type 'image_url': only text parts are supported",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            "messages[0].content[0].text is not a string",
        ),
        (
            {"messages": [{"role": "user", "content": "a\ud83e"}]},
            "a lone surrogate (half a character) at character 1 of messages[0].content",
        ),
        ({"messages": HI, "tools": {}}, "tools is not a list of objects"),
        ({"messages": HI, "documents": ["a"]}, "documents is not a list of objects"),
        (
            {"messages": HI, "chat_template_kwargs": []},
            'chat_template_kwargs is not an object such as {"enable_thinking": false}',
        ),
        ({"messages": HI, "add_generation_prompt": "yes"}, "add_generation_prompt is neither true nor false"),
        (
            {"messages": HI, "add_generation_prompt": True, "continue_final_message": True},
            "add_generation_prompt and continue_final_message cannot both be true",
        ),
        (
            {"conversations": [{"from": "alien", "value": "a"}]},
            "conversations[0].from 'alien' is not one of human, user, gpt, chatgpt, assistant, bing, bard, model, "
            "system, tool, function_response, observation",
        ),
    ],
)
def test_what_is_wrong_with_messages_names_its_place(tmp_path: Path, row: object, problem: str) -> None:
    bad, good = read_rows(tmp_path, row, {"messages": HI})
    assert bad.error == f"rows.jsonl:1: {problem}"
    assert good.error is None


def test_a_pipe_of_messages_is_json_lines(tmp_path: Path) -> None:
    content = json.dumps({"messages": HI}).encode() + b"\n"
    [row] = read(tmp_path / "rows", content)
    assert dicts(row) == HI
