"""The slot cache: keys, values and states of rows that come and go, a transformers `Cache`.

Layers keep keys and values in pages, those with one rule of attention in the same ones. Knows nothing of tokens,
sampling or scheduling.
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
    """The place of a layer that keeps nothing: transformers 5.17 has no class for it, later releases have."""

    is_compileable = is_croppable = True
    supports_early_init = False


Layer = SlotLayer | StateLayer | EmptyLayer


class SlotCache(Cache):  # type: ignore[misc]
    """What every layer keeps, by its rule: pages of keys and values, states, both or nothing.

    Before a forward say what it fills: `begin_prefill` for prompts, `begin_step` for one token of each slot or more.
    """

    def __init__(self, rules: Rows[LayerRule], device: torch.device) -> None:
        pools = {(rule.window, rule.chunk): PagePool(rule, device) for rule in rules if rule.attends}
        self.pools = list(pools.values())
        self.states = StatePool() if any(rule.num_states for rule in rules) else None
        super().__init__(layers=[self._layer(index, rule, pools) for index, rule in enumerate(rules)])
        self.device = device
        self._begun: list[Slot] = []  # those that the step in hand has given a column

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
        """Makes room for rows that will have at most so many columns each; what is there is kept."""
        for pool in self.pools:
            pool.grow(sum(pages_for(num_columns, pool.rule.reach) for num_columns in columns))

    def begin_prefill(self, slots: Rows[Slot], attention_mask: torch.Tensor) -> None:
        """The next forward fills new `slots` with the real columns of a left-padded batch: mask `[B, T]` on the CPU."""
        lengths, width = attention_mask.sum(-1).tolist(), attention_mask.shape[1]
        for slot, num_columns in zip(slots, lengths, strict=True):
            slot.num_columns = num_columns
        layout = lay_out(lengths, width, self.device)
        for pool in self.pools:
            pool.begin_prefill(slots, width, layout)
        if self.states:
            self.states.begin_prefill(slots, attention_mask.to(self.device))

    def begin_prefix(self, num_tokens: int) -> Prefix:
        """The next forward, of one row, computes a prefix instead of filling a slot."""
        prefix = Prefix(num_tokens)
        layout = lay_out([num_tokens], num_tokens, self.device)
        for pool in self.pools:
            pool.begin_prefix(prefix, layout)
        return prefix

    def begin_step(self, slots: Rows[Slot]) -> None:
        """The next forward appends a column to each of `slots`, all that are open, and attends to all it sees.

        A slot may stand there several times, if none has states: its columns see those before them.
        """
        self._begun = []
        for pool in self.pools:  # before any slot has changed, since it may run out of memory
            pool.reserve_step(slots)
        if self.states:
            self.states.begin_step(slots)
        for slot in slots:
            slot.num_columns += 1
        for pool in self.pools:
            pool.begin_step(slots)
        self._begun = list(slots)

    def undo_step(self) -> bool:
        """Takes back the columns that a step which failed has begun: of all its slots, or of none.

        False where slots have states, which the step has changed: then all must be closed, and filled anew.
        """
        begun, self._begun = self._begun, []
        for slot in begun:
            slot.num_columns -= 1
            for pool in self.pools:
                pool.take_back(slot, is_broken=True)  # what a failed forward wrote may be no number
        return self.states is None or self.states.undo_step()

    def take_back(self, slot: Slot, num_columns: int) -> None:
        """Takes back the last columns that the step in hand has given a slot."""
        for _ in range(num_columns):
            self._begun.remove(slot)
            slot.num_columns -= 1
            for pool in self.pools:
                pool.take_back(slot)

    def end_step(self) -> None:
        """The step in hand has succeeded: what it has begun stays."""
        begun, self._begun = self._begun, []
        for pool in self.pools:
            pool.end_step(begun)
        if self.states:
            self.states.end_step()

    def close(self, slot: Slot, *, is_broken: bool = False) -> None:
        """Gives a slot's pages back, zeroed if what is in them `is_broken` (not a number)."""
        for pool in self.pools:
            pool.close(slot, is_broken=is_broken)
        if self.states:
            self.states.close(slot)

    def shrink(self) -> None:
        """Keeps no more memory than the open slots need."""
        for pool in self.pools:
            pool.shrink()

    def compact(self, most_holes: float = MOST_HOLES) -> None:
        """Fills holes between pages once they are more than a share of all."""
        for pool in self.pools:
            pool.compact(most_holes)
