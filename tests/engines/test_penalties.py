"""Biases and penalties: OpenAI's formula, transformers' where it has the same, on real tokens, in any batch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import SequenceBiasLogitsProcessor

import batchgen
from batchgen.engines.sampling.penalties import penalize
from batchgen.model import Model
from batchgen.records import FieldError, Request, SamplingParams, Sequence
from tests.support.models import EOS, generate_alone
from tests.support.rows import RAIN, ragged_prompts

VOCAB = 50
OPTIONS: list[dict[str, Any]] = [
    {"presence_penalty": 1.5},
    {"frequency_penalty": 2.0},
    {"frequency_penalty": -1.0, "presence_penalty": 2.0, "repetition_penalty": 1.3},
    {"logit_bias": {286: -100.0, 257: 5.0, 13: 2.5}},
]


def logits(rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(rows)) * 4


def row(input_ids: list[int], output_ids: list[int], **options: Any) -> Sequence:
    sequence = Sequence(Request(0, "0", "", SamplingParams(**options)), 0, input_ids)
    sequence.output_ids = output_ids
    return sequence


def penalized(*rows: Sequence) -> torch.Tensor:
    scores = logits(len(rows))
    penalize(scores, rows, frozenset({0}))
    return scores


def by_formula(scores: torch.Tensor, output_ids: list[int], params: SamplingParams) -> torch.Tensor:
    """Compute `mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence`, as OpenAI documents it."""
    counts = torch.zeros_like(scores)
    for token, count in Counter(output_ids).items():
        counts[..., token] = count
    return scores - counts * params.frequency_penalty - (counts > 0).float() * params.presence_penalty


@pytest.mark.parametrize(("presence", "frequency"), [(1.0, 0.0), (0.0, 0.5), (-2.0, 2.0)])
def test_presence_and_frequency_are_openai_s_formula(presence: float, frequency: float) -> None:
    sequence = row([3, 4], [7, 9, 7, 7], presence_penalty=presence, frequency_penalty=frequency)
    expected = by_formula(logits(), sequence.output_ids, sequence.sampling)
    torch.testing.assert_close(penalized(sequence), expected)


def test_the_prompt_s_tokens_are_not_penalized() -> None:
    assert torch.equal(penalized(row([3, 4], [], presence_penalty=2, frequency_penalty=2)), logits())


def test_logit_bias_is_transformers_sequence_bias() -> None:
    expected = SequenceBiasLogitsProcessor({(7,): -100.0, (9,): 2.5})(torch.tensor([[3]]), logits())
    torch.testing.assert_close(penalized(row([3], [], logit_bias={7: -100, 9: 2.5})), expected)


def test_a_bias_comes_before_the_repetition_penalty_and_that_before_the_others() -> None:
    sequence = row([3], [7], logit_bias={7: 50.0}, repetition_penalty=2.0, presence_penalty=1.0)
    torch.testing.assert_close(penalized(sequence)[0, 7], (logits()[0, 7] + 50) / 2 - 1)


def test_rows_get_together_what_they_get_alone() -> None:
    rows = [
        row([3], [7, 7], frequency_penalty=1, logit_bias={1: 3}),
        row([4], [], repetition_penalty=1.5),
        row([5], [8], presence_penalty=-1),
    ]
    together = penalized(*rows)
    for number, sequence in enumerate(rows):
        alone = logits(3)[number : number + 1]
        penalize(alone, [sequence], frozenset({0}))
        assert torch.equal(alone[0], together[number])


def test_fewer_tokens_than_the_least_forbid_stop_tokens_too() -> None:
    scores = penalized(row([3], [7], min_new_tokens=2, stop_token_ids=[5]))
    assert scores[0].isinf().nonzero()[:, 0].tolist() == [0, 5]


def decide_alone(model: Model, prompt: str, max_new_tokens: int, **options: Any) -> list[int]:
    """Return the output ids of a plain loop over unpadded forwards, with the formulas written out."""
    params = SamplingParams(**options)
    input_ids = model.checkpoint.tokenizer(prompt)["input_ids"]
    output_ids: list[int] = []
    with torch.inference_mode():
        while len(output_ids) < max_new_tokens and EOS not in output_ids:
            scores = model.network(torch.tensor([input_ids + output_ids]), use_cache=False).logits[0, -1].float()
            for token, bias in params.logit_bias:
                scores[token] += bias
            for token in {*input_ids, *output_ids}:
                factor = params.repetition_penalty
                scores[token] = scores[token] * factor if scores[token] < 0 else scores[token] / factor
            output_ids.append(int(by_formula(scores, output_ids, params).argmax()))
    return output_ids


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("engine", ["continuous", "reference"])
def test_a_batch_gets_what_a_plain_loop_gives_each_row(bundled: Model, engine: str, options: dict[str, Any]) -> None:
    prompts = ["My dog is", *ragged_prompts(1, seed=8, longest=12)]
    alone = [decide_alone(bundled, prompt, 12, **options) for prompt in prompts]
    results = batchgen.generate(prompts, bundled, max_new_tokens=12, engine=engine, **options)
    assert [list(result.output_ids) for result in results] == alone
    plain = batchgen.generate(prompts, bundled, max_new_tokens=12, engine=engine)
    assert [result.output_ids for result in results] != [result.output_ids for result in plain]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_engines_draw_the_same_samples(bundled: Model, options: dict[str, Any]) -> None:
    both = [
        batchgen.generate(RAIN, bundled, max_new_tokens=10, temperature=0.9, seed=5, engine=engine, **options)
        for engine in ("continuous", "reference")
    ]
    assert [r.output_ids for r in both[0]] == [r.output_ids for r in both[1]]


def test_rows_of_one_batch_have_penalties_of_their_own(bundled: Model) -> None:
    kinds = [{}, {"presence_penalty": 1.5}, {"logit_bias": {"286": -100}}]
    rows = [{"prompt": "My dog is", "sampling": sampling} for sampling in kinds]
    together = batchgen.generate(rows, bundled, max_new_tokens=12)
    alone = [decide_alone(bundled, "My dog is", 12, **sampling) for sampling in kinds]
    assert [list(result.output_ids) for result in together] == alone


def test_beams_take_biases_as_unpadded_generate_does(bundled: Model) -> None:
    prompts, bias = ["My dog is", *ragged_prompts(1, seed=4, longest=12)], {286: -100.0, 257: 3.0}
    alone = [
        generate_alone(
            bundled, prompt, max_new_tokens=10, num_beams=3, sequence_bias={(token,): b for token, b in bias.items()}
        )
        for prompt in prompts
    ]
    results = batchgen.generate(prompts, bundled, max_new_tokens=10, num_beams=3, logit_bias=bias)
    assert [list(result.output_ids) for result in results] == alone


@pytest.mark.parametrize("option", [{"stop_token_ids": [5]}, {"ignore_eos": True}], ids=str)
def test_beams_refuse_what_they_cannot_do_by_name(option: dict[str, Any]) -> None:
    [name] = option
    with pytest.raises(FieldError, match=f"^{name} is not supported with num_beams 2"):
        SamplingParams(num_beams=2, **option)


@pytest.mark.parametrize("engine", ["continuous", "reference"])
def test_a_stop_token_ends_its_row_and_is_not_in_the_text(bundled: Model, engine: str) -> None:
    [plain] = batchgen.generate("My dog is", bundled, max_new_tokens=8)
    third = plain.output_ids[2]
    [row] = batchgen.generate("My dog is", bundled, max_new_tokens=8, stop_token_ids=[third], engine=engine)
    assert (row.output_ids, row.finish_reason) == (plain.output_ids[:3], "stop")
    assert row.text == bundled.checkpoint.tokenizer.decode(plain.output_ids[:2])


@pytest.mark.parametrize("engine", ["continuous", "reference"])
def test_with_ignore_eos_rows_go_on_to_their_full_length(bundled: Model, engine: str) -> None:
    bias = {EOS: 100}
    [ended] = batchgen.generate("My dog is", bundled, max_new_tokens=4, logit_bias=bias, engine=engine)
    [whole] = batchgen.generate("My dog is", bundled, max_new_tokens=4, logit_bias=bias, ignore_eos=True, engine=engine)
    assert (ended.output_ids, ended.finish_reason) == ((EOS,), "stop")
    assert (whole.output_ids, whole.finish_reason, whole.text) == ((EOS,) * 4, "length", "")


@pytest.mark.parametrize("option", [{"stop_token_ids": [60000]}, {"logit_bias": {60000: 1}}], ids=str)
def test_a_token_that_the_model_does_not_have_is_an_error(bundled: Model, option: dict[str, Any]) -> None:
    [name] = option
    with pytest.raises(ValueError, match=f"^{name} names token 60000, but the model has tokens 0 to 50256"):
        batchgen.generate("x", bundled, max_new_tokens=1, **option)
    good, bad = batchgen.generate(["x", {"prompt": "y", "sampling": option}], bundled, max_new_tokens=1)
    assert (good.error, bad.error) == (None, f"{name} names token 60000, but the model has tokens 0 to 50256")
