"""Recognize, part by part, whether a watched layer is a block, and try the block on the same inputs."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from transformers.cache_utils import Cache

from batchgen.engines.fused.block import AttentionPlan, Block, Gate, HeadTurn, Rotary
from batchgen.engines.fused.norm import fused_norm
from batchgen.engines.fused.product import ADD, Product, activation_name, is_linear
from batchgen.engines.fused.watch import Call, LayerAtWork, WatchedLayer, watch
from batchgen.model import Model

# Maximum difference between a block's and the layer's own numbers, relative to the largest: the effect of rounding.
TOLERANCE, TOLERANCE_16_BIT = 1e-4, 0.03


def fuse_layers(model: Model) -> int:
    """Replace a network's decoder layers with blocks that compute the same; return how many were replaced."""
    rotary, blocks = Rotary(), dict[nn.Module, Block]()
    for seen in watch(model):
        block = recognize(seen, rotary)
        if block is not None and _is_same(block, seen):
            blocks[seen.layer] = block
    for layers in [module for module in model.network.modules() if isinstance(module, nn.ModuleList)]:
        for place, layer in enumerate(layers):
            if layer in blocks:
                layers[place] = blocks[layer]
                blocks[layer].sees_last_only = place == len(layers) - 1
    return len(blocks)


def recognize(seen: LayerAtWork, rotary: Rotary) -> Block | None:
    """Return the block that a layer may be; None if it has different parts."""
    if seen.query is None or seen.keys is None or seen.index is None or seen.made is None or seen.found is None:
        return None
    (_, queries, _, _), (_, keys, _, size) = seen.query.shape, seen.keys.shape
    plan = AttentionPlan(seen.index, queries, keys, size, seen.scaling, seen.extras)
    block = Block(plan, rotary if seen.rotary is not None else None)
    block.gives_tuple = isinstance(seen.made, tuple)
    return block if _attention_parts(block, seen) and _mlp_parts(block, seen) else None


def _attention_parts(block: Block, seen: LayerAtWork) -> bool:
    linears = [call for call in seen.before if is_linear(call.module)]
    norms = _norms_of(seen.before)
    entry = next((call for call in norms if linears and _is(call.made, linears[0].given)), None)
    if entry is None or len(linears) not in (1, 3) or not all(_is(call.given, entry.made) for call in linears):
        return False
    block.norm = norms.pop(entry)
    block.mixed = Product([call.module for call in linears])
    if norms:
        cast("HeadTurn", block.heads).norms = nn.ModuleList(norms.values())
    return len(norms) in (0, 2)


def _mlp_parts(block: Block, seen: LayerAtWork) -> bool:
    linears = [call for call in seen.after if is_linear(call.module)]
    norms = _norms_of(seen.after)
    others = [call for call in seen.after if call not in norms and call not in linears]
    active = [call for call in others if not _is(call.given, call.made)]
    if len(linears) not in (3, 4) or len(active) != 1:
        return False
    out, *inner, down = linears
    name = activation_name(active[0].module)
    gate = next((call for call in inner if _is(call.made, active[0].given)), None)
    entry = next((call for call in norms if _is(call.made, inner[0].given)), None)
    if not name or gate is None or entry is None or not all(_is(call.given, entry.made) for call in inner):
        return False
    block.norm_inner = norms.pop(entry)
    block.norm_out, block.norm_down = (
        next((norm for call, norm in norms.items() if _is(call.given, linear.made)), None) for linear in (out, down)
    )
    block.out = Product([out.module], "" if block.norm_out else ADD)
    block.down = Product([down.module], "" if block.norm_down else ADD)
    through = [call.module for call in inner if call is not gate]
    block.up = Product([gate.module, *through], "" if through else name)
    block.gate = Gate(active[0].module) if through else None
    return len(norms) == sum(norm is not None for norm in (block.norm_out, block.norm_down))


def _norms_of(calls: list[Call]) -> dict[Call, nn.Module]:
    """Return the calls of norms, each with its equivalent of few operations."""
    found = ((call, fused_norm(call.module)) for call in calls if not is_linear(call.module))
    return {call: norm for call, norm in found if norm is not None}


def _is(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether two tensors are the same, or views of the same memory."""
    return found.shape == wanted.shape and found.data_ptr() == wanted.data_ptr()


def _is_same(block: Block, seen: LayerAtWork) -> bool:
    """Whether a block gives the cache, the attention and the next layer the same as its layer did."""
    place = WatchedLayer(None, cast("int", seen.index))
    place.now = again = LayerAtWork(block, seen.hidden, seen.rotary)
    cache = Cache(layers=[place] * (place.index + 1))
    try:
        with torch.inference_mode():
            made = block(seen.hidden, past_key_values=cache, position_embeddings=seen.rotary)
    except RuntimeError:  # shapes that do not fit, such as heads that are rotated only in part
        return False
    first = seen.made[0] if isinstance(seen.made, tuple) else seen.made
    again.made = made[0] if isinstance(made, tuple) else made
    pairs = [(again.query, seen.query), (again.keys, seen.keys), (again.values, seen.values), (again.made, first)]
    return all(_is_near(cast("torch.Tensor", found), cast("torch.Tensor", wanted)) for found, wanted in pairs)


def _is_near(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    if found.shape != wanted.shape:
        return False
    part = TOLERANCE if wanted.dtype == torch.float32 else TOLERANCE_16_BIT
    return bool((found.float() - wanted.float()).abs().max() <= part * wanted.float().abs().max())
