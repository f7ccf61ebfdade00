from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AddedToken, PreTrainedTokenizerBase

from batchgen.model import open_checkpoint
from batchgen.model.padding import encode, pad, positions, tokenize
from batchgen.model.stops import decode, decode_output
from batchgen.records import Request, Sequence
from tests.support.models import EOS
from tests.support.rows import RAIN, requests_of


def sequence_of(input_ids: list[int], output_ids: list[int] | None = None) -> Sequence:
    return Sequence(Request(0, "0", ""), 0, input_ids, output_ids or [])


def test_three_sentences_become_the_batch_of_the_article(tokenizer: PreTrainedTokenizerBase) -> None:
    batch = pad(encode(requests_of(RAIN), tokenizer), EOS)
    assert batch.input_ids.tolist() == [
        [50256, 50256, 50256, 1026, 481, 6290, 287, 262],
        [40, 765, 284, 4483, 257, 1263, 9396, 286],
        [50256, 50256, 50256, 50256, 50256, 3666, 3290, 318],
    ]
    assert batch.attention_mask.tolist() == [
        [0, 0, 0, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 1, 1, 1],
    ]
    assert batch.position_ids.tolist() == [
        [0, 0, 0, 0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 0, 0, 0, 0, 0, 1, 2],
    ]
    assert {t.dtype for t in (batch.input_ids, batch.attention_mask, batch.position_ids)} == {torch.int64}


def test_a_genuine_eos_in_a_prompt_is_not_masked() -> None:
    batch = pad([sequence_of([EOS, 5, EOS]), sequence_of([1, 2, 3, 4])], EOS)
    assert batch.attention_mask.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]


@given(st.lists(st.lists(st.integers(0, EOS), min_size=1, max_size=12), min_size=1, max_size=6))
def test_the_real_tokens_of_each_row_are_its_own(rows: list[list[int]]) -> None:
    batch = pad([sequence_of(ids) for ids in rows], EOS)
    for ids, mask, padded, position_ids in zip(
        rows, batch.attention_mask.bool(), batch.input_ids, batch.position_ids, strict=True
    ):
        assert padded[mask].tolist() == ids
        assert padded[~mask].eq(EOS).all()
        assert position_ids[mask].tolist() == list(range(len(ids)))


def test_positions_of_a_fully_masked_row_stay_at_zero() -> None:
    assert positions(torch.tensor([[0, 0]])).tolist() == [[0, 0]]


def test_special_token_text_stays_text(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "a <|endoftext|> b"
    [ids] = tokenize(tokenizer, [text])
    assert EOS not in ids
    assert decode(tokenizer, ids) == text


ADDED = [
    AddedToken("<|user|>", special=True),
    AddedToken("<|strip|>", special=True, lstrip=True, rstrip=True),
    AddedToken("<|word|>", special=True, single_word=True),
    AddedToken("<tool>", special=False),
    AddedToken("\n\n\n", special=False, normalized=False),
    AddedToken("    ", special=False),
]


@pytest.fixture(scope="module")
def with_added_tokens() -> PreTrainedTokenizerBase:
    """GPT-2's tokenizer with what other models' have: special tokens of all kinds, and added tokens that are text."""
    tokenizer = copy.deepcopy(open_checkpoint("bundled").tokenizer)  # other tests use it too
    tokenizer.add_tokens(ADDED)
    tokenizer.add_special_tokens({"bos_token": "<s>", "pad_token": "[PAD]"})
    return tokenizer


MARKS = st.sampled_from([token.content for token in ADDED] + ["<|endoftext|>", "<s>", "[PAD]", " ", "a", "\n", "<|"])


@given(prompt=st.lists(MARKS, min_size=1).map("".join))
def test_marks_of_added_tokens_are_text(with_added_tokens: PreTrainedTokenizerBase, prompt: str) -> None:
    [ids] = tokenize(with_added_tokens, [prompt])
    assert not set(ids) & set(with_added_tokens.all_special_ids)
    special = [i for i, token in with_added_tokens.added_tokens_decoder.items() if token.special]
    assert not set(ids) & set(special)
    assert decode(with_added_tokens, ids) == prompt


def test_added_tokens_that_are_text_stay_tokens(with_added_tokens: PreTrainedTokenizerBase) -> None:
    [ids] = tokenize(with_added_tokens, ["a<tool>b"])
    assert with_added_tokens.convert_tokens_to_ids("<tool>") in ids


def test_parse_special_makes_a_genuine_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    [ids] = tokenize(tokenizer, ["a <|endoftext|> b"], parse_special=True)
    assert ids.count(EOS) == 1


@given(prompt=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_decoding_gives_back_the_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> None:
    [ids] = tokenize(tokenizer, [prompt])
    assert decode(tokenizer, ids) == prompt


def test_an_empty_prompt_fails_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    empty, good = encode(requests_of(["", "My dog is"]), tokenizer)
    assert (empty.finish_reason, good.finish_reason) == ("error", None)
    assert "empty" in (empty.error or "")


def test_a_prompt_that_fills_the_model_exactly_runs(tokenizer: PreTrainedTokenizerBase) -> None:
    [sequence] = encode(requests_of(["My dog is"], max_new_tokens=5), tokenizer, n_positions=8)
    assert not sequence.is_finished


def test_a_prompt_one_token_too_long_fails(tokenizer: PreTrainedTokenizerBase) -> None:
    [sequence] = encode(requests_of(["My dog is"], max_new_tokens=6), tokenizer, n_positions=8)
    assert "3 tokens" in (sequence.error or "")
    assert "8 positions" in (sequence.error or "")


def test_truncating_keeps_the_right_end(tokenizer: PreTrainedTokenizerBase) -> None:
    [sequence] = encode(requests_of(RAIN[:1], max_new_tokens=6), tokenizer, n_positions=8, too_long="truncate")
    assert sequence.input_ids == [287, 262]
    assert sequence.num_truncated_tokens == 3


def test_no_room_for_any_prompt_fails_even_when_truncating(tokenizer: PreTrainedTokenizerBase) -> None:
    [sequence] = encode(requests_of(["My dog is"], max_new_tokens=8), tokenizer, n_positions=8, too_long="truncate")
    assert "no room" in (sequence.error or "")


def test_each_sample_is_a_sequence(tokenizer: PreTrainedTokenizerBase) -> None:
    sequences = encode(requests_of(["My dog is"], num_samples=3, temperature=1.0), tokenizer)
    assert [s.sample_index for s in sequences] == [0, 1, 2]


def test_output_text_has_neither_prompt_nor_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    assert decode_output(tokenizer, sequence_of([3666, 3290, 318], [845, 1611, EOS])) == " very kind"
