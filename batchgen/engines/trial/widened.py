"""A 16-bit model that computes in float32: each layer's weights are widened only while it runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from batchgen.model import Model


def widened(model: Model) -> Model:
    """Return another network on the same weights, in float32, that never holds more than one layer widened."""
    own = model.on_same_weights()
    own.network.config.dtype = torch.float32
    for module in own.network.modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(_widen)
            module.register_forward_hook(_narrow, always_call=True)
    return replace(own, dtype=torch.float32)


def _widen(module: nn.Module, _: object) -> None:
    narrow = dict(module.named_parameters(recurse=False))
    module.narrow = narrow  # type: ignore[assignment]
    for name, parameter in narrow.items():
        setattr(module, name, nn.Parameter(parameter.detach().float(), requires_grad=False))


def _narrow(module: nn.Module, *_: object) -> None:
    for name, parameter in vars(module).pop("narrow", {}).items():
        setattr(module, name, parameter)
