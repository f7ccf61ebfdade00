"""Attention of prefills and steps against plain softmax attention, and equal bits whatever other rows there are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numba import njit

from batchgen.engines.compiled import layers
from batchgen.engines.compiled.compiling import NUMPY
from batchgen.engines.compiled.layers import attend as compiled_attend
from batchgen.engines.compiled.prompt_attention import attend_prompts as compiled_attend_prompts
from batchgen.engines.compiled.prompt_attention import lay_out_prompts
from batchgen.engines.compiled.sums import add_four, add_one, add_three, add_two
from batchgen.engines.compiled.tensors import has_tiles, name_of
from batchgen.engines.continuous.memory import PAGE
from batchgen.engines.continuous.pages import HIDDEN
from batchgen.engines.continuous.prompt_attention import attend_prompts, lay_out
from batchgen.engines.continuous.slot_attention import PLAIN, Extras, Pages, PrefixPages, attend
from batchgen.model.layer_rules import LayerRule

Attend = Callable[..., torch.Tensor]
SIZE = 16
BOTH = pytest.mark.parametrize("by", [attend, compiled_attend], ids=["torch", "compiled"])
# Compiling takes time, so only one number of heads is compiled.
HEADS = pytest.mark.parametrize(("kv_heads", "by"), [(1, attend), (2, attend), (4, attend), (2, compiled_attend)])
DTYPES = [torch.float32, torch.bfloat16]
CPU = torch.device("cpu")


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None, extras: Extras
) -> torch.Tensor:
    """Attend from the last of S columns: query `[H, D]`, keys and values `[Hkv, S, D]`."""
    group = len(query) // len(keys)
    keys, values = (part[:, -window if window else 0 :].repeat_interleave(group, 0) for part in (keys, values))
    scores = torch.einsum("hd,hsd->hs", query, keys)
    if extras.softcap:
        scores = (scores / extras.softcap).tanh() * extras.softcap
    sinks = scores[:, :0] if extras.sinks is None else extras.sinks[:, None]
    weights = torch.cat([scores, sinks], -1).softmax(-1)[:, : scores.shape[1]]
    return torch.einsum("hs,hsd->hd", weights, values)


def prompts_alone(lengths: tuple[int, ...], heads: int, kv_heads: int) -> list[list[torch.Tensor]]:
    """Return queries, keys and values of each row, `[1, H, length, D]`."""
    return [
        [numbers(1, count, length, SIZE, seed=10 * row + i) for i, count in enumerate((heads, kv_heads, kv_heads))]
        for row, length in enumerate(lengths)
    ]


def prefill(
    rows: list[list[torch.Tensor]],
    rule: LayerRule,
    extras: Extras = PLAIN,
    *,
    is_compiled: bool = False,
) -> list[torch.Tensor]:
    """Return what rows get in one left-padded batch, `[length, H, D]` each; their pads are NaN."""
    lengths = [row[0].shape[2] for row in rows]
    columns = max(lengths)
    layout = lay_out(lengths, columns, CPU)
    query, keys, values = (
        torch.cat([torch.nn.functional.pad(x, (0, 0, columns - x.shape[2], 0), value=torch.nan) for x in its])
        for its in zip(*rows, strict=True)
    )
    if is_compiled:
        found = compiled_attend_prompts(query, lay_out_prompts(keys, values, layout.lengths), rule, extras)
    else:
        laid = (layout.from_start(x).transpose(1, 2).contiguous() for x in (keys, values))
        found = layout.to_columns(
            attend_prompts(layout.from_start(query), *laid, window=rule.window, chunk=rule.chunk, extras=extras)
        )
    return [its[columns - length :] for its, length in zip(found, lengths, strict=True)]


def needs_tiles(dtype: torch.dtype) -> None:
    if not has_tiles(name_of(dtype)):
        pytest.skip(f"tiles do not multiply {dtype} on this processor")


@pytest.mark.parametrize(("heads", "kv_heads", "is_compiled"), [(4, 4, False), (6, 2, False), (6, 2, True)])
@pytest.mark.parametrize("window", [None, 7, PAGE, 40])
@pytest.mark.parametrize("extras", [PLAIN, Extras(softcap=2.0), Extras(sinks=torch.linspace(-1, 2, 4))])
def test_a_prefill_attends_to_the_columns_that_each_query_sees(
    heads: int, kv_heads: int, is_compiled: bool, window: int | None, extras: Extras
) -> None:
    if is_compiled:
        needs_tiles(torch.float32)
    if extras.sinks is not None:
        extras = Extras(sinks=torch.linspace(-1, 2, heads))
    rows = prompts_alone((70, 9, 33), heads, kv_heads)
    together = prefill(rows, LayerRule(window=window), extras, is_compiled=is_compiled)
    for row, found in zip(rows, together, strict=True):
        query, keys, values = (x[0] for x in row)
        for place in range(query.shape[1]):
            seen = keys[:, : place + 1], values[:, : place + 1]
            wanted = plain_attention(query[:, place], *seen, window, extras)
            torch.testing.assert_close(found[place], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", [LayerRule(), LayerRule(window=40), LayerRule(chunk=48)])
def test_a_prefill_gives_a_row_its_own_bits_beside_any_rows(
    dtype: torch.dtype, rule: LayerRule, is_compiled: bool
) -> None:
    if is_compiled:
        needs_tiles(dtype)
    rows = [[x.to(dtype) for x in row] for row in prompts_alone((70, 1, 33, 64, 200), 6, 2)]
    together = prefill(rows, rule, is_compiled=is_compiled)
    for row, found in zip(rows, together, strict=True):
        assert torch.equal(prefill([row], rule, is_compiled=is_compiled)[0], found)
        if is_compiled:
            near = 1e-5 if dtype == torch.float32 else 0.03
            (wanted,) = prefill([[x.float() for x in row]], rule)
            torch.testing.assert_close(found.float(), wanted, rtol=near, atol=near)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", [LayerRule(), LayerRule(window=40), LayerRule(chunk=48)])
@pytest.mark.parametrize("shared", [PAGE, 3 * PAGE])
def test_a_compiled_prefill_gives_the_same_bits_after_a_prefix(
    dtype: torch.dtype, rule: LayerRule, shared: int
) -> None:
    needs_tiles(dtype)
    (whole,) = [[x.to(dtype) for x in row] for row in prompts_alone((150,), 6, 2)]
    query, keys, values = (x[:, :, shared:] for x in whole)
    prefix = whole[1][0, :, :shared].contiguous(), whole[2][0, :, :shared].contiguous()
    laid = lay_out_prompts(keys, values, torch.tensor([150 - shared]), prefix)
    found = compiled_attend_prompts(query, laid, rule)[0]
    assert torch.equal(prefill([whole], rule, is_compiled=True)[0][shared:], found)


@pytest.mark.parametrize("size", [6, 64, 80])
def test_a_compiled_prefill_takes_heads_of_any_size_and_scales_scores(size: int) -> None:
    needs_tiles(torch.float32)
    query, keys, values = (numbers(2, heads, 67, size, seed=heads) for heads in (5, 1, 1))
    laid = lay_out_prompts(keys, values, torch.tensor([67, 67]))
    found = compiled_attend_prompts(query, laid, LayerRule(), scaling=0.3)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        query, keys, values, is_causal=True, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(found.transpose(1, 2), wanted, rtol=1e-5, atol=1e-5)


def steps(
    lengths: tuple[int, ...], dtype: torch.dtype, heads: int = 4, kv_heads: int = 2, size: int = SIZE
) -> list[list[torch.Tensor]]:
    """Return one query and the columns of each row: `[Hkv, G, D]`, `[Hkv, length, D]` twice."""
    shape = (kv_heads, heads // kv_heads, size)
    return [
        [numbers(*(shape if i == 0 else (kv_heads, length, size)), seed=10 * row + i).to(dtype) for i in range(3)]
        for row, length in enumerate(lengths)
    ]


def step(
    rows: list[list[torch.Tensor]], by: Attend, shuffled: int = 0, shared: int = 0, extras: Extras = PLAIN
) -> torch.Tensor:
    """Return what rows get from pages in shuffled order, the first `shared` columns from a common prefix."""
    pages = []  # row, place in it, keys, values and mask
    for row, (_, *columns) in enumerate(rows):
        for start in range(shared, columns[0].shape[1], PAGE):
            ours = [x[:, start : start + PAGE] for x in columns]
            missing = PAGE - ours[0].shape[1]
            keys, values = (torch.nn.functional.pad(x, (0, 0, 0, missing), value=1e3) for x in ours)
            mask = torch.zeros(PAGE)
            mask[PAGE - missing :] = HIDDEN
            pages.append((row, start, keys, values, mask))
    places = torch.randperm(len(pages), generator=torch.Generator().manual_seed(shuffled)).tolist()
    lying = [pages[place] for place in places]
    order, first, num_shared = [], [], -(-shared // PAGE)
    for row in range(len(rows)):
        first.append(len(order))
        order += [len(pages) + row * num_shared + page for page in range(num_shared)]
        order += sorted((i for i, page in enumerate(lying) if page[0] == row), key=lambda place: lying[place][1])
    own = Pages(
        torch.stack([page[2] for page in lying]),
        torch.stack([page[3] for page in lying]),
        torch.tensor([page[0] for page in lying]),
        torch.stack([page[4] for page in lying]),
        torch.tensor(order),
        torch.tensor([*first, len(order)]),
    )
    prefix = [x[:, :shared] for x in rows[0][1:]]
    prefixes = [PrefixPages(prefix[0], prefix[1], torch.arange(len(rows)))] if shared else []
    return by(torch.stack([row[0] for row in rows]), own, prefixes, extras)


@pytest.mark.parametrize("extras", [PLAIN, Extras(softcap=2.0), Extras(sinks=torch.linspace(-1, 2, 4))])
@BOTH
def test_a_step_attends_to_all_columns_of_each_row(extras: Extras, by: Attend) -> None:
    rows = steps((5, 32, 100), torch.float32)
    for row, found in zip(rows, step(rows, by, extras=extras), strict=True):
        query, keys, values = row
        wanted = plain_attention(query.flatten(0, 1), keys, values, None, extras)
        torch.testing.assert_close(found.flatten(0, 1), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "size", "group", "in_registers"),
    [
        (torch.float32, 16, 2, False),
        (torch.bfloat16, 16, 2, False),
        (torch.float32, 16, 2, True),  # a head fills one register
        (torch.bfloat16, 32, 2, True),
        (torch.float32, 64, 7, True),  # sums of four queries, and of three
        (torch.bfloat16, 64, 7, True),
    ],
)
def test_a_compiled_step_takes_heads_of_any_size(
    dtype: torch.dtype, size: int, group: int, in_registers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_registers:
        needs_tiles(dtype)
    monkeypatch.setattr(layers, "scores_in_registers", lambda *_: in_registers)
    rows = steps((5, 32, 100, 1), dtype, heads=2 * group, size=size)
    together = step(rows, compiled_attend)
    for row, found in zip(rows, together, strict=True):
        query, keys, values = (x.float() for x in row)
        wanted = plain_attention(query.flatten(0, 1), keys, values, None, PLAIN)
        near = 1e-5 if dtype == torch.float32 else 0.01
        torch.testing.assert_close(found.flatten(0, 1).float(), wanted, rtol=near, atol=near)
        assert torch.equal(step([row], compiled_attend)[0], found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4])
def test_values_are_added_for_several_queries_at_once(num_rows: int, dtype: torch.dtype) -> None:
    needs_tiles(dtype)
    add = [add_one, add_two, add_three, add_four][num_rows - 1]
    weights, values, sums = numbers(num_rows, 9), numbers(9, 2, 64).to(dtype), numbers(num_rows, 64)
    wanted = sums + weights[:, :7] @ values[:7, 1].float()

    @njit
    def run(sums, weights, values, like):  # type: ignore[no-untyped-def]
        add(sums, 64 * 4, weights, 9 * 4, values + 64 * like.itemsize, 2 * 64 * like.itemsize, 7, values, like)

    run(sums.data_ptr(), weights.data_ptr(), values.data_ptr(), np.zeros(1, NUMPY[name_of(dtype)]))
    torch.testing.assert_close(sums, wanted, rtol=1e-5, atol=1e-5)


@BOTH
def test_a_step_attends_to_a_prefix_that_ends_within_a_page(by: Attend) -> None:
    rows = steps((50, 41, 100), torch.float32)
    for row in rows:
        row[1:] = [torch.cat([first[:, :41], own[:, 41:]], 1) for first, own in zip(rows[0][1:], row[1:], strict=True)]
    for row, found in zip(rows[::2], step(rows[::2], by, shared=41), strict=True):
        query, keys, values = row
        wanted = plain_attention(query.flatten(0, 1), keys, values, None, PLAIN)
        torch.testing.assert_close(found.flatten(0, 1), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@BOTH
def test_one_more_page_of_hidden_columns_changes_no_bits(dtype: torch.dtype, by: Attend) -> None:
    """As a row has it while it tries drafts: an earlier query does not see the columns of a later one."""
    query, keys, values = steps((20,), dtype)[0]
    keys, values = (torch.nn.functional.pad(x, (0, 0, 0, 3 * PAGE - 20), value=7.0) for x in (keys, values))
    pages = [x.unflatten(1, (3, PAGE)).transpose(0, 1).contiguous() for x in (keys, values)]  # [3, Hkv, PAGE, D]
    mask = torch.full((3 * PAGE,), HIDDEN)
    mask[:20] = 0
    found = []
    for count in (1, 2, 3):
        own = Pages(
            *pages, torch.zeros(3, dtype=torch.int64), mask.view(3, PAGE), torch.arange(count), torch.tensor([0, count])
        )
        found.append(by(query[None], own))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("dtype", DTYPES)
@HEADS
def test_a_step_gives_a_row_its_own_bits_beside_any_rows_and_wherever_its_pages_lie(
    dtype: torch.dtype, kv_heads: int, by: Attend
) -> None:
    rows = steps((5, 200, 64, 131, 7, 90), dtype, kv_heads=kv_heads)
    together = step(rows, by)
    assert torch.equal(together, step(rows, by, shuffled=1))
    for row, found in zip(rows, together, strict=True):
        assert torch.equal(step([row], by)[0], found)


@pytest.mark.parametrize("dtype", DTYPES)
@HEADS
def test_a_shared_prefix_changes_no_bits_of_a_step(dtype: torch.dtype, kv_heads: int, by: Attend) -> None:
    rows = steps((100, 200, 97, 131), dtype, kv_heads=kv_heads)
    for row in rows:
        row[1:] = [torch.cat([first[:, :96], own[:, 96:]], 1) for first, own in zip(rows[0][1:], row[1:], strict=True)]
    apart = step(rows, by)
    for count in (1, 2, 4):
        assert torch.equal(step(rows[:count], by, shared=96), apart[:count])
