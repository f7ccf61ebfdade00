"""A loaded model: its weights, and the only interface to them. Nothing in batchgen modifies its network."""

from __future__ import annotations

import copy
import inspect
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from batchgen.model.layer_rules import layer_rules
from batchgen.model.long_rope import LongRope, long_rope_of
from batchgen.model.padding import pad
from batchgen.records import Batch, Sequence

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

    from batchgen.model.checkpoint import Checkpoint


@dataclass(frozen=True, eq=False)
class Model:
    """A checkpoint with its weights on a device. Two models are equal only if they are the same object."""

    checkpoint: Checkpoint
    network: PreTrainedModel
    device: torch.device
    dtype: torch.dtype

    def forward(self, batch: Batch, keep: int = 1, *, past_key_values: Cache | None = None) -> torch.Tensor:
        """Logits `[B, keep, V]` of the last `keep` columns of a batch, on the model's device and in its dtype.

        With `past_key_values`, the batch has the columns after the cached ones. They are added to the cache; the mask
        covers both.
        """
        inputs = self.inputs(batch.input_ids, batch.attention_mask, batch.position_ids)
        last: dict[str, Any] = {"logits_to_keep": keep} if self.takes_logits_to_keep else {}
        has_cache = past_key_values is not None
        cache = {self.cache_name: past_key_values} if has_cache else {}
        logits: torch.Tensor = self.network(**inputs, **last, **cache, use_cache=has_cache).logits  # [B, keep or T, V]
        return logits[:, -keep:]

    def step(self, batch: Batch, past_key_values: Cache | None = None) -> tuple[torch.Tensor, Cache | None]:
        """Logits `[B, V]` of the last column, and the cache; on the first step, the network creates its own cache.

        The cache is None for a network that keeps its state in another form.
        """
        inputs = self.inputs(batch.input_ids, batch.attention_mask, batch.position_ids)
        cache = {} if past_key_values is None else {"past_key_values": past_key_values}
        output = self.network(**inputs, **cache, use_cache=True)
        return output.logits[:, -1], getattr(output, "past_key_values", None)

    def logits_alone(self, sequence: Sequence) -> torch.Tensor:
        """Logits `[V]` after the sequence so far, from a forward of this row alone: no padding, no cache.

        From two forwards if its first keys keep the short factors of LongRoPE.
        """
        whole, rope = pad([sequence], self.checkpoint.pad_token_id), self.long_rope
        if not rope or rope.renews_keys or not sequence.num_prompt_tokens <= rope.limit < len(sequence.token_ids):
            return self.forward(whole)[0, -1]
        from transformers import DynamicCache

        cache = DynamicCache(config=self.checkpoint.config)
        self.forward(_columns(whole, 0, rope.limit), past_key_values=cache)
        return self.forward(_columns(whole, rope.limit), past_key_values=cache)[0, -1]

    def read_in(self) -> None:
        """Read weights that are still in their file, one number of each of the system's pages.

        Otherwise the first rows would read them, and seem to take their memory.
        """
        import torch

        for tensor in _tensors_of(self.network):
            if tensor.device.type == "cpu" and tensor.layout == torch.strided and tensor.is_contiguous():
                tensor.view(-1)[:: mmap.PAGESIZE // tensor.element_size()].clone()

    def on_same_weights(self, attention: str | None = None) -> Model:
        """A copy of the network on the same tensors, whose modules may be replaced; `attention` names its kernel."""
        network = self.network
        shared = {id(tensor): tensor for tensor in _tensors_of(network)}
        own = copy.deepcopy(network, shared)
        if attention is not None:
            own.set_attn_implementation(attention)
        return replace(self, network=own)

    def named_layers(self) -> list[tuple[str, nn.Module]]:
        """The decoder layers in order, with their names; empty if the network has no list of them."""
        from torch import nn

        num_layers = len(layer_rules(self.checkpoint.config))
        for name, layers in self.network.named_modules():
            if isinstance(layers, nn.ModuleList) and len(layers) == num_layers:
                return [(f"{name}.{number}", layer) for number, layer in enumerate(layers)]
        return []

    @property
    def dtype_name(self) -> str:
        """The dtype as `--dtype` spells it: float32, bfloat16 or float16."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def nan_message(self) -> str:
        """The error of a row whose logits are NaN."""
        fix = "its weights are damaged" if self.dtype_name == "float32" else "use --dtype float32"
        return f"model {self.checkpoint.name} gives NaN in {self.dtype_name} on {self.device}: {fix}"

    @cached_property
    def takes_position_ids(self) -> bool:
        return "position_ids" in self._forward_parameters

    @cached_property
    def takes_logits_to_keep(self) -> bool:
        return "logits_to_keep" in self._forward_parameters

    @cached_property
    def cache_name(self) -> str:
        """The name of the argument that takes a cache; Mamba uses a different one."""
        return "past_key_values" if "past_key_values" in self._forward_parameters else "cache_params"

    @cached_property
    def long_rope(self) -> LongRope | None:
        """How its rotary factors depend on the lengths of rows (LongRoPE); None if they do not."""
        return long_rope_of(self.network)

    def inputs(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Arguments of a forward. Mask and positions are always passed: with eos as pad, neither can be inferred."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.takes_position_ids:
            inputs["position_ids"] = position_ids
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}

    @cached_property
    def _forward_parameters(self) -> set[str]:
        return set(inspect.signature(self.network.forward).parameters)


def _columns(batch: Batch, start: int, end: int | None = None) -> Batch:
    """Some columns of a batch; the mask also covers those before them."""
    ids, places = batch.input_ids[:, start:end], batch.position_ids[:, start:end]
    return Batch((), ids, batch.attention_mask[:, :end], places)


def _tensors_of(network: nn.Module) -> Iterator[torch.Tensor]:
    """Yield all tensors of a network, also packed weights: they are plain attributes, and torch cannot copy them."""
    import torch

    yield from network.parameters()
    yield from network.buffers()
    for module in network.modules():
        yield from (value for value in vars(module).values() if isinstance(value, torch.Tensor))
