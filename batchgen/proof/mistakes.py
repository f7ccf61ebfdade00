"""Padding done wrong on purpose: without the mask, on the right, with positions that count pads. And the right way.

What the model makes of it is in the logits of the last column, which is where `generate` looks. Batches in, batches
out; knows nothing of engines.
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
    """Pads on the wrong side; mask and positions are right for it. Three int64 tensors `[B, T]`."""
    import torch

    token_ids = [sequence.token_ids for sequence in sequences]
    lengths = torch.tensor([len(ids) for ids in token_ids])  # [B]
    width = int(lengths.max())
    input_ids = torch.tensor([ids + [pad_token_id] * (width - len(ids)) for ids in token_ids])  # [B, T]
    attention_mask = (torch.arange(width) < lengths[:, None]).long()  # [B, T]
    return Batch(tuple(sequences), input_ids, attention_mask, positions(attention_mask))


def without_mask(batch: Batch) -> Batch:
    """Pads count as tokens; positions stay right, so that only the mask is missing."""
    import torch

    return replace(batch, attention_mask=torch.ones_like(batch.attention_mask))


def without_positions(batch: Batch) -> Batch:
    """Positions count pads too, as they do where a model is called without `position_ids`."""
    import torch

    return replace(batch, position_ids=torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids))


def with_pad(batch: Batch, pad_token_id: int) -> Batch:
    """Another token as pad. This is no mistake: pads are masked."""
    return replace(batch, input_ids=batch.input_ids.masked_fill(batch.attention_mask == 0, pad_token_id))


def last_logits(model: Model, batch: Batch) -> torch.Tensor:
    """Logits `[B, V]` of the last column, in float32 on the CPU."""
    return logits_at(model, batch, [batch.input_ids.shape[1] - 1])[:, 0]


def logits_at(model: Model, batch: Batch, columns: list[int]) -> torch.Tensor:
    """Logits `[B, N, V]` of N columns, in float32 on the CPU, from one forward of the batch as it is."""
    import torch

    first = min(columns)
    where = "with {} rows of {} columns".format(*batch.input_ids.shape)
    with torch.inference_mode(), failures_in_one_line(where):
        logits = model.forward(batch, keep=batch.input_ids.shape[1] - first)  # [B, T - first, V]
    return logits[:, [column - first for column in columns]].float().cpu()


def generate_as_is(model: Model, batch: Batch, max_new_tokens: int) -> list[list[int]]:
    """New tokens of each row, greedy, from transformers' `generate` on the batch as it is; eos at the end is kept."""
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
    """A finished row goes on as pads, until the last one is finished."""
    ends = [place for place, token in enumerate(token_ids) if token in eos_token_ids]
    return token_ids[: ends[0] + 1] if ends else token_ids
