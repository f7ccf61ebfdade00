"""A model that is loaded: its weights, and the one way in to them. Nothing here or elsewhere changes its network."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from batchgen.model.padding import pad
from batchgen.records import Batch, Sequence

if TYPE_CHECKING:
    import torch
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
        """Logits `[B, keep, V]` of the last columns of a batch, on the model's device and in its dtype.

        Columns are those behind what `past_key_values` holds, and are added to it; the mask covers both.
        """
        inputs = self.inputs(batch.input_ids, batch.attention_mask, batch.position_ids)
        last: dict[str, Any] = {"logits_to_keep": keep} if self.takes_logits_to_keep else {}
        has_cache = past_key_values is not None
        cache = {self.cache_name: past_key_values} if has_cache else {}
        logits: torch.Tensor = self.network(**inputs, **last, **cache, use_cache=has_cache).logits  # [B, keep or T, V]
        return logits[:, -keep:]

    def step(self, batch: Batch, past_key_values: Cache | None = None) -> tuple[torch.Tensor, Cache | None]:
        """Logits `[B, V]` of the last column, and the cache, which the network makes in its own way at first.

        None for a network whose state is no such cache.
        """
        inputs = self.inputs(batch.input_ids, batch.attention_mask, batch.position_ids)
        cache = {} if past_key_values is None else {"past_key_values": past_key_values}
        output = self.network(**inputs, **cache, use_cache=True)
        return output.logits[:, -1], getattr(output, "past_key_values", None)

    def logits_alone(self, sequence: Sequence) -> torch.Tensor:
        """Logits `[V]` after the sequence so far, from one forward of this row alone: no pads, no cache."""
        return self.forward(pad([sequence], self.checkpoint.pad_token_id))[0, -1]

    def on_same_weights(self, attention: str | None = None) -> Model:
        """Another network on the same tensors, whose modules may be replaced; `attention` names its implementation."""
        network = self.network
        shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
        own = copy.deepcopy(network, shared)
        if attention is not None:
            own.set_attn_implementation(attention)
        return replace(self, network=own)

    @property
    def dtype_name(self) -> str:
        """float32, bfloat16, float16: as `--dtype` takes it."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def nan_message(self) -> str:
        """What a row is told whose logits are not numbers."""
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
        """The argument that takes a cache; Mamba has a name of its own for it."""
        return "past_key_values" if "past_key_values" in self._forward_parameters else "cache_params"

    def inputs(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Arguments of a forward. Mask and positions always go along: with eos as pad neither can be inferred."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.takes_position_ids:
            inputs["position_ids"] = position_ids
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}

    @cached_property
    def _forward_parameters(self) -> set[str]:
        return set(inspect.signature(self.network.forward).parameters)
