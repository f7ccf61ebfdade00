"""What a model and its rows take in memory, told before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchgen.model.shape import Footprint, ModelShape

if TYPE_CHECKING:
    from batchgen.model.checkpoint import Checkpoint

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def footprint_of(checkpoint: Checkpoint, dtype: str) -> Footprint:
    """Bytes that a model takes in `dtype`: GPT-2's formulas, or what trial forwards show; needs no weights."""
    if checkpoint.outline.model_type == "gpt2":
        return Footprint.of_shape(ModelShape.from_config(checkpoint.outline), ELEMENT_BYTES[dtype], "sdpa")
    import torch

    from batchgen.model.probe import probe_footprint

    as_dtype: torch.dtype = getattr(torch, dtype)
    return probe_footprint(checkpoint.config, as_dtype)
