"""What the loops are told of tensors, and what this processor can do with their dtype."""

from __future__ import annotations

from functools import cache

import torch
from llvmlite import binding


@cache
def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@cache
def has_tiles(dtype: str) -> bool:
    """Whether this processor has the instructions of `tile` for a dtype, and nothing faster that oneDNN uses."""
    features = binding.get_host_cpu_features()
    if dtype == "bfloat16":
        return features.get("avx512bf16", False) and not features.get("amx-bf16", False)
    return dtype == "float32" and features.get("avx512f", False)
