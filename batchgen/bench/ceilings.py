"""Measure how fast this machine multiplies matrices and reads memory. Knows nothing about engines."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from batchgen.bench.facts import Ceiling
from batchgen.records import parts_of_precision

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

Clock = Callable[[], float]
Form = Callable[["torch.Tensor"], "torch.Tensor"]

MATMUL_ROWS = (64, 128)  # of a decode step with many rows
MEASURE_S = 0.1
# Reads as many bytes as the weights have, so that a cache that holds them counts; no cache holds more than the maximum.
MOST_READ_BYTES, LEAST_READ_BYTES = 256 << 20, 16 << 20


def linear_sizes(network: PreTrainedModel) -> tuple[int, int]:
    """Parameters and bytes of all linear layers: what each token is multiplied with, and what each step reads.

    The output layer counts once, whether or not it shares the embedding; an embedding lookup multiplies nothing.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | Conv1D)]
    return sum(layer.weight.numel() for layer in layers), sum(layer.weight.nbytes for layer in layers)


def measure_ceiling(precision: str, sizes: tuple[int, int], config: PretrainedConfig, device: torch.device) -> Ceiling:
    """Measure both ceilings of a model with linear layers of these `sizes` (parameters, bytes)."""
    parameters, num_bytes = sizes
    if parts_of_precision(precision)[1]:
        num_bytes = parameters  # one byte each
    gflops, rate = matmul_gflops(precision, config, device), read_rate(num_bytes, device)
    return Ceiling(precision, gflops, rate, 2 * parameters, num_bytes)


def matmul_gflops(
    precision: str, config: PretrainedConfig, device: torch.device, clock: Clock = time.perf_counter
) -> float:
    """The best rate, in GFLOP/s, of the model's feed-forward layer over all forms that the engines use."""
    import torch

    text = config.get_text_config()
    num_in = text.hidden_size
    dtype, quantize = parts_of_precision(precision)
    num_out = getattr(text, "n_inner", None) or getattr(text, "intermediate_size", None) or 4 * num_in
    with torch.inference_mode():
        layer = torch.nn.Linear(num_in, num_out, device=device, dtype=getattr(torch, dtype))
        rates = [0.0]
        for rows in MATMUL_ROWS:
            x = torch.ones(rows, num_in, device=device, dtype=layer.weight.dtype)  # [rows, n_embd]
            for form in _integers(layer) if quantize else _forms(layer):
                seconds = _fastest(lambda form=form, x=x: form(x), device, clock)  # type: ignore[misc]
                rates.append(2 * rows * num_in * num_out / seconds / 1e9)
    return max(rates)


def _integers(layer: nn.Linear) -> list[Form]:
    """The layer in 8-bit integers: oneDNN's product alone, without the conversion from floats, and ours with it."""
    import torch

    from batchgen.engines.compiled.support import why_not_compiled
    from batchgen.engines.int8.linear import Int8Group, quantize_weight

    weight = Int8Group.of(*quantize_weight(layer.weight.detach()))
    forms: list[Form] = [lambda x: weight.product(x.to(torch.uint8))]
    if why_not_compiled() is None:
        from batchgen.engines.compiled.int8 import TiledWeight

        forms.append(TiledWeight.of(layer.weight.detach(), None).multiply)
    return forms


def _forms(layer: nn.Linear) -> list[Form]:
    """The layer as it is, and packed if possible."""
    from batchgen.engines.continuous.packing import PackedLinear

    if layer.weight.device.type != "cpu":
        return [layer]
    try:
        packed = PackedLinear(layer.weight, layer.bias)
        packed(layer.weight[:1])
    except (RuntimeError, AttributeError):  # a build of torch without oneDNN, or without this dtype
        return [layer]
    return [layer, packed]


def read_rate(num_bytes: int, device: torch.device, clock: Clock = time.perf_counter) -> float:
    """The best rate of reading memory, in GB/s, measured by a sum over about `num_bytes` bytes."""
    import torch

    num_bytes = min(max(num_bytes, LEAST_READ_BYTES), MOST_READ_BYTES)
    tensor = torch.ones(num_bytes // 4, device=device)
    with torch.inference_mode():
        return num_bytes / _fastest(tensor.sum, device, clock) / 1e9


def _fastest(work: Callable[[], object], device: torch.device, clock: Clock) -> float:
    """The seconds of the fastest run within `MEASURE_S`; the first run is a warm-up."""
    import torch

    def run() -> float:
        started = clock()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return clock() - started

    run()
    end = clock() + MEASURE_S
    times = [run()]
    while clock() < end:
        times.append(run())
    return min(times)
