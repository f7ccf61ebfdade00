"""One layer of the KV cache, and the attention function over it that transformers calls by name."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import CacheLayerMixin

from batchgen.engines.continuous.blocks import zeros
from batchgen.engines.continuous.memory import PAGE
from batchgen.engines.continuous.prompt_attention import attend_prompts
from batchgen.engines.continuous.slot_attention import PLAIN, Extras, Pages, PrefixPages, attend, extras_of
from batchgen.engines.continuous.slots import PrefillView, SharedPrefix, StepView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Protocol

    from batchgen.model.layer_rules import LayerRule

    class Owner(Protocol):
        """What a layer reads from the page pool that it belongs to."""

        rule: LayerRule
        num_pages: int
        num_used: int
        view: PrefillView | StepView | None

        @property
        def num_spare(self) -> int: ...

        def hold(self, layer: SlotLayer, prompts: tuple[torch.Tensor, torch.Tensor]) -> None: ...


KeysAndValues: TypeAlias = "Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]"
ATTENTION = "batchgen_slots"  # the name under which transformers finds the attention below


def as_kept(keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For layers whose keys and values are what attention multiplies."""
    return keys, values


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's pages: keys and values `[pages, Hkv, PAGE, D]`, which attention multiplies without copying."""

    is_sliding = False

    def __init__(self, pool: Owner, index: int) -> None:
        super().__init__()
        # A reference cycle would keep the pages alive until the garbage collector runs.
        self.pool = cast("Owner", weakref.proxy(pool))
        self.window, self.chunk = pool.rule.window, pool.rule.chunk
        self.index = index
        self.prompts: tuple[torch.Tensor, torch.Tensor] | None = None  # keys and values of the current prefill

    @property
    def is_stepping(self) -> bool:
        """Whether the current forward is a step, not a prefill."""
        return isinstance(self.pool.view, StepView)

    @property
    def column_bytes(self) -> int:
        """Bytes of one column; 0 before the first column is written."""
        if not self.is_initialized:
            return 0
        return sum(block.shape[1] * block.shape[3] * block.element_size() for block in (self.keys, self.values))

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take heads, sizes and dtype from the first keys and values, `[B, Hkv, T, D]` each."""
        num_pages, num_spare = self.pool.num_pages, self.pool.num_spare
        # Zeros, because a page's last columns are multiplied before they are written, and 0 * NaN is NaN.
        self.keys = zeros((num_pages, key_states.shape[1], PAGE, key_states.shape[3]), key_states, num_spare)
        self.values = zeros((num_pages, value_states.shape[1], PAGE, value_states.shape[3]), value_states, num_spare)
        self.is_initialized = True

    def resize(self, num_pages: int, used: int, num_spare: int = 0) -> None:
        """Change the number of pages, the last of which are spare, and copy the `used` ones.

        The cache that owns the pool may already be gone.
        """
        if self.is_initialized:
            for name in ("keys", "values"):
                old: torch.Tensor = getattr(self, name)
                new = zeros((num_pages, *old.shape[1:]), old, num_spare)
                new[:used] = old[:used]
                setattr(self, name, new)

    def zero(self, pages: Iterable[int], column: int | slice = slice(None)) -> None:
        """Zero pages, or one column of them, so that NaN in them does not spoil the sums of other rows.

        A hidden column has a weight of 0, and 0 * NaN is NaN.
        """
        if self.is_initialized:
            index = list(pages)
            self.keys[index, :, column] = 0
            self.values[index, :, column] = 0

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy pages over others. A layer that reads the cache of another one has no pages."""
        if self.is_initialized:
            self.keys[targets] = self.keys[sources]
            self.values[targets] = self.values[sources]

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Write keys and values `[B, Hkv, T, D]` where the current view says.

        Return the layer itself in their place, for `attention` below to read.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        view = self.pool.view
        if isinstance(view, StepView):
            rows = len(view.page)  # a step may have filler rows
            self.keys[view.page, :, view.column] = key_states[:rows, :, 0]  # [B, Hkv, D]
            self.values[view.page, :, view.column] = value_states[:rows, :, 0]
            return self, self
        assert view is not None
        if view.computes:
            view.computes.keys.append(key_states[0].contiguous())
            view.computes.values.append(value_states[0].contiguous())
        else:
            self.keys[view.page, :, view.column] = key_states.transpose(1, 2).flatten(0, 1)[view.real]  # [N, Hkv, D]
            self.values[view.page, :, view.column] = value_states.transpose(1, 2).flatten(0, 1)[view.real]
        self.pool.hold(self, (key_states, value_states))
        return self, self

    def attend(
        self,
        query: torch.Tensor,
        scaling: float,
        extras: Extras = PLAIN,
        of: KeysAndValues = as_kept,
    ) -> torch.Tensor:
        """Return the attention of queries `[B, H, T, D]` to all columns of their rows that they see: `[B, T, H, Dv]`.

        `of` computes keys and values from what the layer keeps.
        """
        view = self.pool.view
        assert view is not None
        if isinstance(view, PrefillView):
            return self._attend_prompts(query * scaling, view, extras, of)
        filled, heads, _, size = query.shape
        rows = len(view.page)
        own, prefixes = self.step_pages(view, of)
        query = query[:rows].reshape(rows, self.keys.shape[1], -1, size)  # [B, Hkv, G, D]
        found = attend(query, own, prefixes, extras, scaling).reshape(rows, 1, heads, -1).to(query.dtype)
        return found if filled == rows else torch.cat([found, found[-1:].expand(filled - rows, -1, -1, -1)])

    def step_pages(self, view: StepView, of: KeysAndValues = as_kept) -> tuple[Pages, list[PrefixPages]]:
        """Return the pages and prefixes that a step reads in this layer."""
        used = len(view.row_of_page) // view.times
        keys, values = of(self.keys[:used], self.values[:used])
        own = Pages(keys, values, view.row_of_page, view.mask, view.order, view.first, view.times)
        return own, [self._seen(shared, of) for shared in view.prefixes]

    def _attend_prompts(
        self, query: torch.Tensor, view: PrefillView, extras: Extras, of: KeysAndValues
    ) -> torch.Tensor:
        layout, prefix = view.layout, view.prefix
        assert self.prompts is not None
        missing = self.prompts[0].shape[2] - query.shape[2]  # Gemma 4's last layers query only the end of a prompt
        query = pad(query, (0, 0, missing, 0))
        keys, values = (layout.from_start(x).transpose(1, 2) for x in self.prompts)  # [B, Hkv, width, D]
        if prefix:
            keys, values = (
                torch.cat([before[self.index].expand(len(x), -1, -1, -1), x], 2)
                for before, x in ((prefix.keys, keys), (prefix.values, values))
            )
        keys, values = of(keys.contiguous(), values.contiguous())
        found = attend_prompts(
            layout.from_start(query), keys, values, window=self.window, chunk=self.chunk, extras=extras
        )
        return layout.to_columns(found)[:, missing:]

    def _seen(self, shared: SharedPrefix, of: KeysAndValues) -> PrefixPages:
        keys, values = shared.prefix.keys[self.index], shared.prefix.values[self.index]  # [Hkv, P, D]
        keys, values = of(keys[:, shared.first :], values[:, shared.first :])
        return PrefixPages(keys, values, shared.index, shared.mask)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """The number of columns before the current forward that all of its rows share."""
        prefix = self.pool.view.prefix if isinstance(self.pool.view, PrefillView) else None
        return prefix.num_tokens if prefix else 0

    def get_max_length(self) -> int:
        return -1


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: SlotLayer,
    value: SlotLayer,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The function that transformers calls in each layer."""
    if kwargs.get("sliding_window") != key.window:
        raise NotImplementedError(f"a window of {kwargs.get('sliding_window')} in layer {key.index}")
    return key.attend(query, kwargs["scaling"], extras_of(kwargs)), None


def attention_mask(**_: Any) -> None:
    """Return no mask: layers know their rows' columns and which of them a query sees."""


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, attention_mask)
