"""Measure the memory of a model's rows: by GPT-2's formulas or, for other families, by forwards on the meta device.

torch's meta device has shapes but no data: a forward there takes milliseconds and no memory, needs no weights, and
creates the same tensors as a real one. Their bytes are counted as they are created and freed.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch.overrides import TorchFunctionMode

from batchgen.model.checkpoint import attention_kernel
from batchgen.model.layer_rules import layer_rules, layer_windows
from batchgen.model.private import dispatch_mode, is_grouped_product, reads_number, storage_key, tensors_in
from batchgen.model.quiet import quiet
from batchgen.model.shape import Footprint, ModelShape

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SHORT, LONG = 64, 2048  # columns of the two trial forwards
LONG_SCAN = 128  # if a forward may loop over columns in Python (Mamba, RWKV): 2,048 columns take a minute
CACHE_NAMES = ("past_key_values", "cache_params", "state")  # names by which forwards take and return their cache


_known: dict[tuple[str, torch.dtype], Footprint] = {}  # by the config's JSON: a probe takes half a second


def probe_footprint(config: PretrainedConfig, dtype: torch.dtype) -> Footprint:
    """Bytes that a model with this config takes in `dtype`; needs no weights."""
    key = config.to_json_string(use_diff=False), dtype
    if key not in _known:
        _known[key] = _probe(config, dtype)
    return _known[key]


def _probe(config: PretrainedConfig, dtype: torch.dtype) -> Footprint:
    attention = attention_kernel(config)
    formula = Footprint.of_shape(ModelShape.from_config(config), dtype.itemsize, attention)
    if config.model_type == "gpt2":
        return formula
    for tried in dict.fromkeys((dtype, torch.bfloat16)):  # on meta, mixtures of experts only work in bfloat16
        try:
            with quiet():
                return _fit(_Trial(config, tried, attention), formula).times(dtype.itemsize // tried.itemsize)
        except Exception:  # noqa: BLE001 - some forwards read numbers, which meta tensors lack
            continue
    return formula


def _fit(trial: _Trial, formula: Footprint) -> Footprint:
    """Fit the footprint's constants to the peaks of two prefills and a step, of one row each.

    A peak is the maximum of several curves a * S + b * S², so between the two lengths the curve through both points
    is an upper bound.
    """
    (short_peak, short_cache), (long_peak, long_cache) = trial.prefill(SHORT), trial.prefill(trial.long)
    by_window = trial.column_bytes()
    cache_column = sum(by_window.values()) or (long_cache - short_cache) / (trial.long - SHORT)
    low, high = (short_peak - short_cache) / SHORT, (long_peak - long_cache) / trial.long
    pair = max(0.0, (high - low) / (trial.long - SHORT))
    return Footprint(
        weights=trial.weights_bytes,
        vocab_size=formula.vocab_size,
        element_bytes=formula.element_bytes,
        cache_column=cache_column,
        prefill=((max(low - pair * SHORT, 0.0), max(0.0, pair - 1)),),  # the mask's 1 byte is counted elsewhere
        decode_column=trial.step(trial.long) / trial.long,
        cache_row=trial.state_bytes() if by_window else max(0.0, short_cache - cache_column * SHORT),
        local=tuple((window, column_bytes) for window, column_bytes in by_window.items() if window),
        num_layers=formula.num_layers,
        scores=formula.scores,
        largest_weight=trial.largest_weight_bytes,
        output_weight=trial.output_weight_bytes,
    )


class _Trial:
    """A model on the meta device, and the bytes that its forwards keep alive."""

    def __init__(self, config: PretrainedConfig, dtype: torch.dtype, attention: str) -> None:
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            self.network = AutoModelForCausalLM.from_config(
                copy.deepcopy(config), dtype=dtype, attn_implementation=attention, trust_remote_code=False
            ).eval()
        self.windows = layer_windows(config)
        self._taken = set(inspect.signature(self.network.forward).parameters)
        has_states = any(rule.num_states for rule in layer_rules(config)) or "past_key_values" not in self._taken
        self.long = min(
            LONG_SCAN if has_states else LONG,
            getattr(config.get_text_config(), "max_position_embeddings", None) or LONG,
        )

    def column_bytes(self) -> dict[int | None, float]:
        """Bytes of one column in the layers of each window, {} if there are no windows; a cache drops older columns."""
        if not any(self.windows):
            return {}
        found: dict[int | None, float] = {}
        for layer, window in zip(self._layers(), self.windows, strict=True):
            kept = (getattr(layer, name, None) for name in ("keys", "values"))  # some layers share another layer's
            found[window] = found.get(window, 0) + sum(block.nbytes for block in kept if block is not None)
        return found

    def state_bytes(self) -> int:
        """Bytes that layers keep per row regardless of its length."""
        kept = [getattr(layer, name, {}) for layer in self._layers() for name in ("conv_states", "recurrent_states")]
        return sum(state.nbytes for states in kept for state in states.values() if state is not None)

    def _layers(self) -> Any:
        with torch.no_grad(), _Kernels(), _LiveBytes(self._weights()):
            return _cache_of(self._forward(1)).layers

    @property
    def weights_bytes(self) -> int:
        return sum(weight.nbytes for weight in self.network.parameters())

    @property
    def largest_weight_bytes(self) -> int:
        """Bytes of the largest weight of linear layers; layers of one module with as many inputs are packed as one."""
        output = self.network.get_output_embeddings()
        sizes = Counter[tuple[int, int]]()
        for parent in self.network.modules():
            for layer in parent.children():
                if isinstance(layer, torch.nn.Linear) and layer is not output:
                    sizes[id(parent), layer.in_features] += layer.weight.nbytes
        return max(sizes.values(), default=0)

    @property
    def output_weight_bytes(self) -> int:
        """Bytes of the output layer's weight, 0 if it is the embedding's."""
        output, embedding = self.network.get_output_embeddings(), self.network.get_input_embeddings()
        return 0 if output is None or output.weight is embedding.weight else int(output.weight.nbytes)

    def prefill(self, columns: int) -> tuple[int, int]:
        """Bytes of one row of `columns` tokens: the forward's peak, and what its cache keeps."""
        with torch.no_grad(), _Kernels(), _LiveBytes(self._weights()) as live:
            output = self._forward(columns)
            logits: torch.Tensor = output.logits  # [1, 1 or S, V]
            return live.peak, int(live.total - logits.nbytes)

    def step(self, columns: int) -> int:
        """Bytes that one step takes on top of a cache of `columns` columns, excluding its logits."""
        with torch.no_grad(), _Kernels(), _LiveBytes(self._weights()) as live:
            output = self._forward(columns)
            live.peak = held = live.total
            logits: torch.Tensor = self._forward(1, columns, _cache_of(output)).logits  # [1, 1, V]
            return max(0, int(live.peak - held - logits.nbytes))

    def _cache_name(self) -> str:
        return next(name for name in CACHE_NAMES if name in self._taken)

    def _weights(self) -> Iterable[torch.Tensor]:
        yield from self.network.parameters()
        yield from self.network.buffers()

    def _forward(self, columns: int, before: int = 0, past_key_values: Any = None) -> Any:
        ids = torch.ones(1, columns, dtype=torch.int64, device="meta")  # [1, S]
        mask = torch.ones(1, before + columns, dtype=torch.int64, device="meta")  # [1, C]
        options = {"position_ids": ids, "logits_to_keep": 1}
        return self.network(
            input_ids=ids,
            attention_mask=mask,
            use_cache=True,
            **({self._cache_name(): past_key_values} if past_key_values is not None else {}),
            **{name: value for name, value in options.items() if name in self._taken},
        )


def _cache_of(output: Any) -> Any:
    """The cache that a forward returned."""
    return next(kept for name in CACHE_NAMES if (kept := getattr(output, name, None)) is not None)


class _Kernels(TorchFunctionMode):
    """Replaces two operations whose memory on the meta device differs from that of the real kernels.

    Scaled dot product attention is one fused kernel that keeps no scores in memory; like the kernel, it converts a
    boolean mask to numbers. Grouped products of experts, which the meta device supports in bfloat16 only, make no
    copies.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_grouped_product(function):
            return args[0].new_empty(*args[0].shape[:-1], args[1].shape[-1])
        if function is not F.scaled_dot_product_attention:
            return function(*args, **kwargs)
        query, value, mask = args[0], args[2], kwargs.get("attn_mask")
        numbers = None if mask is None else mask.to(query.dtype)
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        del numbers
        return output


class _LiveBytes(dispatch_mode()):  # type: ignore[misc]
    """Counts the bytes of live tensors, except `known` ones: `total` now, and their maximum, `peak`."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.total = self.peak = 0
        self._known = {storage_key(tensor.untyped_storage()) for tensor in known}
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if reads_number(function):
            return False  # `mask.all()`: assume there is padding
        output = function(*args, **(kwargs or {}))
        for tensor in tensors_in(output):
            self._count(tensor.untyped_storage())
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage_key(storage)
        if key in self._known or key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self.total += storage.nbytes()
        self.peak = max(self.peak, self.total)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.total -= self._alive.pop(key)
