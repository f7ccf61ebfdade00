"""A linear layer whose weights have the layout that oneDNN multiplies, and whether this machine supports it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from batchgen.model.private import pack_weight, packed_linear, packed_linear_plus

PACKED_ROWS = 64  # the number of rows that the layout is optimized for: those of a decode step with full slots


@dataclass(frozen=True, slots=True)
class HiddenWeight:
    """A weight that exists only in another layout, for parents that read their layer's weight: Mamba, some routers.

    Every attribute except its dtype is that of the tensor, which is restored on each access.
    """

    dtype: torch.dtype
    as_loaded: Callable[[], torch.Tensor]  # [O, I], restored on each call

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        return self.as_loaded() @ x

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python's and copy's own attributes, not the tensor's
            raise AttributeError(name)
        return getattr(self.as_loaded(), name)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*map(_tensor, args), **{name: _tensor(value) for name, value in (kwargs or {}).items()})


def _tensor(value: Any) -> Any:
    return value.as_loaded() if isinstance(value, HiddenWeight) else value


class PackedLinear(nn.Module):
    """A linear layer `[…, I]` -> `[…, O]` with weights in oneDNN's layout, and optionally a fused operation.

    That is an activation and its form, such as "gelu tanh", or "add" of another tensor.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, follow: str = "") -> None:
        """Pack weight `[O, I]` and keep bias `[O]`."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight_packed = pack_weight(weight.detach().contiguous(), PACKED_ROWS)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.follow = follow

    @property
    def weight(self) -> HiddenWeight:
        """For parents that read their layer's weight."""
        return HiddenWeight(self.weight_packed.dtype, self._as_loaded)

    def _as_loaded(self) -> torch.Tensor:
        return self.weight_packed.to_dense()

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        if other is not None:
            return packed_linear_plus(x, other, self.weight_packed, self.bias)
        activation, _, form = self.follow.partition(" ")
        return packed_linear(x, self.weight_packed, self.bias, activation or "none", form)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this machine has a packed layout for layers of this device and dtype."""
    return why_plain(device, dtype) is None


def why_plain(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why this machine has no packed layout for them, found by trying a 16 x 16 layer; None if it has one."""
    if device.type != "cpu":
        return "weights are packed on the CPU only"
    if dtype not in (torch.float32, torch.bfloat16):
        return "there is no packed layout for it"
    try:
        PackedLinear(torch.ones(16, 16, dtype=dtype), None)(torch.ones(2, 16, dtype=dtype))
    except (RuntimeError, AttributeError):  # torch without oneDNN, or a processor without a layout for this dtype
        has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return "this processor has no layout for it" if has_onednn else "this build of torch has no oneDNN"
    return None
