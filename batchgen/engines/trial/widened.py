"""A 16-bit model that computes in float32: each layer's weights are widened only while it runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from batchgen.engines.continuous.packing import HiddenWeight, PackedLinear

if TYPE_CHECKING:
    from batchgen.model import Model


def widened(model: Model) -> Model:
    """Return another network on the same weights, in float32, that never holds more than one layer widened."""
    from batchgen.engines.continuous.linear import UnpackedLinear

    own = model.on_same_weights()
    own.network.config.dtype = torch.float32
    for module in own.network.modules():
        if isinstance(module, UnpackedLinear):  # restores its weight, from a packed layer that is never called
            module.dtype = torch.float32
        elif not isinstance(module, PackedLinear) and any(True for _ in module.parameters(recurse=False)):
            _narrow(module)
            module.register_forward_pre_hook(_widen)
            module.register_forward_hook(_narrow, always_call=True)
    return replace(own, dtype=torch.float32)


# Attributes of a module come before its parameters of the same name, which stay as they were loaded.


def _widen(module: nn.Module, _: object) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        vars(module)[name] = parameter.detach().float()


def _narrow(module: nn.Module, *_: object) -> None:
    """Between its forwards, a module's parents read its weights: Mamba's a projection, Mamba 2's that of the logits."""
    for name, parameter in module.named_parameters(recurse=False):
        vars(module)[name] = HiddenWeight(torch.float32, parameter.detach().float)
