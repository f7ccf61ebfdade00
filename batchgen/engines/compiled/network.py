"""Compile the small operations of a network's blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from batchgen.engines.compiled.layers import CompiledAttention, CompiledGate, CompiledNorm
from batchgen.engines.compiled.rows import GELU_TANH, SILU
from batchgen.engines.fused.block import Block, Gate, StepParts
from batchgen.engines.fused.norm import FusedNorm
from batchgen.engines.fused.product import activation_name

if TYPE_CHECKING:
    from batchgen.model import Model


def compile_blocks(model: Model) -> int:
    """Compile the norms, gates and attention of a network's blocks; return how many blocks it has."""
    blocks = [module for module in model.network.modules() if isinstance(module, Block)]
    for block in blocks:
        _compile(block, model.dtype)
    return len(blocks)


def _compile(block: Block, dtype: torch.dtype) -> None:
    norms = [norm for norm in (block.norm_queries, block.norm_keys) if norm is not None]
    made = [norm for norm in (_compiled(norm, dtype) for norm in norms) if isinstance(norm, CompiledNorm)]
    if block.heads.size % 2 or len(made) < len(norms) or any(norm.bias is not None for norm in made):
        return
    pair = (made[0], made[1]) if made else None
    block.in_steps = StepParts(
        CompiledAttention(block.heads, pair, is_turned=block.rotary is not None, dtype=dtype),
        _compiled(block.norm, dtype),
        block.norm_out and _compiled(block.norm_out, dtype),
        _compiled(block.norm_inner, dtype),
        block.norm_down and _compiled(block.norm_down, dtype),
        block.gate and _compiled(block.gate, dtype),
    )


def _compiled(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a norm or gate compiled; other modules as they are."""
    if isinstance(module, FusedNorm):
        return CompiledNorm(cast("torch.Tensor", module.weight)[: module.size], None, module.eps, dtype)
    if type(module) is nn.LayerNorm and module.weight is not None and module.bias is not None:
        return CompiledNorm(module.weight, module.bias, module.eps, dtype)
    if isinstance(module, Gate):
        name = activation_name(module.activation)
        return CompiledGate(name, dtype) if name in (SILU, GELU_TANH) else module
    return module
