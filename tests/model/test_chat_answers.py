"""Answers in parts: what the model thought, its text, its tool calls."""

from __future__ import annotations

import pytest

from batchgen.model.chat import Chat, Reply, make_chat, responses, split_reply
from batchgen.model.chat.answers import split_thought
from batchgen.records import Conversation, Message, Request, SamplingParams
from tests.support.chat_tokenizers import chat_of, make_chat_tokenizer

MARKS = ("<think>", "</think>")
ASKED = Conversation((Message("user", "hi"),))


def answer(chat: Chat, said: str, conversation: Conversation = ASKED, stops: tuple[str, ...] = ()) -> Reply:
    """Return the parts of a model's output, with special tokens spelled out."""
    [row] = chat.encode([conversation])
    ids = chat.tokenizer.encode(said, add_special_tokens=False)
    text = chat.tokenizer.decode(ids, skip_special_tokens=True)
    request = Request(0, "0", row.prompt, SamplingParams(stop=stops), conversation=conversation)
    return split_reply(chat, ids, text, request)


@pytest.mark.parametrize("template", ["qwen3", "qwen3_special"])
def test_a_thought_is_apart_from_the_text(template: str) -> None:
    chat = chat_of(make_chat_tokenizer(template, "bytes"))
    assert answer(chat, "<think>\nhm, 12\n</think>\n\nIt is 42.<|im_end|>") == Reply("It is 42.", "hm, 12")


@pytest.mark.parametrize("template", ["qwen3", "qwen3_special"])
def test_a_thought_that_is_cut_short_is_all_there_is(template: str) -> None:
    chat = chat_of(make_chat_tokenizer(template, "bytes"))
    assert answer(chat, "<think>\nhm, 12") == Reply("", "hm, 12")


def test_a_thought_that_the_generation_prompt_opened_is_found() -> None:
    chat = chat_of(make_chat_tokenizer("deepseek", "bytes"))
    assert answer(chat, "hm</think>\nyes<｜end▁of▁sentence｜>") == Reply("yes", "hm")
    assert answer(chat, "hm") == Reply("", "hm")


def test_a_thought_that_a_continued_message_opened_is_found() -> None:
    chat = chat_of(make_chat_tokenizer("smollm3", "bytes"))
    going_on = Conversation((*ASKED.messages, Message("assistant", "<think>\nWell")))
    assert answer(chat, ", hm</think>yes", going_on) == Reply("yes", ", hm")


def test_an_answer_without_a_thought_is_text() -> None:
    chat = chat_of(make_chat_tokenizer("qwen3", "bytes"))
    assert answer(chat, "  It is 42.<|im_end|>") == Reply("  It is 42.")


def test_marks_that_the_model_only_talks_about_are_text() -> None:
    assert split_thought("The tag </think> closes it.", MARKS) == Reply("The tag </think> closes it.")


def test_channels_are_told_apart() -> None:
    chat = chat_of(make_chat_tokenizer("harmony", "bytes"))
    said = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>It is 42.<|return|>"
    assert answer(chat, said) == Reply("It is 42.", "Hm.")
    assert answer(chat, "<|channel|>analysis<|message|>Hm") == Reply("", "Hm")


def test_a_stop_ends_the_text_behind_a_thought() -> None:
    chat = chat_of(make_chat_tokenizer("qwen3_special", "bytes"))
    assert answer(chat, "<think>a</think>b\nUser: c", stops=("\nUser",)) == Reply("b", "a")


RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "content": {"close": "<|im_end|>"},
        "reasoning_content": {"open": "<think>", "close": "</think>"},
        "tool_calls": {
            "open": "<tool_call>",
            "close": "</tool_call>",
            "content": "json",
            "repeats": True,
            "transform": {"type": "function", "function": "{content}"},
        },
    },
}


def test_a_response_template_finds_tool_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = chat_of(make_chat_tokenizer("qwen3", "bytes"))
    monkeypatch.setattr(chat.tokenizer, "response_template", RESPONSE)
    said = '<think>hm</think>Yes.<tool_call>{"name": "add", "arguments": {"x": 1}}</tool_call><|im_end|>'
    calls = [{"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}]
    assert answer(chat, said) == Reply("Yes.", "hm", calls)


def test_a_response_template_that_does_not_fit_leaves_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = chat_of(make_chat_tokenizer("qwen3", "bytes"))
    monkeypatch.setattr(chat.tokenizer, "response_template", RESPONSE)
    assert answer(chat, "a<tool_call>{broken</tool_call><|im_end|>").text == "a<tool_call>{broken</tool_call>"


@pytest.mark.parametrize(
    "fields",
    [
        {"content": {"close_pattern": "(a|aa)+$"}},
        {"content": {"open_pattern": "(a|aa)+$"}},
        {"content": {"content": "xml-inline", "content_args": {"tag_pattern": "(?<key>(a|aa)+)$"}}},
        {"content": {"open_pattern": "(?=a)", "close_pattern": "(?=a)"}},
    ],
    ids=["close", "open", "content", "nothing"],
)
def test_a_response_template_without_end_leaves_the_text_and_is_said_once(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, object]
) -> None:
    said: list[str] = []
    tokenizer = make_chat_tokenizer("qwen3", "bytes")
    chat = make_chat({"default": tokenizer.chat_template}, lambda: tokenizer, say=said.append)
    monkeypatch.setattr(tokenizer, "response_template", {**RESPONSE, "fields": fields})
    monkeypatch.setattr(responses, "MOST_SECONDS", 0.1)
    text = "a" * 60 + "b"
    assert [answer(chat, text), answer(chat, text)] == [Reply(text), Reply(text)]
    assert said == [
        "warning: the model's response template does not finish parsing the answer to row 0: such answers are not split"
    ]
    assert answer(chat, "") == Reply("")
