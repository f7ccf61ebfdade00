"""Constrained rows of models that think: the thought is free, the constraint begins with the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import batchgen
from batchgen import Model, Result
from batchgen.engines.pool.worker import Answer
from batchgen.engines.sampling.thoughts import Ahead, find_marks
from batchgen.engines.sampling.token_reader import token_reader
from batchgen.model.chat import thought_of
from batchgen.records import Conversation, Message, Request, SamplingParams, Sequence, Thought
from tests.support.chat_tokenizers import chat_of, make_chat_tokenizer
from tests.support.models import make_chat_model

ASKED = [{"role": "user", "content": "What is 12?"}]
DATE = r"[0-9]{4}-(0[1-9]|1[0-2])"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"]}
Open = Callable[[str], Model]


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Open:
    """A tiny random model with the tokenizer of a chat template; its tokens are drawn almost at random."""
    made: dict[str, Model] = {}

    def opened(template: str) -> Model:
        if template not in made:
            made[template] = make_chat_model(template, tmp_path_factory.mktemp(template))
        return made[template]

    return opened


def leaning(model: Model, **marks: float) -> dict[int, float]:
    """Return a `logit_bias` for tokens given by their text."""
    ids = model.checkpoint.tokenizer.get_vocab()
    return {ids[mark]: bias for mark, bias in marks.items()}


def answers(model: Model, number: int = 8, **options: Any) -> list[Result]:
    rows = [{"id": str(n), "messages": ASKED} for n in range(number)]
    return batchgen.generate(rows, model=model, **{"temperature": 1.0, "max_new_tokens": 60, **options})


@pytest.mark.parametrize("engine", ["reference", "continuous"])
def test_a_thought_is_free_and_the_answer_is_not(thinker: Open, engine: str) -> None:
    model = thinker("deepseek")  # its generation prompt opens the thought
    bias = leaning(model, **{"</think>": 4.0})
    rows = answers(model, regex=DATE, logit_bias=bias, engine=engine)
    free = answers(model, logit_bias=bias, ignore_eos=True, engine=engine)
    thoughts = 0
    for row, other in zip(rows, free, strict=True):
        assert row.error is None
        if row.finish_reason == "stop":
            assert re.fullmatch(DATE, row.text)
            assert row.reasoning == other.reasoning
            thoughts += len(row.reasoning) > 10
        else:
            assert row.text == "" or re.match("[0-9]", row.text)
    assert thoughts >= 3


@pytest.mark.parametrize("engine", ["reference", "continuous"])
def test_a_model_that_may_open_a_thought_does_so_or_answers_at_once(thinker: Open, engine: str) -> None:
    model = thinker("qwen3")
    bias = leaning(model, **{"<think>": 4.0, "</think>": 4.0})
    rows = answers(model, 16, regex=DATE, logit_bias=bias, engine=engine)
    stopped = [row for row in rows if row.finish_reason == "stop"]
    assert all(re.fullmatch(DATE, row.text) for row in stopped)
    assert {row.reasoning is None for row in stopped} == {True, False}


def test_tokens_of_thinking_rows_do_not_depend_on_batch_and_engine(thinker: Open) -> None:
    model = thinker("qwen3")
    options = {"json_schema": SCHEMA, "logit_bias": leaning(model, **{"<think>": 5.0, "</think>": 4.0})}
    options |= {"number": 5, "max_new_tokens": 30}
    whole = [row.output_ids for row in answers(model, batch_size=1, **options)]
    for more in ({"batch_size": 8}, {"engine": "reference"}, {"share_prefixes": False}):
        assert [row.output_ids for row in answers(model, **options, **more)] == whole


def test_channels_ahead_of_the_final_one_are_free(thinker: Open) -> None:
    model = thinker("harmony")
    chat = "<|channel|>analysis<|message|>It is 12.<|end|><|start|>assistant<|channel|>final<|message|>"
    tokens = model.checkpoint.tokenizer.encode(chat, add_special_tokens=False)
    reader = token_reader(model.checkpoint.codec, model.checkpoint.vocab_size, model.checkpoint.eos_token_ids)
    from llguidance import LLMatcher

    ahead = Ahead.of(find_marks(reader, thought("harmony")))
    matcher = LLMatcher(reader, LLMatcher.grammar_from_regex("yes"))
    inside = []
    for token in tokens:
        inside.append(ahead.is_inside)
        ahead.take(token, matcher)
    assert all(inside)
    assert not ahead.is_inside
    assert ahead.num_tokens == len(tokens)


def test_a_row_that_is_cut_inside_its_thought_says_length(thinker: Open) -> None:
    model = thinker("deepseek")
    [row] = answers(model, 1, json_schema=SCHEMA, max_new_tokens=12, logit_bias=leaning(model, **{"</think>": -100.0}))
    assert (row.finish_reason, row.text, row.parsed) == ("length", "", None)
    assert row.reasoning


def test_no_end_token_ends_a_thought(thinker: Open) -> None:
    model = thinker("deepseek")
    bias = {model.checkpoint.tokenizer.eos_token_id: 100.0, **leaning(model, **{"</think>": 2.0})}
    rows = answers(model, 4, choice=["yes"], logit_bias=bias, max_new_tokens=200)
    assert [(row.text, row.finish_reason) for row in rows] == [("yes", "stop")] * 4


def test_what_the_answer_says_is_parsed_whether_or_not_the_thought_is_apart(thinker: Open) -> None:
    model = thinker("deepseek")
    options = {"json_schema": SCHEMA, "logit_bias": leaning(model, **{"</think>": 5.0})}
    apart, whole = answers(model, 4, **options), answers(model, 4, split_reasoning=False, **options)
    assert any(row.parsed for row in apart)
    for row, other in zip(apart, whole, strict=True):
        assert row.parsed == other.parsed
        assert row.parsed is None or json.loads(row.text) == row.parsed
        assert "</think>" not in row.text
        assert other.reasoning is None
        assert other.text.endswith(row.text)


def texts(model: Model, folder: Path, name: str, rows: int, **more: Any) -> list[tuple[str, str, str]]:
    """Return what a durable run writes for its first rows."""
    given, output = folder / "rows.jsonl", folder / f"{name}.jsonl"
    given.write_text("".join(json.dumps({"id": str(n), "messages": ASKED}) + "\n" for n in range(rows)))
    batchgen.run(
        given, output=output, model=str(model.checkpoint.folder), keep_store=True, temperature=1.0, num_samples=2,
        max_new_tokens=50, regex="[a-z]{2}", dtype="float32", logit_bias=leaning(model, **{"</think>": 4.0}), **more,
    )  # fmt: skip
    return [(row["id"], row["text"], row["reasoning"]) for row in map(json.loads, output.read_text().splitlines())]


def test_samples_and_a_resumed_run_write_the_same(thinker: Open, tmp_path: Path) -> None:
    model = thinker("deepseek")
    plain = texts(model, tmp_path, "plain", 3)
    texts(model, tmp_path, "part", 1)
    assert texts(model, tmp_path, "part", 3, resume=True) == plain
    assert sum(len(text) == 2 for _, text, _ in plain) >= 3


def test_a_worker_says_how_much_of_a_row_is_its_thought_and_what_was_forced() -> None:
    answer = Answer.of(Sequence(Request(0, "0", "a"), 0, [1], num_thought_tokens=7, forced=[8, 9]))
    assert (answer.num_thought_tokens, answer.forced) == (7, [8, 9])


@pytest.mark.slow
def test_workers_write_the_same(thinker: Open, tmp_path: Path) -> None:
    model = thinker("deepseek")
    assert texts(model, tmp_path, "workers", 3, workers=2) == texts(model, tmp_path, "plain", 3)


@pytest.mark.parametrize("kind", ["bytes", "bytefallback", "unigram"])
def test_every_kind_of_tokenizer_is_read(kind: str) -> None:
    tokenizer = make_chat_tokenizer("chatml", kind)
    reader = token_reader(tokenizer, len(tokenizer), frozenset({tokenizer.eos_token_id}))
    ids = tokenizer("It is 42.", add_special_tokens=False)["input_ids"]
    assert reader.decode_bytes(ids).decode().strip() == "It is 42."


def test_rows_fail_alone_where_a_tokenizer_is_not_read(thinker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    model = thinker("deepseek")

    def refuse(*_: object) -> None:
        raise ValueError("constraints do not work with this model's tokenizer: it is odd")

    monkeypatch.setattr("batchgen.engines.sampling.sampler.token_reader", refuse)
    rows = [{"messages": ASKED}, {"messages": ASKED, "sampling": {"regex": "a"}}]
    good, bad = batchgen.generate(rows, model=model, max_new_tokens=2)
    assert good.error is None
    assert bad.error == "constraints do not work with this model's tokenizer: it is odd"


def thought(template: str, *messages: Message, prompt: str | None = None, **options: Any) -> Thought | None:
    chat = chat_of(make_chat_tokenizer(template, "bytes"))
    asked = Conversation((Message("user", "hi"), *messages), arguments=options)
    [row] = chat.encode([asked])
    return thought_of(chat, Request(0, "0", prompt or row.prompt, SamplingParams(regex="a"), conversation=asked))


def test_where_an_answer_begins_is_read_from_template_and_prompt() -> None:
    assert thought("chatml") is None
    assert thought("deepseek") == Thought("</think>")
    assert thought("qwen3") == Thought("</think>", "<think>")
    assert thought("qwen3", enable_thinking=False) is None
    assert thought("smollm3", Message("assistant", "<think>\nWell")) == Thought("</think>")
    assert thought("smollm3", Message("assistant", "It is")) is None
    assert thought("harmony").closing == "<|message|>"
    going_on = "<|start|>assistant<|channel|>final<|message|>It"
    assert thought("harmony", Message("assistant", "It"), prompt=going_on) is None


def test_a_response_template_says_where_an_answer_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = chat_of(make_chat_tokenizer("chatml", "bytes"))
    asked = Conversation((Message("user", "hi"),))
    request = Request(0, "0", "hi", SamplingParams(regex="a"), conversation=asked)

    def begins(**fields: dict[str, Any]) -> Thought | None:
        monkeypatch.setattr(chat.tokenizer, "response_template", {"fields": fields}, raising=False)
        return thought_of(chat, request)

    assert begins(content={}) is None
    assert begins(content={}, thinking={"open": "<t>", "close": ["</t>"]}) == Thought("</t>", "<t>")
    assert begins(content={}, thinking={"close": "</t>"}) == Thought("</t>")
    assert begins(content={"open": "<answer>"}) == Thought("<answer>")
    with pytest.raises(ValueError, match="cannot be constrained"):
        begins(content={"open_pattern": "<answer.*>"})


def follow(said: list[str], constraint: str, mark: Thought) -> tuple[Ahead, list[bool]]:
    """Return what becomes of tokens with these texts, each of which the row may or may not take."""
    from llguidance import LLMatcher

    tokenizer = make_chat_tokenizer("chatml", "bytes")
    ids = {tokenizer.decode([token]): token for token in range(len(tokenizer))}
    reader = token_reader(tokenizer, len(tokenizer), frozenset({tokenizer.eos_token_id}))
    ahead, matcher = Ahead.of(find_marks(reader, mark)), LLMatcher(reader, LLMatcher.grammar_from_regex(constraint))
    allowed = []
    for text in said:
        token = ids[text]
        fits = token in ahead.more() or (not ahead.is_lost and bool(matcher.validate_tokens([token])))
        allowed.append(token not in ahead.past() if ahead.is_inside else fits)
        ahead.take(token, matcher)
    return ahead, allowed


def test_marks_that_are_ordinary_text_are_found_token_by_token() -> None:
    spelled = ["<", "/", "a", ">"]
    ahead, allowed = follow(["x", *spelled, "\n", "\n", "y"], "y", Thought("</a>"))
    assert (ahead.num_tokens, allowed) == (7, [True] * 8)
    ahead, allowed = follow([*spelled, "y"], "y", Thought("</a>"))
    assert (ahead.num_tokens, allowed) == (4, [True] * 5)
    _, allowed = follow([*spelled, "x"], "y", Thought("</a>"))
    assert allowed[-1] is False


def test_an_answer_that_begins_like_an_opening_is_an_answer() -> None:
    mark = Thought("</a>", "<a>")
    ahead, allowed = follow(["<", "b"], "<b", mark)
    assert (ahead.num_tokens, allowed) == (0, [True, True])
    ahead, allowed = follow(["<", "a", ">", "b", "<", "/", "a", ">", "<", "b"], "<b", mark)
    assert (ahead.num_tokens, allowed) == (8, [True] * 10)
    _, allowed = follow(["<", "x"], "yes", mark)
    assert allowed == [True, False]


def test_no_token_goes_from_the_thought_into_the_answer() -> None:
    reader = token_reader(make_chat_tokenizer("chatml", "bytes"), 500, frozenset())
    texts = [reader.decode_bytes([token]) for token in range(reader.vocab_size)]
    marks = find_marks(reader, Thought(" th"))
    past = {texts[token] for token in marks.past[0]}
    assert b" the" in past
    assert all(b" th" in text and len(text) > 3 for text in past)


def test_marks_that_are_no_tokens_are_found_in_a_run_too(tmp_path: Path) -> None:
    model, template = make_chat_model("chatml", tmp_path / "model"), tmp_path / "t.jinja"
    template.write_text("{{ messages[0].content }}{% if add_generation_prompt %}<think>{% endif %}")
    [row] = answers(model, 1, regex="a", chat_template=str(template), max_new_tokens=5)
    assert (row.text, row.finish_reason) == ("", "length")
    assert row.reasoning
