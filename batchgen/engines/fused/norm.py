"""Norms with few operations."""

from __future__ import annotations

import copy
from itertools import product
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import nn


class FusedNorm(nn.Module):
    """RMS norm (arXiv:1910.07467) by torch's layer norm: one pass over memory instead of eight.

    The mean of x and -x side by side is 0, and the variance is the mean square of x.
    """

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        """Take weight `[E]`, in float32."""
        super().__init__()
        self.eps = eps
        self.size = len(weight)
        self.register_buffer("weight", torch.cat([weight, weight]).float(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([x, -x], -1)  # [..., 2 E]
        return F.layer_norm(both, (2 * self.size,), self.weight, None, self.eps)[..., : self.size]  # type: ignore[arg-type]


def fused_norm(module: nn.Module) -> nn.Module | None:
    """Return the norm with few operations: torch's own layer norm, or a fused RMS norm; None if it is neither."""
    if type(module) is nn.LayerNorm:
        return module
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 1:
        return None
    form = _form(type(module), frozenset(value for value in vars(module).values() if isinstance(value, float)), module)
    return None if form is None else FusedNorm(weight.detach().float() + form[0], form[1])


_forms: dict[tuple[type, frozenset[float]], tuple[float, float] | None] = {}


def _form(kind: type, numbers: frozenset[float], module: nn.Module) -> tuple[float, float] | None:
    """Return what such a norm adds to its weight (Gemma's adds 1), and its epsilon; None if it is not an RMS norm."""
    if (kind, numbers) not in _forms:
        _forms[kind, numbers] = next((form for form in product((0.0, 1.0), numbers) if _fits(module, *form)), None)
    return _forms[kind, numbers]


def _fits(module: nn.Module, offset: float, eps: float) -> bool:
    wide = copy.deepcopy(module).float()
    weight = cast("torch.Tensor", wide.weight).detach()
    x = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight.device)
    x = torch.cat([x, 1e-2 * x])  # also values so small that eps matters
    with torch.inference_mode():
        return torch.allclose(FusedNorm(weight + offset, eps)(x), wide(x), rtol=1e-4, atol=1e-5)
