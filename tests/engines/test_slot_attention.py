"""Attention to all of a prompt's columns at once, and what hidden columns weigh, against plain softmax attention."""

from __future__ import annotations

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from batchgen.engines.continuous import layer
from batchgen.engines.continuous.layer import attention
from batchgen.engines.continuous.pages import HIDDEN
from batchgen.engines.continuous.slot_attention import attend_pages, attend_prompts

ROWS, SIZE = 3, 16
LENGTHS = (6, 9, 4)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def causal_mask(num_columns: int, before: int = 0) -> torch.Tensor:
    """`[B, 1, T, P + T]` of left-padded rows behind a prefix of P columns, which all see."""
    real = torch.arange(num_columns)[None] >= num_columns - torch.tensor(LENGTHS)[:, None]  # [B, T]
    seen = torch.ones(num_columns, num_columns).tril().bool() & real[:, None, :]
    return torch.cat([torch.ones(ROWS, num_columns, before, dtype=torch.bool), seen], -1)[:, None]


@pytest.mark.parametrize(("heads", "kv_heads", "before"), [(4, 4, 0), (4, 2, 0), (6, 2, 5)])
def test_prompts_attend_to_the_columns_that_their_mask_shows(heads: int, kv_heads: int, before: int) -> None:
    num_columns, group = max(LENGTHS), heads // kv_heads
    query = numbers(ROWS, heads, num_columns, SIZE)
    keys, values = (numbers(ROWS, kv_heads, before + num_columns, SIZE, seed=seed) for seed in (1, 2))
    found = attend_prompts(query, keys, values, causal_mask(num_columns, before), 0.3)  # [B, T, H, D]
    for row, length in enumerate(LENGTHS):
        pads = num_columns - length
        for column in range(pads, num_columns):
            seen = [*range(before), *range(before + pads, before + column + 1)]
            its_keys, its_values = (part[row, :, seen].repeat_interleave(group, 0) for part in (keys, values))
            weights = (torch.einsum("hd,hcd->hc", query[row, :, column], its_keys) * 0.3).softmax(-1)
            wanted = torch.einsum("hc,hcd->hd", weights, its_values)
            torch.testing.assert_close(found[row, column], wanted, rtol=1e-5, atol=1e-5)
    assert found.isfinite().all()  # pads see nothing, and must not spread a NaN


def test_pads_weigh_exactly_nothing_in_a_prefill() -> None:
    num_columns = max(LENGTHS)
    query, keys, values = (numbers(ROWS, 2, num_columns, SIZE, seed=seed).bfloat16() for seed in range(3))
    mask = causal_mask(num_columns)
    pads = ~mask[:, :, -1:].mT  # [B, 1, T, 1]: columns that the last query, and so none, sees
    found, other = (attend_prompts(query, *pair, mask, 0.25) for pair in (
        (keys, values), (keys.masked_fill(pads, 1e3), values.masked_fill(pads, 1e4))
    ))  # fmt: skip
    real = mask[:, 0, -1]
    assert torch.equal(found[real], other[real])


def test_hidden_columns_weigh_exactly_nothing_in_a_step() -> None:
    query, keys, values = numbers(1, 2, 1, SIZE), numbers(2, 2, 8, SIZE, seed=1), numbers(2, 2, 8, SIZE, seed=2)
    mask = torch.zeros(2, 8)
    mask[1, 3:] = HIDDEN
    rows = torch.zeros(2, dtype=torch.int64)
    found = attend_pages(query, keys, values, rows, mask)
    keys[1, :, 3:], values[1, :, 3:] = 1e3, 1e4
    other = attend_pages(query, keys, values, rows, mask)
    assert torch.equal(found.sums, other.sums)
    assert torch.equal(found.total, other.total)


@pytest.mark.parametrize(
    ("dtype", "num_columns", "takes_all_at_once"),
    [(torch.bfloat16, 4 * SIZE, True), (torch.bfloat16, 4 * SIZE + 1, False), (torch.float32, 8, False)],
)
def test_scores_are_computed_at_once_where_that_is_quicker_and_they_are_few(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, num_columns: int, takes_all_at_once: bool
) -> None:
    fused = []

    def sdpa(*args: object, **kwargs: object) -> object:
        fused.append(True)
        return sdpa_attention_forward(*args, **kwargs)

    monkeypatch.setattr(layer, "sdpa_attention_forward", sdpa)
    query, keys, values = (numbers(ROWS, 2, num_columns, SIZE, seed=seed).to(dtype) for seed in range(3))
    mask = causal_mask(num_columns)
    module = torch.nn.Module()
    found, _ = attention(module, query, keys, values, mask, scaling=0.25)
    assert bool(fused) != takes_all_at_once
    wanted, _ = sdpa_attention_forward(module, query.float(), keys.float(), values.float(), mask, scaling=0.25)
    real = mask[:, 0, -1]
    torch.testing.assert_close(found[real].float(), wanted[real], rtol=0.05, atol=0.05)
