"""A model whose forwards read and write a slot cache: prefill, prefix and step.

It runs transformers' own forward with our attention, selected by name. Knows nothing of sampling and queues.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from batchgen.engines.continuous.kv_cache import SlotCache
from batchgen.engines.continuous.row_counts import FixedRows
from batchgen.engines.continuous.row_rotary import RowRotary
from batchgen.engines.continuous.same_bits import is_fixed
from batchgen.engines.continuous.slots import Prefix, Slot, newest
from batchgen.model.layer_rules import layer_rules, scans_columns
from batchgen.model.padding import pad
from batchgen.records import Batch, Sequence

if TYPE_CHECKING:
    from batchgen.model import Model


FEWEST_ROWS = 4  # of a step: oneDNN multiplies 1 and 2 rows 10 to 20% slower
FEW_TOKENS = 16  # a step takes this many in little more time than one, because reading the weights dominates


class SlotModel:
    """One of the engine's own networks (`network.slot_network`) and its slot cache."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.cache = SlotCache(layer_rules(model.checkpoint.config), model.device)
        self.shares_prefixes = self.cache.states is None  # the state at a prefix's end would have to be copied
        # A scan over chunks of columns begins at the first column of a batch, so that pads move a row's chunks.
        self.prefills_alone = is_fixed(model.network) and scans_columns(model.checkpoint.config)
        self.row_counts = {module.counts for module in model.network.modules() if isinstance(module, FixedRows)}
        self.long_rope = model.long_rope
        self._rotary = [module for module in model.network.modules() if isinstance(module, RowRotary)]
        self._logits: torch.Tensor | None = None  # [most rows so far, V] float32, if the model's own logits are not

    def prefill(self, sequences: Rows[Sequence], slots: Rows[Slot]) -> torch.Tensor:
        """Fill slots with their sequences' tokens after the common prefix; return the last token's logits `[B, V]`."""
        prefix = slots[0].prefix
        skip = prefix.num_tokens if prefix else 0
        batch = pad(sequences, self.model.checkpoint.pad_token_id, skip=skip)
        self.cache.begin_prefill(slots, batch.attention_mask)
        before = torch.ones(len(slots), skip, dtype=torch.int64)
        return self._forward(replace(batch, attention_mask=torch.cat([before, batch.attention_mask], 1)))  # [B, P + T]

    def compute_prefix(self, token_ids: list[int], *, is_long: bool = False) -> Prefix:
        """Compute the keys and values of tokens that rows begin with, for their slots; `is_long` says which rows."""
        prefix = self.cache.begin_prefix(len(token_ids))
        input_ids = torch.tensor([token_ids])  # [1, P]
        batch = Batch((), input_ids, torch.ones_like(input_ids), torch.arange(len(token_ids))[None])
        self._forward(batch, is_long=is_long)
        return prefix

    def step(self, token_ids: list[int], slots: Rows[Slot]) -> torch.Tensor:
        """Append a token to each slot, several to a slot that appears several times.

        Return logits `[B, V]` after each token.

        If there are too few rows, the last one is repeated as filler, of which nothing is kept: so small a product is
        slower.
        """
        self.cache.begin_step(slots)
        missing = 0 if self.cache.states else max(0, FEWEST_ROWS - len(slots))

        def filled(numbers: list[int]) -> torch.Tensor:
            return torch.tensor(numbers + numbers[-1:] * missing)[:, None]  # [B, 1]

        input_ids, position_ids = filled(token_ids), filled(newest(slots))
        logits = self._forward(Batch((), input_ids, torch.ones_like(input_ids), position_ids))
        return logits[: len(slots)]

    def room_beside(self, num_rows: int) -> int:
        """Return how many tokens may be added to a step at little cost, besides one per row.

        If products run in blocks of rows, these are the tokens that fill up a block.
        """
        if self.cache.states or num_rows >= FEW_TOKENS:  # states could not be rolled back
            return 0
        num_filled = max(num_rows, FEWEST_ROWS)
        sizes = [counts.filled(num_filled) for counts in self.row_counts if counts.block]
        return max(0, min([FEW_TOKENS, *sizes]) - num_rows)

    def _forward(self, batch: Batch, *, is_long: bool = False) -> torch.Tensor:
        for rotary in self._rotary:
            rotary.begin(batch.position_ids, is_long=is_long)
        return self._as_float32(self.model.forward(batch, past_key_values=self.cache)[:, -1])

    def _as_float32(self, logits: torch.Tensor) -> torch.Tensor:
        """Return logits `[B, V]` in float32, copied to the same memory at every step: fresh memory costs more."""
        if logits.dtype == torch.float32:
            return logits
        if self._logits is None or len(self._logits) < len(logits):
            self._logits = logits.new_empty(logits.shape, dtype=torch.float32)
        return self._logits[: len(logits)].copy_(logits)
