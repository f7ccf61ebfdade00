"""One layer of the KV cache, and the attention over it that transformers calls by name."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from batchgen.engines.continuous.blocks import zeros
from batchgen.engines.continuous.memory import PAGE
from batchgen.engines.continuous.slot_attention import attend_pages, attend_prefix, attend_prompts, merge
from batchgen.engines.continuous.slots import PrefillView, StepView

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    class Owner(Protocol):
        """What a layer reads of the cache that it belongs to."""

        num_pages: int
        num_used: int
        view: PrefillView | StepView | None


ATTENTION = "batchgen_slots"  # the name under which transformers finds the attention below
# What an attention may ask for that slots do not have.
FOREIGN = ("sliding_window", "softcap", "s_aux", "position_bias")


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's pages: keys and values `[pages, Hkv, PAGE, D]`, both multiplied as they lie."""

    is_sliding = False

    def __init__(self, cache: Owner, index: int) -> None:
        super().__init__()
        # Were it a cycle, the pages would stay until the garbage collector comes.
        self.cache = cast("Owner", weakref.proxy(cache))
        self.index = index

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Learns heads, sizes and dtype from the first keys and values, `[B, Hkv, T, D]` each."""
        num_pages = self.cache.num_pages
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
        view = self.cache.view
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

    def attend(self, query: torch.Tensor, scaling: float) -> torch.Tensor:
        """Attention of one query a row, `[B, H, 1, D]`, to all of the row's columns: `[B, 1, H, D]`.

        Each page gives a part of it, and so does a prefix, which all rows that share it read together.
        """
        view = self.cache.view
        assert isinstance(view, StepView)
        rows, heads, _, size = query.shape
        query = (query * scaling).view(rows, self.keys.shape[1], -1, size)  # [B, Hkv, G, D]
        used = len(view.row_of_page)
        parts = [attend_pages(query, self.keys[:used], self.values[:used], view.row_of_page, view.mask)]
        for prefix, sharing in view.prefixes:
            parts.append(attend_prefix(query, prefix.keys[self.index], prefix.values[self.index], sharing))
        return merge(parts, rows).view(rows, 1, heads, size).to(query.dtype)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Columns before those of the forward in hand that all of its rows share."""
        prefix = self.cache.view.prefix if isinstance(self.cache.view, PrefillView) else None
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
    if isinstance(key, SlotLayer):
        if foreign := [name for name in FOREIGN if kwargs.get(name) is not None]:
            raise NotImplementedError(f"attention with {foreign[0]}")
        return key.attend(query, kwargs["scaling"]), None
    if _has_few_scores(query, key) and attention_mask is not None:
        return attend_prompts(query, key, value, attention_mask, kwargs["scaling"]), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]


def _has_few_scores(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether to compute all scores at once, which in bfloat16 takes a CPU half the time of torch's fused attention.

    Where the heads are as wide as the hidden size, they take no more memory than four vectors of it a token, as long
    as an inner layer's of GPT-2.
    """
    is_bfloat16_on_cpu = query.device.type == "cpu" and query.dtype == torch.bfloat16
    return is_bfloat16_on_cpu and key.shape[2] <= 4 * query.shape[3]


def attention_mask(*, q_length: int, **kwargs: Any) -> torch.Tensor | None:
    """A step needs none, its pages know their columns; a prefill has the causal mask with its pads."""
    return None if q_length == 1 and kwargs["kv_length"] == 1 else sdpa_mask(q_length=q_length, **kwargs)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, attention_mask)
