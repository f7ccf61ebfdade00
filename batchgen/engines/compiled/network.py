"""Compile the small operations of a network's blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from batchgen.engines.compiled.layers import CompiledAttention, CompiledGate, CompiledNorm
from batchgen.engines.compiled.rows import GELU_TANH, SILU
from batchgen.engines.fused.block import Block, Gate
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
    for name, child in list(block.named_children()):
        made = _compiled(child, dtype)
        if made is not None:
            setattr(block, name, made)
    norms = [norm for norm in (block.norm_queries, block.norm_keys) if norm is not None]
    plain = [norm for norm in norms if isinstance(norm, CompiledNorm) and norm.bias is None]
    if block.heads.size % 2 == 0 and plain == norms:
        pair = (plain[0], plain[1]) if plain else None
        block.step = CompiledAttention(block.heads, pair, is_turned=block.rotary is not None, dtype=dtype)


def _compiled(module: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    """Return a norm or gate compiled; None for other modules."""
    if isinstance(module, FusedNorm):
        return CompiledNorm(cast("torch.Tensor", module.weight)[: module.size], None, module.eps, dtype)
    if type(module) is nn.LayerNorm and module.weight is not None and module.bias is not None:
        return CompiledNorm(module.weight, module.bias, module.eps, dtype)
    if isinstance(module, Gate):
        name = activation_name(module.activation)
        return CompiledGate(name, dtype) if name in (SILU, GELU_TANH) else None
    return None
