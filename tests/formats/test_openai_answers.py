"""Answers to OpenAI requests in OpenAI's format, read back with OpenAI's own types."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from batchgen.formats.openai_batch import CHAT, COMPLETIONS
from batchgen.formats.reading import Source, read_requests
from batchgen.formats.writing import WRITERS, WriteOptions
from batchgen.records import Logprobs, Request, Result
from tests.support.command import records, run
from tests.support.results import result_of

HI = [{"role": "user", "content": "My dog is"}]
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def request(custom_id: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    natural: dict[str, Any] = {"messages": HI} if url == CHAT else {"prompt": "My dog is"}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "m", **natural, **body}}


def read(folder: Path, *requests: dict[str, Any]) -> list[Request]:
    path = folder / "batch.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in requests))
    return list(read_requests([Source(path.name, path)]))


def write(*results: Result) -> list[dict[str, Any]]:
    stream = io.BytesIO()
    WRITERS["openai-batch"](results, stream, WriteOptions())
    return [json.loads(line) for line in stream.getvalue().splitlines()]


# In.


def test_a_chat_request_is_a_conversation_with_the_bodys_options(tmp_path: Path) -> None:
    beside = {"tools": [{"type": "function"}], "chat_template_kwargs": {"a": 1}, "continue_final_message": False}
    harmless = {"response_format": {"type": "text"}, "tool_choice": "auto", "stream": False, "user": "u"}
    [row] = read(tmp_path, request("a", max_completion_tokens=7, n=2, temperature=1, **beside, **harmless))
    assert (row.id, row.error, row.endpoint, row.metadata) == ("a", None, CHAT, {})
    assert row.conversation is not None
    assert [message.to_dict() for message in row.messages] == HI
    assert (row.conversation.tools, row.conversation.arguments) == ([{"type": "function"}], {"a": 1})
    assert (row.sampling.max_new_tokens, row.sampling.num_samples) == (7, 2)


def test_arguments_of_tool_calls_are_values_for_the_template(tmp_path: Path) -> None:
    def calls(arguments: object) -> list[dict[str, Any]]:
        return [{"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}]

    messages = [*HI, {"role": "assistant", "content": None, "tool_calls": calls('{"x": 1}')}, *HI]
    [row] = read(tmp_path, request("a", messages=messages))
    assert row.messages[1].more["tool_calls"] == calls({"x": 1})


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        (request("a", messages=[]), "body.messages is an empty list"),
        (request("a", messages=[{"role": "user", "content": 1}]), "body.messages[0].content is neither a string"),
        (request("a", tools={}), "body.tools is not a list of objects"),
        (request("a", tool_choice="required"), "body.tool_choice is not supported"),
        (request("a", response_format={"type": "xml"}), "body.response_format"),
        (request("a", prompt="x"), "body.prompt is not supported"),
        (request("a", COMPLETIONS, messages=HI), "body.messages is not supported"),
        (request("a", "/v1/embeddings"), "url is neither /v1/completions nor /v1/chat/completions"),
    ],
)
def test_what_cannot_be_done_is_named(tmp_path: Path, item: dict[str, Any], problem: str) -> None:
    bad, good = read(tmp_path, item, request("z"))
    assert problem in (bad.error or "")
    assert good.error is None


# Out.


def test_a_chat_is_answered_with_a_message() -> None:
    result = result_of("yes", id="a", reasoning="hm", messages=HI, endpoint=CHAT)
    [answer] = write(result)
    body = answer["response"]["body"]
    assert body["object"] == "chat.completion"
    [choice] = body["choices"]
    assert choice["message"] == {
        "role": "assistant", "content": "yes", "refusal": None, "reasoning_content": "hm",
    }  # fmt: skip


def test_tool_calls_are_as_openai_has_them() -> None:
    calls = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
    [answer] = write(result_of("", index=0, finish_reason="stop", tool_calls=calls, messages=HI, endpoint=CHAT))
    [choice] = answer["response"]["body"]["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "call_0_0_0", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    ]


# In the same format.


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    path = tmp_path / "batch.jsonl"
    samples = {"n": 2, "temperature": 1}
    items = [request("a"), request("b", COMPLETIONS, **samples), request("c", messages=[]), request("d", **samples)]
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    return path


def test_requests_of_openai_are_answered_in_kind(tmp_path: Path, batch: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert run(batch, "--chat-template", tmp_path / "t.jinja", "-o", out).exit_code == 3
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    failures = [json.loads(line) for line in (tmp_path / "out.errors.jsonl").read_text().splitlines()]
    assert [answer["custom_id"] for answer in answers] == ["a", "b", "d"]
    assert [failure["custom_id"] for failure in failures] == ["c"]


def test_in_a_pipe_failures_stand_among_the_others(tmp_path: Path, batch: Path) -> None:
    lines = records(run("--chat-template", tmp_path / "t.jinja", stdin=batch.read_bytes()))
    assert [line["custom_id"] for line in lines] == ["a", "b", "c", "d"]
    assert [line["error"] is None for line in lines] == [True, True, False, True]


def test_jsonl_that_is_asked_for_is_ours(tmp_path: Path, batch: Path) -> None:
    rows = records(run(batch, "--chat-template", tmp_path / "t.jinja", "--format", "jsonl"))
    assert [row["id"] for row in rows] == ["a", "b", "b", "c", "d", "d"]
    assert rows[0]["messages"] == HI


def test_a_finished_file_in_kind_is_known_to_be_complete(tmp_path: Path, batch: Path) -> None:
    command = [batch, "--chat-template", tmp_path / "t.jinja", "-o", tmp_path / "out.jsonl"]
    run(*command)
    assert "is complete" in run(*command, "--resume").stderr


def test_errors_of_another_run_are_not_written_over(tmp_path: Path, batch: Path) -> None:
    old = tmp_path / "out.errors.jsonl"
    old.write_text("old")
    result = run(batch, "--chat-template", tmp_path / "t.jinja", "-o", tmp_path / "out.jsonl")
    assert result.exit_code == 1
    assert "out.errors.jsonl has appeared or changed since the run began: move it away" in result.stderr
    assert old.read_text() == "old"


def test_openais_own_types_read_the_answers(tmp_path: Path, batch: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(batch, "--chat-template", tmp_path / "t.jinja", "-o", out)
    first, second, third = (json.loads(line)["response"]["body"] for line in out.read_text().splitlines())
    chat = ChatCompletion.model_validate(first, strict=True)
    assert (chat.choices[0].message.content, chat.choices[0].finish_reason) == (" a very nice dog.", "length")
    assert chat.usage is not None
    assert chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens
    assert len(Completion.model_validate(second, strict=True).choices) == 2
    assert len(ChatCompletion.model_validate(third, strict=True).choices) == 2


# Log-probabilities.

LIKELY = Logprobs(
    (845, 447), (" very", "\ufffd"), (-0.5, -1.5), (((845, -0.5), (257, -1.25)), ((1, -0.25), (2, -0.75))),
    ((" very", " a"), ("\ufffd", "\ufffd")),
)  # fmt: skip


def test_a_text_request_names_a_number_of_alternatives(tmp_path: Path) -> None:
    rows = read(tmp_path, request("a", COMPLETIONS, logprobs=3), request("b", COMPLETIONS, logprobs=False))
    assert [(row.error, row.sampling.logprobs) for row in rows] == [(None, 3), (None, None)]


@pytest.mark.parametrize(
    ("body", "number"),
    [({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 4}, 4), ({"logprobs": False}, None), ({}, None)],
    ids=str,
)
def test_a_chat_request_has_a_switch_and_a_number(tmp_path: Path, body: dict[str, Any], number: int | None) -> None:
    [row] = read(tmp_path, request("a", **body))
    assert (row.error, row.sampling.logprobs) == (None, number)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"top_logprobs": 4}, "body.top_logprobs needs body.logprobs true"),
        ({"logprobs": 3}, "body.logprobs must be true or false"),
        ({"logprobs": True, "top_logprobs": 30}, "body.top_logprobs 30 is not in [0, 20]"),
    ],
    ids=str,
)
def test_a_chat_request_that_asks_otherwise_fails_by_name(tmp_path: Path, body: dict[str, Any], problem: str) -> None:
    [row] = read(tmp_path, request("a", **body))
    assert row.error is not None
    assert problem in row.error


def test_logprobs_of_a_text_stand_side_by_side() -> None:
    [answer] = write(result_of(endpoint=COMPLETIONS, logprobs=LIKELY))
    [choice] = answer["response"]["body"]["choices"]
    assert choice["logprobs"] == {
        "tokens": [" very", "\ufffd"],
        "token_logprobs": [-0.5, -1.5],
        "top_logprobs": [{" very": -0.5, " a": -1.25}, {"\ufffd": -0.25}],
        "text_offset": [9, 14],
    }


def test_the_token_itself_is_among_its_alternatives() -> None:
    likely = replace(LIKELY, top=(((257, -0.25),), ((1, -0.25),)), top_tokens=((" a",), ("!",)))
    [answer] = write(result_of(endpoint=COMPLETIONS, logprobs=likely))
    [choice] = answer["response"]["body"]["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{" a": -0.25, " very": -0.5}, {"!": -0.25, "\ufffd": -1.5}]


def test_logprobs_of_a_chat_are_an_object_a_token() -> None:
    [answer] = write(result_of(endpoint=CHAT, logprobs=LIKELY))
    [choice] = answer["response"]["body"]["choices"]
    first, second = choice["logprobs"]["content"]
    assert first == {
        "token": " very", "logprob": -0.5, "bytes": [32, 118, 101, 114, 121],
        "top_logprobs": [
            {"token": " very", "logprob": -0.5, "bytes": [32, 118, 101, 114, 121]},
            {"token": " a", "logprob": -1.25, "bytes": [32, 97]},
        ],
    }  # fmt: skip
    assert (second["token"], second["bytes"], len(second["top_logprobs"])) == ("\ufffd", None, 2)


def test_a_run_answers_with_logprobs_in_kind(tmp_path: Path) -> None:
    body = {"prompt": "My dog is", "logprobs": 2, "max_tokens": 3}
    [answer] = records(run(stdin=json.dumps({"custom_id": "a", "body": body}) + "\n"))
    found = answer["response"]["body"]["choices"][0]["logprobs"]
    assert found["tokens"] == [" a", " very", " nice"]
    assert [len(best) for best in found["top_logprobs"]] == [2, 2, 2]
