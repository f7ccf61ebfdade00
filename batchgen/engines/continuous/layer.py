"""One layer of the KV cache, and the attention over it that transformers calls by name."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from batchgen.engines.continuous.blocks import zeros
from batchgen.engines.continuous.memory import PAGE
from batchgen.engines.continuous.slot_attention import (
    PLAIN,
    Extras,
    attend_pages,
    attend_prefix,
    attend_prompts,
    extras_of,
    merge,
    sink_share,
)
from batchgen.engines.continuous.slots import PrefillView, StepView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Protocol

    class Owner(Protocol):
        """What a layer reads of the pool of pages that it belongs to."""

        window: int | None
        num_pages: int
        num_used: int
        view: PrefillView | StepView | None


KeysAndValues: TypeAlias = "Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]"
ATTENTION = "batchgen_slots"  # the name under which transformers finds the attention below


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's pages: keys and values `[pages, Hkv, PAGE, D]`, both multiplied as they lie."""

    is_sliding = False

    def __init__(self, pool: Owner, index: int) -> None:
        super().__init__()
        # Were it a cycle, the pages would stay until the garbage collector comes.
        self.pool = cast("Owner", weakref.proxy(pool))
        self.window = pool.window
        self.index = index

    @property
    def column_bytes(self) -> int:
        """Bytes of one column; none before the first."""
        if not self.is_initialized:
            return 0
        return sum(block.shape[1] * block.shape[3] * block.element_size() for block in (self.keys, self.values))

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Learns heads, sizes and dtype from the first keys and values, `[B, Hkv, T, D]` each."""
        num_pages = self.pool.num_pages
        # Zeros, since a page's last columns are multiplied before they are written, and 0 * NaN is NaN.
        self.keys = zeros((num_pages, key_states.shape[1], PAGE, key_states.shape[3]), key_states)
        self.values = zeros((num_pages, value_states.shape[1], PAGE, value_states.shape[3]), value_states)
        self.is_initialized = True

    def resize(self, num_pages: int, used: int) -> None:
        """Gets room for so many pages; those in use are copied. The cache may be gone already, with what owns it."""
        if self.is_initialized:
            for name in ("keys", "values"):
                old: torch.Tensor = getattr(self, name)
                new = zeros((num_pages, *old.shape[1:]), old)
                new[:used] = old[:used]
                setattr(self, name, new)

    def zero(self, pages: Iterable[int], column: int | slice = slice(None)) -> None:
        """Forgets what is in pages, or in one column of them: what is not a number would spoil other rows' sums.

        A hidden column has a weight of 0, and 0 * NaN is NaN.
        """
        if self.is_initialized:
            index = list(pages)
            self.keys[index, :, column] = 0
            self.values[index, :, column] = 0

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Writes keys and values `[B, Hkv, T, D]` where the forward's view says.

        In a prefill they come back, behind their prefix; in a step the layer itself comes in their place, for
        `attention` below to read.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        view = self.pool.view
        if isinstance(view, StepView):
            self.keys[view.page, :, view.column] = key_states[:, :, 0]  # [B, Hkv, D]
            self.values[view.page, :, view.column] = value_states[:, :, 0]
            return self, self
        assert view is not None
        if view.computes:
            view.computes.keys.append(key_states[0].contiguous())
            view.computes.values.append(value_states[0].contiguous())
            return key_states, value_states
        self.keys[view.page, :, view.column] = key_states.transpose(1, 2).flatten(0, 1)[view.real]  # [N, Hkv, D]
        self.values[view.page, :, view.column] = value_states.transpose(1, 2).flatten(0, 1)[view.real]
        if view.prefix is None:
            return key_states, value_states
        rows = len(key_states)
        return (
            torch.cat([view.prefix.keys[self.index].expand(rows, -1, -1, -1), key_states], 2),
            torch.cat([view.prefix.values[self.index].expand(rows, -1, -1, -1), value_states], 2),
        )

    def attend(
        self,
        query: torch.Tensor,
        scaling: float,
        extras: Extras = PLAIN,
        of: KeysAndValues = lambda keys, values: (keys, values),
    ) -> torch.Tensor:
        """Attention of one query per row, `[B, H, 1, D]`, to all of the row's columns that it sees: `[B, 1, H, Dv]`.

        Each page gives a part of it, and so does a prefix, which all rows that share it read together. `of` makes keys
        and values of what the layer keeps.
        """
        view = self.pool.view
        assert isinstance(view, StepView)
        rows, heads, _, size = query.shape
        query = (query * scaling).reshape(rows, self.keys.shape[1], -1, size)  # [B, Hkv, G, D]
        used = len(view.row_of_page)
        kept = of(self.keys[:used], self.values[:used])
        parts = [attend_pages(query, *kept, view.row_of_page, view.mask, extras)]
        for shared in view.prefixes:
            keys, values = shared.prefix.keys[self.index], shared.prefix.values[self.index]  # [Hkv, P, D]
            seen = keys[:, shared.first :], values[:, shared.first :]
            parts.append(attend_prefix(query, *of(*seen), shared.rows, shared.mask, extras))
        if extras.sinks is not None:
            parts.append(sink_share(extras.sinks, parts[0], rows))
        return merge(parts, rows).reshape(rows, 1, heads, -1).to(query.dtype)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Columns before those of the forward in hand that all of its rows share."""
        prefix = self.pool.view.prefix if isinstance(self.pool.view, PrefillView) else None
        return prefix.num_tokens if prefix else 0

    def get_max_length(self) -> int:
        return -1


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: Any,
    value: Any,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer: the pages in a step, in a prefill the fastest product there is."""
    extras = extras_of(kwargs)
    if not isinstance(key, torch.Tensor):
        if kwargs.get("sliding_window") != key.window:
            raise NotImplementedError(f"a window of {kwargs.get('sliding_window')} in layer {key.index}")
        return key.attend(query, kwargs["scaling"], extras), None
    if extras is not PLAIN or (_has_few_scores(query, key) and attention_mask is not None):
        return attend_prompts(query, key, value, attention_mask, kwargs["scaling"], extras), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]


def _has_few_scores(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether to compute all scores at once, which in bfloat16 takes a CPU half the time of torch's fused attention.

    Where the heads are as wide as the hidden size, they take no more memory than four vectors of it a token, as long
    as an inner layer's of GPT-2.
    """
    is_bfloat16_on_cpu = query.device.type == "cpu" and query.dtype == torch.bfloat16
    return is_bfloat16_on_cpu and key.shape[2] <= 4 * query.shape[3]


def attention_mask(
    *, q_length: int, kv_length: int, attention_mask: torch.Tensor | None = None, **kwargs: Any
) -> torch.Tensor | None:
    """A step needs none, its pages know their columns; a prefill has transformers' own mask, with its pads.

    A window is one of positions. Columns are as far apart as the positions of their tokens, unless there are pads
    between a prefix and a row's own.
    """
    if q_length == kv_length == 1:
        return None
    sizes = {"q_length": q_length, "kv_length": kv_length, "attention_mask": attention_mask}
    is_local = kwargs.get("local_size") is not None and kwargs["local_size"] < kv_length
    if not is_local or q_length == kv_length or attention_mask is None:
        return sdpa_mask(**sizes, **kwargs)  # type: ignore[no-any-return]
    return _mask_of_positions(q_length, attention_mask, kwargs["mask_function"])


def _mask_of_positions(
    num_queries: int, real: torch.Tensor, mask_function: Callable[..., torch.Tensor]
) -> torch.Tensor:
    """`[B, 1, T, S]`, true where a query sees a column, by the positions of both; real `[B, S]` is the 2D mask."""
    positions = real.cumsum(-1) - 1  # [B, S]
    rows, heads = torch.arange(len(real), device=real.device), torch.zeros(1, device=real.device, dtype=torch.int64)
    seen = mask_function(
        rows[:, None, None, None],
        heads[None, :, None, None],
        positions[:, None, -num_queries:, None],
        positions[:, None, None, :],
    )
    return seen & real.bool()[:, None, None, :]


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, attention_mask)
