"""Which tokens of a row are scored, and after which context: as in lm-evaluation-harness."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import pytest

from batchgen.model import Checkpoint
from batchgen.model.chat import Chat
from batchgen.model.passages import PassageEncoder
from batchgen.records import Conversation, Message, Passage, Request, Sequence
from tests.support.harness import disjoint_window, rolling_windows
from tests.support.models import EOS

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"


def encode(checkpoint: Checkpoint, request: Request, template: str | None = None, **options: object) -> Sequence:
    chat = Chat({"default": template} if template else {}, lambda: checkpoint.tokenizer)
    [row] = PassageEncoder(checkpoint, chat, **options).encode([request])
    return row


def row(prompt: str, *replies: str, **more: object) -> Request:
    kind = "choices" if len(replies) > 1 else "continuation" if replies else "text"
    return Request(0, "0", prompt, scored=kind, replies=replies, **more)


def texts(checkpoint: Checkpoint, passage: Passage) -> tuple[str, str]:
    ids = list(passage.token_ids)
    return tuple(checkpoint.tokenizer.decode(part) for part in (ids[: passage.start], ids[passage.start :]))


@pytest.mark.parametrize(
    ("prompt", "reply", "parts"),
    [
        ("My dog is", " nice", ("My dog is", " nice")),
        ("My dog is ", "nice", ("My dog is", " nice")),
        ("My dog is \n", "nice", ("My dog is", " \nnice")),
        ("My dog is", "n't", ("My dog isn", "'t")),
    ],
)
def test_trailing_spaces_of_a_prompt_count_to_the_continuation(
    checkpoint: Checkpoint, prompt: str, reply: str, parts: tuple[str, str]
) -> None:
    [passage] = encode(checkpoint, row(prompt, reply)).passages
    assert texts(checkpoint, passage) == parts
    assert list(passage.token_ids) == checkpoint.tokenizer(prompt + reply)["input_ids"]


@pytest.mark.parametrize("prompt", ["", "  "])
def test_an_empty_prompt_scores_from_the_tokenizers_mark(checkpoint: Checkpoint, prompt: str) -> None:
    [passage] = encode(checkpoint, row(prompt, "The dog")).passages
    assert (passage.token_ids[0], passage.start) == (EOS, 1)
    assert checkpoint.tokenizer.decode(list(passage.token_ids[1:])) == prompt + "The dog"


def test_the_vocabulary_is_not_read_for_each_text(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, asked = copy(checkpoint.tokenizer), []
    get_vocab = tokenizer.get_vocab
    monkeypatch.setattr(tokenizer, "get_vocab", lambda: asked.append(1) or get_vocab())
    reading = replace(checkpoint, codec=tokenizer)
    PassageEncoder(reading, Chat({}, lambda: tokenizer)).encode([row("My dog is") for _ in range(3)])
    assert len(asked) == 1


def test_a_text_is_scored_from_its_first_token(checkpoint: Checkpoint) -> None:
    [passage] = encode(checkpoint, row("My dog is")).passages
    assert passage == Passage((EOS, *checkpoint.tokenizer("My dog is")["input_ids"]), 1)


def test_marks_in_a_text_stay_text(checkpoint: Checkpoint) -> None:
    [passage] = encode(checkpoint, row("<|endoftext|>")).passages
    assert len(passage.scored) > 1
    [trusted] = encode(checkpoint, row("<|endoftext|>My dog"), parse_special=True).passages
    assert trusted.token_ids[0] == EOS != trusted.token_ids[1]


@pytest.mark.parametrize(("stride", "starts"), [(None, [1, 5, 5, 5]), (8, [1, 1, 7]), (3, [1, 6, 6, 6, 6, 6])])
def test_a_longer_text_goes_through_in_windows(checkpoint: Checkpoint, stride: int | None, starts: list[int]) -> None:
    """Every token is scored once; every window after the first has the model's full length."""
    short = replace(checkpoint, outline=type(checkpoint.config)(n_positions=8))
    text = "the dog and the cat and the bird and the fish and the house and the rain"
    ids = checkpoint.tokenizer(text)["input_ids"][:19]
    passages = encode(short, row(checkpoint.tokenizer.decode(ids)), stride=stride).passages
    assert [token for passage in passages for token in passage.scored] == ids
    assert all(len(passage.fed) <= 8 for passage in passages)
    assert len(passages[0].scored) == 8
    assert all(len(passage.fed) == 8 for passage in passages[1:])
    assert [passage.start for passage in passages][: len(passages) - 1] == starts[: len(passages) - 1]


@pytest.mark.parametrize("number", [5, 8, 9, 16, 19])
def test_windows_at_a_stride_of_the_models_length_are_those_of_lm_eval(checkpoint: Checkpoint, number: int) -> None:
    short = replace(checkpoint, outline=type(checkpoint.config)(n_positions=8))
    ids = checkpoint.tokenizer("the dog and the cat and the bird and the fish and the house and the rain")["input_ids"]
    passages = encode(short, row(checkpoint.tokenizer.decode(ids[:number])), stride=8).passages
    expected = [disjoint_window(pair) for pair in rolling_windows(ids[:number], EOS, 8, 1)]
    assert [(list(passage.token_ids[: passage.start]), list(passage.scored)) for passage in passages] == expected


def test_what_is_longer_than_the_model_fails_or_loses_its_beginning(checkpoint: Checkpoint) -> None:
    short = replace(checkpoint, outline=type(checkpoint.config)(n_positions=8))
    long = row("the dog and the cat and the bird and the fish", " swims")
    failed = encode(short, long)
    assert failed.error is not None
    assert "more than the model's 8 positions" in failed.error
    cut = encode(short, long, too_long="truncate")
    [passage] = cut.passages
    assert cut.num_truncated_tokens == len(checkpoint.tokenizer(long.prompt + " swims")["input_ids"]) - 1 - 8
    assert texts(checkpoint, passage)[1] == " swims"
    assert len(passage.fed) == 8


# Conversations.


def talk(*messages: tuple[str, str], replies: tuple[str, ...] = ()) -> Request:
    told = Conversation(tuple(Message(*message) for message in messages))
    kind = "choices" if replies else "reply"
    return Request(0, "0", "", conversation=told, scored=kind, replies=replies)


def test_the_last_reply_is_scored_without_what_closes_its_turn(checkpoint: Checkpoint) -> None:
    asked = encode(checkpoint, talk(("user", "Is it?"), ("assistant", "Yes, it is.")), TEMPLATE)
    assert asked.error is None
    [passage] = asked.passages
    assert texts(checkpoint, passage) == ("<|user|>Is it?<|end|><|assistant|>", "Yes, it is.")
    assert asked.request.prompt == "<|user|>Is it?<|end|><|assistant|>"


def test_choices_of_a_conversation_are_replies(checkpoint: Checkpoint) -> None:
    asked = encode(checkpoint, talk(("user", "Is it?"), replies=("Yes", "No")), TEMPLATE)
    assert asked.error is None
    assert [texts(checkpoint, passage)[1] for passage in asked.passages] == ["Yes", "No"]


def test_a_conversation_without_a_reply_fails_and_says_why(checkpoint: Checkpoint) -> None:
    assert encode(checkpoint, talk(("user", "Is it?")), TEMPLATE).error == (
        "the messages end with user: only a reply of the assistant can be scored"
    )
