"""Compile the small operations of a network's blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from batchgen.engines.compiled.floats import TiledLinear
from batchgen.engines.compiled.layers import CompiledAttention, CompiledGate, CompiledHeadTurn, CompiledNorm
from batchgen.engines.compiled.prompt_attention import CompiledPromptAttention
from batchgen.engines.compiled.rows import GELU_TANH, SILU
from batchgen.engines.compiled.tensors import has_tiles, name_of
from batchgen.engines.fused.block import Block, Gate, HeadTurn
from batchgen.engines.fused.norm import FusedNorm
from batchgen.engines.fused.product import GATE, Product, activation_name, weight_of

if TYPE_CHECKING:
    from batchgen.model import Model


def compile_blocks(model: Model) -> int:
    """Compile the norms, gates and attention of a network's blocks; return how many blocks it has."""
    blocks = [module for module in model.network.modules() if isinstance(module, Block)]
    for block in blocks:
        _compile(block, model.dtype)
    return len(blocks)


def _compile(block: Block, dtype: torch.dtype) -> None:
    block.norm, block.norm_inner = _compiled(block.norm, dtype), _compiled(block.norm_inner, dtype)
    block.norm_out, block.norm_down = (norm and _compiled(norm, dtype) for norm in (block.norm_out, block.norm_down))
    _compile_gate(block, dtype)
    heads = cast("HeadTurn", block.heads)
    made = [_compiled(norm, dtype) for norm in heads.norms or ()]
    norms = [norm for norm in made if isinstance(norm, CompiledNorm) and norm.bias is None]
    if heads.plan.size % 2 == 0 and len(norms) == len(made):
        turn = CompiledHeadTurn(heads.plan, norms, heads.rotary, dtype)
        block.attend_in_steps = CompiledAttention(turn, dtype)
        if has_tiles(name_of(dtype)):
            block.attend_in_prefills = CompiledPromptAttention(heads.plan)
        if norms or heads.rotary:
            block.heads = turn


def _compile_gate(block: Block, dtype: torch.dtype) -> None:
    """Let the product before a gate compute it, or compile it alone."""
    if not isinstance(block.gate, Gate):
        return
    product, follow = cast("Product", block.up), f"{GATE}{activation_name(block.gate.activation)}"
    weights = [weight_of(layer) for layer in product.layers]
    if len({len(weight) for weight in weights}) == 1 and TiledLinear.supports(weights[0], follow):
        product.follow, block.gate = follow, None
    else:
        block.gate = _compiled(block.gate, dtype)


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
