"""Random conversations through every chat template: the ids are transformers', text never becomes a special token."""

from __future__ import annotations

from random import Random

import pytest

from tests.support.chat_tokenizers import KINDS, TOKENS, chat_of, make_chat_tokenizer
from tests.support.conversations import broken_by_marks, different_ids, draw_conversation, transformers_ids

MANY = 2_000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TOKENS)
def test_ids_are_those_of_transformers(template: str, kind: str) -> None:
    chat, random = chat_of(make_chat_tokenizer(template, kind)), Random(template)
    conversations = [draw_conversation(random) for _ in range(30)]
    assert different_ids(chat, conversations) == []
    assert sum(transformers_ids(chat.tokenizer, conversation) is not None for conversation in conversations) > 15


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TOKENS)
def test_text_of_special_tokens_leaves_the_rows_special_tokens_alone(template: str, kind: str) -> None:
    chat = chat_of(make_chat_tokenizer(template, kind))
    assert broken_by_marks(chat, TOKENS[template][0], template, 15) == []


@pytest.mark.slow
@pytest.mark.parametrize("template", TOKENS)
def test_ids_of_many_conversations_are_those_of_transformers(template: str) -> None:
    chat, random = chat_of(make_chat_tokenizer(template, "bytes")), Random(7)
    assert different_ids(chat, [draw_conversation(random) for _ in range(MANY)]) == []


@pytest.mark.slow
@pytest.mark.parametrize("template", TOKENS)
def test_text_of_special_tokens_in_many_conversations_is_text(template: str) -> None:
    chat = chat_of(make_chat_tokenizer(template, "bytes"))
    assert broken_by_marks(chat, TOKENS[template][0], template, MANY) == []
