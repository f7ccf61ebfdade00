"""Watch decoder layers at work: inputs and outputs of each layer, its modules, its cache and its attention.

Every layer gets random hidden states, and its attention returns random results, so that large numbers hide nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, CacheLayerMixin

from batchgen.engines.continuous.slot_attention import PLAIN, Extras
from batchgen.model import Model
from batchgen.model.layer_rules import layer_rules
from batchgen.records import Batch

ROWS, COLUMNS = 2, 5  # of the batch that is watched


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """The input and output of one call of a module."""

    module: nn.Module
    given: torch.Tensor
    made: torch.Tensor


@dataclass(slots=True, eq=False)
class LayerAtWork:
    """One layer at work; `before` and `after` are the calls of leaf modules before and after its attention."""

    layer: nn.Module
    hidden: torch.Tensor  # [B, T, E]
    rotary: tuple[torch.Tensor, torch.Tensor] | None  # cosines and sines [B, T, D]
    before: list[Call] = field(default_factory=list)
    after: list[Call] = field(default_factory=list)
    index: int | None = None  # in the cache
    keys: torch.Tensor | None = None  # [B, Hkv, T, D], as the cache gets them
    values: torch.Tensor | None = None
    query: torch.Tensor | None = None  # [B, H, T, D]
    scaling: float = 1.0
    extras: Extras = PLAIN
    found: torch.Tensor | None = None  # [B, T, H, Dv], the result of the attention
    made: torch.Tensor | tuple[torch.Tensor, ...] | None = None


class WatchedLayer(CacheLayerMixin):  # type: ignore[misc]
    """Replaces one layer of the cache, and the attention to it."""

    is_sliding = False

    def __init__(self, window: int | None, index: int) -> None:
        super().__init__()
        self.window, self.index = window, index
        self.now: LayerAtWork | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
        if self.now:
            self.now.index, self.now.keys, self.now.values = self.index, key_states, value_states
        return self, self

    def attend(self, query: torch.Tensor, scaling: float, extras: Extras = PLAIN) -> torch.Tensor:
        """Return a random result `[B, T, H, Dv]` for queries `[B, H, T, D]`, the same each time."""
        now = self.now
        assert now is not None
        assert now.values is not None
        found = _random((*query.transpose(1, 2).shape[:3], now.values.shape[-1]), query, seed=1)
        now.query, now.scaling, now.extras, now.found = query, scaling, extras, found
        return found

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


def watch(model: Model) -> list[LayerAtWork]:
    """Return all decoder layers at work in one forward of a few tokens; none unless all layers only attend."""
    rules = layer_rules(model.checkpoint.config)
    layers = [layer for _, layer in model.named_layers()]
    if not layers or not all(rule.attends and not rule.num_states for rule in rules):
        return []
    cache = Cache(layers=[WatchedLayer(rule.window, index) for index, rule in enumerate(rules)])
    seen: list[LayerAtWork] = []
    ids = torch.arange(ROWS * COLUMNS).view(ROWS, COLUMNS) % model.checkpoint.vocab_size
    batch = Batch((), ids, torch.ones_like(ids), torch.arange(COLUMNS).repeat(ROWS, 1))
    with torch.inference_mode(), _hooked(layers, cache, seen), suppress(Exception):
        model.forward(batch, past_key_values=cache)
    return seen


@contextmanager
def _hooked(layers: list[nn.Module], cache: Cache, seen: list[LayerAtWork]) -> Iterator[None]:
    handles = []

    def begin(
        layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = args[0] if args else kwargs["hidden_states"]
        hidden = _random(hidden.shape, hidden, seed=0)
        seen.append(LayerAtWork(layer, hidden, kwargs.get("position_embeddings")))
        for place in cache.layers:
            place.now = seen[-1]
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def note(module: nn.Module, args: tuple[Any, ...], made: Any) -> None:
        calls = seen[-1].before if seen[-1].query is None else seen[-1].after
        if args and isinstance(made, torch.Tensor):
            calls.append(Call(module, args[0], made))

    def end(layer: nn.Module, args: tuple[Any, ...], made: Any) -> None:
        seen[-1].made = made

    for layer in layers:
        handles += [layer.register_forward_pre_hook(begin, with_kwargs=True), layer.register_forward_hook(end)]
        leaves = [module for module in layer.modules() if not any(True for _ in module.children())]
        handles += [leaf.register_forward_hook(note) for leaf in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _random(shape: tuple[int, ...], like: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(like.device, like.dtype)
