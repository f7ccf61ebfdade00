"""Padding done wrong on purpose: without the mask, on the right, with positions that count padding. And done right.

The effect shows in the logits of the last column, which is where `generate` reads the next token. Functions take
batches and return batches; this module knows nothing about engines.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import replace
from typing import TYPE_CHECKING

from batchgen.errors import failures_in_one_line
from batchgen.model.padding import positions
from batchgen.records import Batch, Sequence

if TYPE_CHECKING:
    import torch

    from batchgen.model import Model


def pad_right(sequences: Rows[Sequence], pad_token_id: int) -> Batch:
    """Pad on the wrong side, with mask and positions that match it. Three int64 tensors `[B, T]`."""
    import torch

    token_ids = [sequence.token_ids for sequence in sequences]
    lengths = torch.tensor([len(ids) for ids in token_ids])  # [B]
    width = int(lengths.max())
    input_ids = torch.tensor([ids + [pad_token_id] * (width - len(ids)) for ids in token_ids])  # [B, T]
    attention_mask = (torch.arange(width) < lengths[:, None]).long()  # [B, T]
    return Batch(tuple(sequences), input_ids, attention_mask, positions(attention_mask))


def without_mask(batch: Batch) -> Batch:
    """Treat padding as tokens; positions stay correct, so that only the mask is missing."""
    import torch

    return replace(batch, attention_mask=torch.ones_like(batch.attention_mask))


def without_positions(batch: Batch) -> Batch:
    """Count padding in the positions, as happens when a model is called without `position_ids`."""
    import torch

    return replace(batch, position_ids=torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids))


def with_pad(batch: Batch, pad_token_id: int) -> Batch:
    """Use another token as padding. This is not a mistake: padding is masked."""
    return replace(batch, input_ids=batch.input_ids.masked_fill(batch.attention_mask == 0, pad_token_id))


def last_logits(model: Model, batch: Batch) -> torch.Tensor:
    """Logits `[B, V]` of the last column, in float32 on the CPU."""
    return logits_at(model, batch, [batch.input_ids.shape[1] - 1])[:, 0]


def logits_at(model: Model, batch: Batch, columns: list[int]) -> torch.Tensor:
    """Logits `[B, N, V]` of N columns, in float32 on the CPU, from one forward of the unchanged batch."""
    import torch

    first = min(columns)
    where = "with {} rows of {} columns".format(*batch.input_ids.shape)
    with torch.inference_mode(), failures_in_one_line(where):
        logits = model.forward(batch, keep=batch.input_ids.shape[1] - first)  # [B, T - first, V]
    return logits[:, [column - first for column in columns]].float().cpu()


def generate_as_is(model: Model, batch: Batch, max_new_tokens: int) -> list[list[int]]:
    """Greedy new tokens of each row from transformers' `generate` on the unchanged batch; a final eos is kept."""
    import torch
    from transformers import GenerationConfig

    eos = sorted(model.checkpoint.eos_token_ids)
    where = "with {} rows of {} columns".format(*batch.input_ids.shape)
    with torch.inference_mode(), failures_in_one_line(where):
        output = model.network.generate(
            **model.inputs(batch.input_ids, batch.attention_mask, batch.position_ids),
            generation_config=GenerationConfig(
                max_new_tokens=max_new_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=model.checkpoint.pad_token_id,
                eos_token_id=eos or None,
                disable_compile=True,
            ),
        )
    return [_up_to_eos(row, eos) for row in output[:, batch.input_ids.shape[1] :].tolist()]


def _up_to_eos(token_ids: list[int], eos_token_ids: Rows[int]) -> list[int]:
    """Cut a row after its first eos: `generate` fills it with padding until the last row has finished."""
    ends = [place for place, token in enumerate(token_ids) if token in eos_token_ids]
    return token_ids[: ends[0] + 1] if ends else token_ids
