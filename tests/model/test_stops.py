"""Where generated text ends, with tokenizers of each kind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from batchgen.model import Model
from batchgen.model.stops import decode_output, ends_in_stop, watch_stops, why_never
from batchgen.records import Request, SamplingParams, Sequence
from tests.support.chat_tokenizers import KINDS, make_chat_tokenizer

END = "<|im_end|>"
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def tokenizer_of(kind: str) -> PreTrainedTokenizerBase:
    return make_chat_tokenizer("chatml", kind)


def written(kind: str, prompt: str, output: str, **options: Any) -> Sequence:
    """Return a row that a model continued with this text, after the prompt's tokens."""
    tokenizer = tokenizer_of(kind)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    sequence = Sequence(Request(0, "0", prompt, SamplingParams(**options)), 0, prompt_ids)
    own = output if kind == "bytes" else output.removeprefix(" ")  # other tokenizers add the leading space themselves
    sequence.output_ids = tokenizer(own, add_special_tokens=False)["input_ids"]
    assert decode_output(tokenizer, replace(sequence, request=Request(0, "0", prompt))) == output
    return sequence


def text_at_stop(kind: str, sequence: Sequence) -> tuple[int | None, str]:
    """Return the step at which a stop ends the row, as engines find it, and the text at that step."""
    tokenizer, output_ids = tokenizer_of(kind), sequence.output_ids
    for step in range(1, len(output_ids) + 1):
        sequence.output_ids = output_ids[:step]
        if ends_in_stop(tokenizer, sequence):
            sequence.finish_reason = "stop"
            return step, decode_output(tokenizer, sequence)
    return None, decode_output(tokenizer, sequence)


@EVERY_KIND
def test_a_stop_with_a_space_is_met_by_the_first_token(kind: str) -> None:
    sequence = written(kind, "The cat", " sat on the mat", stop=[" sat"])
    assert text_at_stop(kind, sequence)[1] == ""


@EVERY_KIND
@pytest.mark.parametrize("stop", [" mat", "on the", "at"])
def test_the_text_ahead_of_a_stop_is_exact(kind: str, stop: str) -> None:
    output = " sat on the mat, and then it ran away"
    step, text = text_at_stop(kind, written(kind, "The cat", output, stop=[stop]))
    assert step is not None
    assert text == output[: output.index(stop)]


@EVERY_KIND
def test_the_prompt_s_text_is_no_part_of_a_stop(kind: str) -> None:
    step, text = text_at_stop(kind, written(kind, "The cat", " sat on the mat", stop=["cat sat", "The"]))
    assert (step, text) == (None, " sat on the mat")


@EVERY_KIND
def test_a_stop_far_into_a_long_text_is_found(kind: str) -> None:
    output = " and then it ran away from home to find some food" * 4
    step, text = text_at_stop(kind, written(kind, "The cat", output + ", on the mat", stop=[", on"]))
    assert (step is not None, text) == (True, output)


@EVERY_KIND
@pytest.mark.parametrize("stop", [END, f"mat{END}"])
def test_a_stop_that_is_or_holds_a_special_token_fires(kind: str, stop: str) -> None:
    sequence = written(kind, "The cat", " sat on the mat", stop=[stop])
    end = tokenizer_of(kind).convert_tokens_to_ids(END)
    num_words = sequence.num_output_tokens
    sequence.output_ids += [end, *sequence.output_ids]
    step, text = text_at_stop(kind, sequence)
    assert (step, text) == (num_words + 1, " sat on the mat".removesuffix(stop.removesuffix(END)))


@EVERY_KIND
def test_a_special_token_that_no_stop_holds_ends_nothing(kind: str) -> None:
    sequence = written(kind, "The cat", " sat on the mat", stop=["<", "|im"])
    sequence.output_ids.insert(1, tokenizer_of(kind).convert_tokens_to_ids(END))
    assert text_at_stop(kind, sequence)[0] is None


def test_a_stop_token_is_not_in_the_text_but_only_where_it_ended_the_row() -> None:
    sequence = written("bytes", "The cat", " sat on")
    last = sequence.output_ids[-1]
    sequence.request = Request(0, "0", "The cat", SamplingParams(stop_token_ids=[last]))
    sequence.finish_reason = "stop"
    tokenizer = tokenizer_of("bytes")
    assert decode_output(tokenizer, sequence) == " sat on"[: -len(tokenizer.decode([last]))]
    sequence.finish_reason = "length"
    assert decode_output(tokenizer, sequence) == " sat on"


@pytest.mark.parametrize(
    ("kind", "stop", "why"),
    [
        ("unigram", "\u2603", "the model has no token with '\u2603'"),
        ("unigram", "cat", None),
        ("unigram", " sat on", None),
        ("bytes", "\u2603", None),
        ("bytefallback", "\u2603", None),
        ("bytes", "<|endoftext|> more", "a row ends at <|endoftext|>"),
        ("bytes", "more <|endoftext|>", None),
    ],
)
def test_a_stop_that_can_never_match_has_a_reason(kind: str, stop: str, why: str | None) -> None:
    tokenizer = tokenizer_of(kind)
    assert why_never(tokenizer, stop, frozenset({tokenizer.eos_token_id})) == why


def test_a_stop_that_can_never_match_is_said_once(bundled: Model) -> None:
    said: list[str] = []
    stop = "<|endoftext|>x"
    rows = [
        Request(0, "0", "a", SamplingParams(stop=[stop])),
        Request(1, "1", "a", SamplingParams(stop=[stop, "."])),
        Request(2, "2", "a", SamplingParams(stop=[stop], ignore_eos=True)),
    ]
    assert list(watch_stops(rows, bundled.checkpoint, said.append)) == rows
    assert said == [f"stop {stop!r} can never match: a row ends at <|endoftext|>"]
