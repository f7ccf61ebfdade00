"""A linear layer whose weights lie as oneDNN multiplies them, and whether this machine has such a layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from batchgen.model.private import pack_weight, packed_linear, packed_linear_plus

PACKED_ROWS = 64  # that a packed layer is laid out for: those of a decode step in full swing


@dataclass(frozen=True, slots=True)
class HiddenWeight:
    """A weight that exists only in another layout, for parents that read their layer's weight: Mamba, some routers.

    Whatever is asked of it but its dtype is asked of the tensor, made anew each time.
    """

    dtype: torch.dtype
    as_loaded: Callable[[], torch.Tensor]  # [O, I], made anew

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        return self.as_loaded() @ x

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python's and copy's own, not the tensor's
            raise AttributeError(name)
        return getattr(self.as_loaded(), name)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*map(_tensor, args), **{name: _tensor(value) for name, value in (kwargs or {}).items()})


def _tensor(value: Any) -> Any:
    return value.as_loaded() if isinstance(value, HiddenWeight) else value


class PackedLinear(nn.Module):
    """A linear layer `[…, I]` -> `[…, O]` whose weights lie as oneDNN wants them, and what follows in the same pass.

    That is an activation and its form, "gelu tanh", or "add" of another tensor.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, follow: str = "") -> None:
        """weight `[O, I]`, bias `[O]`."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight_packed = pack_weight(weight.detach().contiguous(), PACKED_ROWS)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.follow = follow

    @property
    def weight(self) -> HiddenWeight:
        """For a parent that reads its layer's weight."""
        return HiddenWeight(self.weight_packed.dtype, self.weight_packed.to_dense)

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        if other is not None:
            return packed_linear_plus(x, other, self.weight_packed, self.bias)
        activation, _, form = self.follow.partition(" ")
        return packed_linear(x, self.weight_packed, self.bias, activation or "none", form)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether layers of a device and dtype have a packed form on this machine."""
    return why_plain(device, dtype) is None


def why_plain(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why layers of a device and dtype have no packed form here, found by trying one of 16 x 16; None if they have."""
    if device.type != "cpu":
        return "weights are packed on the CPU only"
    if dtype not in (torch.float32, torch.bfloat16):
        return "there is no packed layout for it"
    try:
        PackedLinear(torch.ones(16, 16, dtype=dtype), None)(torch.ones(2, 16, dtype=dtype))
    except (RuntimeError, AttributeError):  # a build of torch without oneDNN, a processor without this dtype's layout
        has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return "this processor has no layout for it" if has_onednn else "this build of torch has no oneDNN"
    return None
