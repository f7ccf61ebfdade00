"""A model whose forwards read and write a slot cache: prefill, prefix and step.

The forward is transformers' own, told by the name of its attention to use ours. Knows nothing of sampling and queues.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from batchgen.engines.continuous.kv_cache import SlotCache
from batchgen.engines.continuous.row_counts import FixedRows
from batchgen.engines.continuous.slots import Prefix, Slot, newest
from batchgen.model.layer_rules import layer_rules
from batchgen.model.padding import pad
from batchgen.records import Batch, Sequence

if TYPE_CHECKING:
    from batchgen.model import Model


FEWEST_ROWS = 4  # of a step: oneDNN multiplies 1 and 2 rows 10 to 20% slower
FEW_TOKENS = 16  # that a step takes in little more time than one: it is reading the weights that takes it


class SlotModel:
    """A network of the engine's own (`network.slot_network`), and a slot cache."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.cache = SlotCache(layer_rules(model.checkpoint.config), model.device)
        self.shares_prefixes = self.cache.states is None  # the state at a prefix's end would have to be copied
        self.row_counts = {module.counts for module in model.network.modules() if isinstance(module, FixedRows)}
        self._logits: torch.Tensor | None = None  # [most rows so far, V] float32, where the model's own are not

    def prefill(self, sequences: Rows[Sequence], slots: Rows[Slot]) -> torch.Tensor:
        """Fills slots with the tokens of their sequences behind their common prefix: logits `[B, V]` of the last."""
        prefix = slots[0].prefix
        skip = prefix.num_tokens if prefix else 0
        batch = pad(sequences, self.model.checkpoint.pad_token_id, skip=skip)
        self.cache.begin_prefill(slots, batch.attention_mask)
        before = torch.ones(len(slots), skip, dtype=torch.int64)
        return self._forward(replace(batch, attention_mask=torch.cat([before, batch.attention_mask], 1)))  # [B, P + T]

    def compute_prefix(self, token_ids: list[int]) -> Prefix:
        """Keys and values of tokens that rows begin with, for their slots."""
        prefix = self.cache.begin_prefix(len(token_ids))
        input_ids = torch.tensor([token_ids])  # [1, P]
        self._forward(Batch((), input_ids, torch.ones_like(input_ids), torch.arange(len(token_ids))[None]))
        return prefix

    def step(self, token_ids: list[int], slots: Rows[Slot]) -> torch.Tensor:
        """Appends a token to each slot, several to one that stands there several times: logits `[B, V]` after each.

        Too few rows are filled up with the last one, of which nothing is kept: a product with so few is slower.
        """
        self.cache.begin_step(slots)
        missing = 0 if self.cache.states else max(0, FEWEST_ROWS - len(slots))

        def filled(numbers: list[int]) -> torch.Tensor:
            return torch.tensor(numbers + numbers[-1:] * missing)[:, None]  # [B, 1]

        input_ids, position_ids = filled(token_ids), filled(newest(slots))
        logits = self._forward(Batch((), input_ids, torch.ones_like(input_ids), position_ids))
        return logits[: len(slots)]

    def room_beside(self, num_rows: int) -> int:
        """How many tokens a step of so many rows can take at little cost, beside one of each row.

        Where products run in blocks of rows, those that fill them up.
        """
        if self.cache.states or num_rows >= FEW_TOKENS:  # states could not be taken back
            return 0
        num_filled = max(num_rows, FEWEST_ROWS)
        sizes = [counts.filled(num_filled) for counts in self.row_counts if counts.block]
        return max(0, min([FEW_TOKENS, *sizes]) - num_rows)

    def _forward(self, batch: Batch) -> torch.Tensor:
        return self._as_float32(self.model.forward(batch, past_key_values=self.cache)[:, -1])

    def _as_float32(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits `[B, V]` in float32; copies go to the same memory at every step, since fresh memory costs more."""
        if logits.dtype == torch.float32:
            return logits
        if self._logits is None or len(self._logits) < len(logits):
            self._logits = logits.new_empty(logits.shape, dtype=torch.float32)
        return self._logits[: len(logits)].copy_(logits)
