"""The slot cache, a transformers `Cache`: keys, values and states of rows that come and go.

Layers keep keys and values in pages; layers with the same attention rule use the same page numbers. Knows nothing of
tokens, sampling or scheduling.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import TypeAlias

import torch
from transformers.cache_utils import Cache

from batchgen.engines.continuous.layer import SlotLayer
from batchgen.engines.continuous.memory import pages_for
from batchgen.engines.continuous.pages import MOST_HOLES, PagePool
from batchgen.engines.continuous.prompt_attention import lay_out
from batchgen.engines.continuous.slots import Prefix, Slot
from batchgen.engines.continuous.states import StateAndSlotLayer, StateLayer, StatePool
from batchgen.model.layer_rules import LayerRule

Pools: TypeAlias = dict[tuple[int | None, int | None], PagePool]  # by window and chunk


class EmptyLayer:
    """Placeholder for a layer that keeps nothing: transformers 5.17 has no class for it; later releases do."""

    is_compileable = is_croppable = True
    supports_early_init = False


Layer = SlotLayer | StateLayer | EmptyLayer


class SlotCache(Cache):  # type: ignore[misc]
    """What every layer keeps, depending on its rule: pages of keys and values, states, both or nothing.

    Before a forward, announce what it fills: `begin_prefill` for prompts, `begin_step` for one or more tokens of each
    slot.
    """

    def __init__(self, rules: Rows[LayerRule], device: torch.device) -> None:
        pools = {(rule.window, rule.chunk): PagePool(rule, device) for rule in rules if rule.attends}
        self.pools = list(pools.values())
        self.states = StatePool() if any(rule.num_states for rule in rules) else None
        super().__init__(layers=[self._layer(index, rule, pools) for index, rule in enumerate(rules)])
        self.device = device
        self._begun: list[Slot] = []  # slots that got a column in the current step, once per column

    def _layer(self, index: int, rule: LayerRule, pools: Pools) -> Layer:
        layer: Layer
        if rule.attends:
            pool = pools[rule.window, rule.chunk]
            layer = StateAndSlotLayer(pool, index, rule.num_states) if rule.num_states else SlotLayer(pool, index)
            pool.layers.append(layer)
        else:
            layer = StateLayer(rule.num_states) if rule.num_states else EmptyLayer()
        if isinstance(layer, StateLayer) and self.states:
            self.states.layers.append(layer)
        return layer

    @property
    def held_bytes(self) -> int:
        """Memory that keys, values and states take."""
        return sum(pool.held_bytes for pool in self.pools) + (self.states.held_bytes if self.states else 0)

    def grow(self, columns: Rows[int]) -> None:
        """Make room for rows that will have at most `columns` columns each; existing contents are kept."""
        for pool in self.pools:
            pool.grow(sum(pages_for(num_columns, pool.rule.reach) for num_columns in columns))

    def begin_prefill(self, slots: Rows[Slot], attention_mask: torch.Tensor) -> None:
        """Begin a prefill: the forward fills new `slots` with the real columns of a left-padded batch.

        `attention_mask` `[B, T]` must be on the CPU.
        """
        lengths, width = attention_mask.sum(-1).tolist(), attention_mask.shape[1]
        for slot, num_columns in zip(slots, lengths, strict=True):
            slot.num_columns = num_columns
        layout = lay_out(lengths, width, self.device)
        for pool in self.pools:
            pool.begin_prefill(slots, width, layout)
        if self.states:
            self.states.begin_prefill(slots, attention_mask.to(self.device))

    def begin_prefix(self, num_tokens: int) -> Prefix:
        """Begin a forward of one row that computes a prefix instead of filling a slot."""
        prefix = Prefix(num_tokens)
        layout = lay_out([num_tokens], num_tokens, self.device)
        for pool in self.pools:
            pool.begin_prefix(prefix, layout)
        return prefix

    def begin_step(self, slots: Rows[Slot]) -> None:
        """Begin a step: the forward appends a column to each of `slots`, which must be all open slots.

        A slot may appear several times if the model has no states: each of its new columns sees the ones before it.
        """
        self._begun = []
        for pool in self.pools:  # before any slot changes, because this may run out of memory
            pool.reserve_step(slots)
        if self.states:
            self.states.begin_step(slots)
        for slot in slots:
            slot.num_columns += 1
        for pool in self.pools:
            pool.begin_step(slots)
        self._begun = list(slots)

    def undo_step(self) -> bool:
        """Remove the columns that a failed step added, and return whether the slots are intact.

        False if the slots have states that the step changed: all slots must then be closed and filled again.
        """
        begun, self._begun = self._begun, []
        for slot in begun:
            slot.num_columns -= 1
            for pool in self.pools:
                pool.take_back(slot, is_broken=True)  # the failed forward may have written NaN
        return self.states is None or self.states.undo_step()

    def take_back(self, slot: Slot, num_columns: int) -> None:
        """Remove the last columns that the current step gave to a slot."""
        for _ in range(num_columns):
            self._begun.remove(slot)
            slot.num_columns -= 1
            for pool in self.pools:
                pool.take_back(slot)

    def end_step(self) -> None:
        """Finish a successful step: its columns stay."""
        begun, self._begun = self._begun, []
        for pool in self.pools:
            pool.end_step(begun)
        if self.states:
            self.states.end_step()

    def close(self, slot: Slot, *, is_broken: bool = False) -> None:
        """Free a slot's pages, and zero them if their contents are broken (NaN)."""
        for pool in self.pools:
            pool.close(slot, is_broken=is_broken)
        if self.states:
            self.states.close(slot)

    def shrink(self) -> None:
        """Free all memory that the open slots do not need."""
        for pool in self.pools:
            pool.shrink()

    def compact(self, most_holes: float = MOST_HOLES) -> None:
        """Fill holes between pages if more than the share `most_holes` of all pages are holes."""
        for pool in self.pools:
            pool.compact(most_holes)
