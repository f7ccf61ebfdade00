"""Convert a network's linear layers and its embedding to 8-bit integers, so that at most one weight is held twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from batchgen.engines.fused.product import Product, bias_of, is_linear, weight_of
from batchgen.engines.int8.embedding import look_up_in
from batchgen.engines.int8.linear import Int8Linear, Int8Product, Int8Weight, Quantize, QuantizedLayer

NOTHING: Mapping[str, torch.Tensor] = MappingProxyType({})
# Layers that read the same input, in the order in which a forward calls them.
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

READ_WHOLE = ("dt_proj",)  # Mamba multiplies with this layer's weight itself


def quantize(
    network: nn.Module,
    loaded: nn.Module | None = None,
    *,
    loud: Mapping[str, torch.Tensor] = NOTHING,
    blocks: Blocks | None = None,
    to_integers: Quantize = Int8Weight.of,
) -> None:
    """Replace all linear layers and the embedding of a network, and of `loaded`, with layers in 8-bit integers.

    `loaded` shares the network's tensors and is given if nothing else needs it: each layer's own weight is then freed
    before the next one is quantized. `loud` are inputs that stay in float32, by the path of a layer. `blocks` are given
    if the network has blocks of `fused`, and `to_integers` quantizes each weight.
    """
    if blocks:
        _quantize_blocks(network, loaded, loud, blocks)
    embeddings = [layer for each in (network, loaded) for layer in _input_embeddings(each)]
    for path, names in list(_groups(network)):
        parent = network.get_submodule(path)
        places = loud.get(f"{path}.{names[0]}".lstrip("."))
        own = [parent.get_submodule(name) for name in names]
        layers = _quantized(own, places, to_integers)
        is_tied = any(own[0].weight is layer.weight for layer in embeddings)
        for owner in (parent, loaded.get_submodule(path) if loaded is not None else None):
            for name, layer in zip(names, layers, strict=True):
                if owner is not None:
                    setattr(owner, name, layer)
        if is_tied:
            look_up_in(layers[0].product.weight, embeddings)
    if embeddings and _number_of_users(network, embeddings[0].weight) == 1:
        look_up_in(to_integers(embeddings[0].weight.detach(), None), embeddings)


def _quantize_blocks(
    network: nn.Module,
    loaded: nn.Module | None,
    loud: Mapping[str, torch.Tensor],
    blocks: Blocks,
) -> None:
    for parent in list(network.modules()):
        for name, product in list(parent.named_children()):
            if isinstance(product, Product):
                paths = [blocks.paths[id(layer.weight)] for layer in product.layers]
                layers = _quantized(list(product.layers), loud.get(paths[0]), blocks.to_integers(product.follow))
                setattr(parent, name, blocks.make(layers[0].product.weight, product.follow))
                del product
                for path, layer in zip(paths, layers, strict=True):
                    owner, _, child = path.rpartition(".")
                    if loaded is not None:
                        setattr(loaded.get_submodule(owner), child, layer)


def _input_embeddings(network: nn.Module | None) -> list[nn.Embedding]:
    layer = network.get_input_embeddings() if isinstance(network, PreTrainedModel) else None
    return [layer] if isinstance(layer, nn.Embedding) else []


def _number_of_users(network: nn.Module, weight: torch.Tensor) -> int:
    return sum(any(own is weight for own in module.parameters(recurse=False)) for module in network.modules())


@dataclass(frozen=True, slots=True)
class Blocks:
    """How to make a product of blocks, from a weight and what follows it; and the paths of weights, by their ids.

    `to_integers` returns how to quantize a weight, from what follows its product.
    """

    make: Callable[[Any, str], nn.Module]
    paths: Mapping[int, str]
    to_integers: Callable[[str], Quantize]


def paths_of(network: nn.Module) -> dict[int, str]:
    """Return the path of each linear layer, by the id of its weight."""
    return {id(layer.weight): path for path, layer in network.named_modules() if is_linear(layer)}


def int8_kernels_of(network: nn.Module) -> str | None:
    """Return what multiplies a network's 8-bit integers; None if it has none."""
    return next((layer.kernels for layer in network.modules() if isinstance(layer, QuantizedLayer)), None)


def _groups(network: nn.Module) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the path of a module, and the names of its linear layers that form one product."""
    for path, parent in network.named_modules():
        linear = [name for name, layer in parent.named_children() if type(layer) in (nn.Linear, Conv1D)]
        names = [name for name in linear if name not in READ_WHOLE]
        for group in TOGETHER:
            if set(group) <= set(names) and _fit(parent, group):
                yield path, group
                names = [name for name in names if name not in group]
        yield from ((path, (name,)) for name in names)


def _fit(parent: nn.Module, names: tuple[str, ...]) -> bool:
    """Whether layers can be merged: same number of inputs, and all or none have a bias, or scales of their own."""
    layers = [parent.get_submodule(name) for name in names]
    kinds = {(weight_of(layer).shape[1], layer.bias is None, _given_scales([layer]) is None) for layer in layers}
    return len(kinds) == 1


def _given_scales(layers: list[nn.Module]) -> torch.Tensor | None:
    """Return the scales that weights were stored with (`model.stored_integers`), `[O]`; None if they were floats."""
    scales = [getattr(layer, "weight_scale", None) for layer in layers]
    given = [scale for scale in scales if isinstance(scale, torch.Tensor)]
    return torch.cat(given) if len(given) == len(layers) else None


def _quantized(layers: list[nn.Module], places: torch.Tensor | None, to_integers: Quantize) -> list[Int8Linear]:
    weights = [weight_of(layer).detach() for layer in layers]
    whole = weights[0] if len(weights) == 1 else torch.cat(weights)  # [O, I]
    bias = bias_of(layers)
    product = Int8Product(to_integers(whole, bias, places, _given_scales(layers)), len(layers))
    made, first = [], 0
    for number, weight in enumerate(weights):
        made.append(Int8Linear(product, number, first, *weight.shape))
        made[-1].weight = weight.new_empty(0, weight.shape[1])  # Mamba reads the dtype of an output layer's weight
        first += len(weight)
    return made
