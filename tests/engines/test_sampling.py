from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from batchgen.engines.sampling.draws import DRAW_MARGIN, draw, num_levels, uniforms
from batchgen.engines.sampling.penalties import banned_tokens, penalize_repetition
from batchgen.engines.sampling.sampler import GREEDY_MARGIN, Sampler, filter_logits, top_two
from batchgen.records import Sequence
from tests.support.rows import requests_of

ROWS, VOCAB = 5, 300
MARGIN = torch.full((ROWS,), DRAW_MARGIN)


def logits(seed: int = 0) -> torch.Tensor:
    return torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def filtered(scores: torch.Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> torch.Tensor:
    return filter_logits(scores, [top_k] * ROWS, [top_p] * ROWS, [min_p] * ROWS, MARGIN)[0]


def theirs(scores: torch.Tensor, *processors: LogitsProcessor) -> torch.Tensor:
    scores = scores.clone()
    for processor in processors:
        scores = processor(torch.zeros(ROWS, 1, dtype=torch.long), scores)
    return scores


@pytest.mark.parametrize("top_k", [1, 2, 40, 299, 300, 1000])
def test_top_k_is_that_of_transformers(top_k: int) -> None:
    assert torch.equal(filtered(logits(), top_k=top_k), theirs(logits(), TopKLogitsWarper(top_k)))


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.9, 0.999])
def test_top_p_is_that_of_transformers(top_p: float) -> None:
    assert torch.equal(filtered(logits(1), top_p=top_p), theirs(logits(1), TopPLogitsWarper(top_p)))


@pytest.mark.parametrize("min_p", [0.001, 0.05, 0.5, 1.0])
def test_min_p_is_that_of_transformers(min_p: float) -> None:
    assert torch.equal(filtered(logits(2), min_p=min_p), theirs(logits(2), MinPLogitsWarper(min_p)))


def test_filters_follow_each_other_as_in_transformers() -> None:
    expected = theirs(
        logits(3), TemperatureLogitsWarper(0.7), TopKLogitsWarper(50), TopPLogitsWarper(0.9), MinPLogitsWarper(0.02)
    )
    assert torch.equal(filtered(logits(3) / 0.7, top_k=50, top_p=0.9, min_p=0.02), expected)


def test_each_row_has_its_own_filters() -> None:
    top_k = [1, 0, 3, 0, 300]
    top_p = [1.0, 0.5, 1.0, 1.0, 0.1]
    min_p = [0.0, 0.0, 0.0, 0.5, 0.0]
    together = filter_logits(logits(4), top_k, top_p, min_p, MARGIN)[0]
    for row in range(ROWS):
        one = slice(row, row + 1)
        alone = filter_logits(logits(4)[one], top_k[one], top_p[one], min_p[one], MARGIN[one])[0]
        assert torch.equal(together[row], alone[0])


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    token_ids = torch.randint(0, VOCAB, (ROWS, 20), generator=torch.Generator().manual_seed(5))
    expected = RepetitionPenaltyLogitsProcessor(penalty)(token_ids, logits())
    scores = logits()
    penalize_repetition(scores, token_ids.tolist(), torch.full((ROWS,), penalty))
    torch.testing.assert_close(scores, expected)


def test_a_repetition_penalty_counts_rows_of_any_length() -> None:
    scores = torch.ones(2, 4)
    penalize_repetition(scores, [[1, 2, 2], [3]], torch.tensor([2.0, 4.0]))
    assert scores.tolist() == [[1, 0.5, 0.5, 1], [1, 1, 1, 0.25]]


@given(st.integers(2, 600), st.integers(0, 2**32))
def test_the_top_two_are_those_of_topk(vocab_size: int, seed: int) -> None:
    scores = torch.randint(-9, 9, (4, vocab_size), generator=torch.Generator().manual_seed(seed)).float()
    values = scores.topk(2).values
    tokens, best, second = top_two(scores)
    assert tokens.tolist() == scores.argmax(-1).tolist()
    assert torch.equal(torch.stack([best, second], -1), values)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 5))
def test_banned_tokens_are_those_of_transformers(token_ids: list[int], size: int) -> None:
    scores = NoRepeatNGramLogitsProcessor(size)(torch.tensor([token_ids]), torch.zeros(1, 4))
    assert banned_tokens(token_ids, size) == scores[0].isinf().nonzero()[:, 0].tolist()


def walk(kept: torch.Tensor, numbers: torch.Tensor, margin: float = 0.0) -> tuple[list[int], list[bool]]:
    """Draw from logits without unsure tokens."""
    unsure = torch.zeros_like(kept, dtype=torch.bool)
    tokens, close = draw(kept, numbers, torch.full((len(kept),), margin, dtype=torch.float64), kept, unsure)
    return tokens.tolist(), close.tolist()


def keyed(count: int, levels: int) -> torch.Tensor:
    return torch.tensor([uniforms(0, str(i), 0, 0, levels) for i in range(count)], dtype=torch.float64)


def test_draws_follow_the_distribution() -> None:
    shares = torch.tensor([0.3, 0.0, 0.25, 0.2, 0.15, 0.1])
    tokens, _ = walk(shares.log().expand(4000, -1), keyed(4000, num_levels(6)))
    found = torch.tensor(tokens).bincount(minlength=6) / 4000
    torch.testing.assert_close(found, shares, atol=0.03, rtol=0)
    assert found[1] == 0


@given(st.lists(st.sampled_from([0.0, 2.0**-33, 0.5, 1 - 2.0**-33]), min_size=3, max_size=3))
def test_the_ends_of_the_unit_interval_draw_possible_tokens(numbers: list[float]) -> None:
    kept = torch.tensor([[-torch.inf, 1.0, -torch.inf, -torch.inf, 2.0]])
    tokens, _ = walk(kept, torch.tensor([numbers], dtype=torch.float64))
    assert tokens in ([1], [4])


def test_a_draw_near_the_border_of_two_halves_is_close() -> None:
    kept = torch.tensor([[0.25, 0.25, 0.5]]).log().expand(3, -1)
    numbers = torch.tensor([[0.499, 0.1], [0.1, 0.499], [0.1, 0.1]], dtype=torch.float64)
    assert walk(kept, numbers, margin=0.01)[1] == [True, True, False]
    assert walk(kept, numbers)[1] == [False] * 3


def test_a_walk_that_has_no_choice_is_never_close() -> None:
    kept = torch.tensor([[-torch.inf, -torch.inf, 3.0, -torch.inf]])
    for number in (0.0, 2.0**-33, 1 - 2.0**-33):
        assert walk(kept, torch.tensor([[number, number]], dtype=torch.float64), margin=0.1) == ([2], [False])


def test_draws_hardly_depend_on_rounding() -> None:
    """Another order of sums moves logits by about 1e-6: none of 2,000 draws from a long tail may change unnoticed."""
    generator = torch.Generator().manual_seed(0)
    kept = torch.randn(20, 50257, generator=generator) * 2
    moved = kept + torch.randn(kept.shape, generator=generator) * 1e-6
    margin = torch.full((20,), DRAW_MARGIN, dtype=torch.float64)
    unsure = torch.zeros_like(kept, dtype=torch.bool)
    numbers = torch.rand(100, 20, num_levels(50257), generator=generator, dtype=torch.float64)
    num_close = 0
    for some in numbers:
        tokens, close = draw(kept, some, margin, kept, unsure)
        others, _ = draw(moved, some, margin, moved, unsure)
        assert torch.equal(tokens[~close], others[~close])
        num_close += int(close.sum())
    assert num_close < 8  # of 2,000


def test_uniforms_are_spread_and_differ_by_every_part_of_the_key() -> None:
    numbers = [
        number
        for seed in (0, 1)
        for row in "ab"
        for sample in (0, 1)
        for step in (0, 1)
        for number in uniforms(seed, row, sample, step, 4)
    ]
    assert len(set(numbers)) == 64
    mean = keyed(500, 8).mean().item()
    assert mean == pytest.approx(0.5, abs=0.03)


def test_the_first_row_of_an_id_has_the_numbers_that_it_has_alone_and_later_ones_have_others() -> None:
    first = uniforms(3, "a", 1, 5, 4)
    assert first == [0.7657192657934502, 0.1875844943569973, 0.14630111341830343, 0.07902570173610002]
    assert uniforms(3, "a", 1, 5, 4, occurrence=0) == first
    later = [uniforms(3, "a", 1, 5, 4, occurrence=number) for number in range(1, 12)]
    assert len({tuple(numbers) for numbers in [first, *later]}) == 12


def short_rows(*prompts: str, **sampling: object) -> list[Sequence]:
    return [Sequence(request, 0, [1, 2, 3]) for request in requests_of(prompts, **sampling)]


def sampler(recomputed: list[Sequence]) -> Sampler:
    def recompute(sequence: Sequence) -> torch.Tensor:
        recomputed.append(sequence)
        return torch.tensor([0.0, 0.0, 9.0])

    return Sampler([0], recompute=recompute)


def test_only_close_greedy_choices_are_made_again() -> None:
    recomputed: list[Sequence] = []
    scores = torch.tensor([[5.0, 5.0 - GREEDY_MARGIN / 2, 0.0], [5.0, 5.0 - GREEDY_MARGIN * 2, 0.0]])
    assert sampler(recomputed).choose(scores, short_rows("a", "b")) == [2, 0]
    assert [s.request.prompt for s in recomputed] == ["a"]


def test_only_draws_near_a_step_are_made_again() -> None:
    recomputed: list[Sequence] = []
    _, at = uniforms(0, "0", 0, 0, 2)  # at the second node, between the first two tokens
    scores = torch.tensor([[at, 1 - at, 1e-9], [0.001, 0.001, 0.998]], dtype=torch.float64).log().float()
    sampler(recomputed).choose(scores, short_rows("a", "b", temperature=1.0))
    assert [s.request.prompt for s in recomputed] == ["a"]


def test_draws_near_a_cut_are_made_again() -> None:
    recomputed: list[Sequence] = []
    tied = torch.tensor([[1.0, 1.0, 1.0 - DRAW_MARGIN / 4]])
    sampler(recomputed).choose(tied, short_rows("a", temperature=1.0, top_k=2))
    assert len(recomputed) == 1


def test_without_recompute_nothing_is_made_again() -> None:
    assert Sampler([0]).choose(torch.tensor([[5.0, 5.0, 0.0]]), short_rows("a")) == [0]


def test_a_finished_row_is_not_made_again() -> None:
    recomputed: list[Sequence] = []
    rows = short_rows("a")
    rows[0].finish_reason = "stop"
    sampler(recomputed).choose(torch.tensor([[5.0, 5.0, 0.0]]), rows)
    assert recomputed == []


def test_greedy_and_drawn_rows_share_a_step() -> None:
    rows = short_rows("a") + short_rows("b", temperature=1.0)
    scores = torch.tensor([[0.0, 1.0, 0.0], [-50.0, -50.0, 50.0]])
    assert Sampler([0]).choose(scores, rows) == [1, 2]


def test_a_penalty_counts_tokens_chosen_so_far() -> None:
    (row,) = short_rows("a", repetition_penalty=2.0)
    scores = torch.tensor([[1.5, 0.0, 0.0, 0.0, 2.0]])
    [token] = Sampler([0]).choose(scores.clone(), [row])
    assert token is not None
    row.output_ids.append(token)
    assert row.output_ids == [4]
    assert Sampler([0]).choose(scores.clone(), [row]) == [0]


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 2, "top_p": 0.5}], ids=str
)
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_row_whose_logits_are_not_numbers_has_no_token(sampling: dict[str, float], broken: float) -> None:
    scores = torch.tensor([[0.0, 50.0, 0.0], [0.0, broken, 1.0], [50.0, 0.0, 0.0]])
    assert Sampler([0]).choose(scores, short_rows("a", "b", "c", **sampling)) == [1, None, 0]


def test_a_decision_waits_for_the_device_once() -> None:
    sampler = Sampler([0])
    sampler.choose(torch.eye(3), short_rows("a", "b", "c"))
    sampler.choose(torch.eye(3), short_rows("a", "b") + short_rows("c", temperature=1.0))
    assert sampler.host_syncs == 2
