"""A pretend accelerator: torch's PrivateUse1 device in plain Python. Its tensors hold CPU tensors inside.

Like a real one, it refuses to mix its tensors with the CPU's. It counts what costs time on a real one: how often the
host waits for a number from the device (a sync), and how often it sends some there (an upload), each by the operation
and our function that caused it, such as "tolist in _decide". Knows nothing of engines.

    traffic = pretend_device()
    elsewhere = on_device(model)
    traffic.clear()
    ...
    print(traffic.syncs, traffic.uploads)
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import nn
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

import batchgen
from batchgen.model import Model

DEVICE = torch.device("privateuseone", 0)
CPU = torch.device("cpu")
aten = torch.ops.aten

# Operations that return a number of the device to the host, or make it wait for the size of their result.
SYNCS = {
    aten._local_scalar_dense: "item", aten.equal: "equal", aten.nonzero: "nonzero", aten.masked_select: "masked_select",
    aten._unique2: "unique", aten.unique_dim: "unique", aten.unique_consecutive: "unique", aten.bincount: "bincount",
}  # fmt: skip
INDEXINGS = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
# Operations without a tensor argument: torch only finds the device's own where each is registered.
FACTORIES = (
    "empty.memory_format",
    "empty_strided",
    "zeros",
    "ones",
    "full",
    "scalar_tensor",
    "arange",
    "arange.start",
    "arange.start_step",
    "linspace",
    "eye",
    "eye.m",
    "tril_indices",
    "triu_indices",
)
# With these `torch.tensor` fills a tensor, bypassing subclasses.
FILLING = ("copy_", "_copy_from", "detach", "alias")  # fmt: skip
# Operations that torch decomposes by what it knows about a device; they run as a whole on the CPU.
WHOLE = {aten.scaled_dot_product_attention}
OURS = (str(Path(batchgen.__file__).parent), str(Path(__file__).parents[1]))


@dataclass(slots=True)
class Traffic:
    """What was transferred between the host and the device, and how often."""

    syncs: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        self.syncs.clear()
        self.uploads.clear()


TRAFFIC = Traffic()


class PretendTensor(torch.Tensor):
    """A tensor on the pretend device, with its numbers in the CPU tensor `inside`."""

    inside: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inside: torch.Tensor) -> PretendTensor:
        with torch.inference_mode(inside.is_inference()):  # a view of a weight is not an inference tensor
            made: PretendTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls, inside.shape, strides=inside.stride(), dtype=inside.dtype, device=DEVICE
            )
        made.inside = inside
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PretendTensor({self.inside!r})"

    def tolist(self) -> Any:  # torch's own method refuses subclasses
        _note(TRAFFIC.syncs, "tolist")
        return self.inside.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, *args, **(kwargs or {}))


def is_supported() -> bool:
    """Whether this torch supports a device written in Python."""
    return hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


@cache
def pretend_device() -> Traffic:
    """Make torch know the device, once and for the life of the process; transfers to and from it are counted."""
    backend_registration._setup_privateuseone_for_python_backend()
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(_run, "PrivateUse1")
    factories = torch.library.Library("aten", "IMPL")
    for name in (*FACTORIES, *FILLING):
        packet, _, overload = name.partition(".")
        operation = getattr(getattr(aten, packet), overload or "default")
        factories.impl(name, partial(_run, operation), "PrivateUse1")
    _registered.extend([everything, factories])
    return TRAFFIC


_registered: list[torch.library.Library] = []  # torch drops the operations when these objects are freed


def on_device(model: Model) -> Model:
    """Return the model with a copy of its network on the device; weights that modules share stay shared."""
    network = copy.deepcopy(model.network)
    moved: dict[int, torch.Tensor] = {}

    def move(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in moved:
            inside = PretendTensor(tensor.detach())
            is_parameter = isinstance(tensor, nn.Parameter)
            moved[id(tensor)] = nn.Parameter(inside, requires_grad=False) if is_parameter else inside
        return moved[id(tensor)]

    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = move(tensor)  # type: ignore[assignment]
    return replace(model, network=network, device=DEVICE)


def _run(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """Run any operation of the device on the CPU tensors inside."""
    packet = operation.overloadpacket
    if _is_composite(operation) and packet not in WHOLE:  # inference mode does not decompose it
        return operation.decompose(*args, **kwargs)
    if packet in (aten.copy_, aten._copy_from):
        return _copy(packet, *args)
    if packet in INDEXINGS:
        args = (args[0], _indices(args[1]), *args[2:])
    if packet in SYNCS:
        _note(TRAFFIC.syncs, SYNCS[packet])
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if any(tensor.ndim and not isinstance(tensor, PretendTensor) for tensor in tensors):
        raise RuntimeError(f"{operation}: expected all tensors on one device, found {DEVICE} and cpu")
    to_host = torch.device(kwargs.get("device") or DEVICE).type == "cpu"
    if to_host and packet is aten._to_copy:
        _note(TRAFFIC.syncs, "copy to the host")
    found = operation(*tree_map(_inside, args), **tree_map(_inside, kwargs))
    given = {id(tensor.inside): tensor for tensor in tensors if isinstance(tensor, PretendTensor)}
    return found if to_host else tree_map(partial(_outside, given), found)


def _copy(packet: Any, one: torch.Tensor, other: torch.Tensor, *_: Any) -> torch.Tensor:
    """Copy; `copy_` gets the target first, `_copy_from` the source."""
    target, source = (one, other) if packet is aten.copy_ else (other, one)
    if not isinstance(target, PretendTensor):
        _note(TRAFFIC.syncs, "copy to the host")
    elif not isinstance(source, PretendTensor):
        _note(TRAFFIC.uploads, "upload")
    _inside(target).copy_(_inside(source))
    return target


def _indices(indices: Iterable[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Indices may come from the host, which costs an upload each; the host waits for the size of a mask."""
    there = []
    for index in indices:
        if index is not None and not isinstance(index, PretendTensor):
            _note(TRAFFIC.uploads, "upload of an index")
            index = PretendTensor(index)
        if index is not None and index.dtype == torch.bool:
            _note(TRAFFIC.syncs, "index by a mask")
        there.append(index)
    return there


def _is_composite(operation: Any) -> bool:
    key = "CompositeImplicitAutograd"
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), key))


def _inside(value: Any) -> Any:
    if isinstance(value, torch.device):
        return CPU
    return value.inside if isinstance(value, PretendTensor) else value


def _outside(given: dict[int, PretendTensor], value: Any) -> Any:
    """Return the device's tensor for one on the CPU: the given one if it was changed in place."""
    if not isinstance(value, torch.Tensor):
        return value
    return given[id(value)] if id(value) in given else PretendTensor(value)


def _note(counter: Counter[str], what: str) -> None:
    """Count it for our function that called torch, or for the outermost caller."""
    frame = sys._getframe(1)
    while frame.f_back and not _is_ours(frame.f_code):
        frame = frame.f_back
    counter[f"{what} in {frame.f_code.co_name}"] += 1


def _is_ours(code: CodeType) -> bool:
    """Whether a frame is one of our named functions; this file's functions are part of the device."""
    is_here = code.co_filename == __file__
    return code.co_filename.startswith(OURS) and not is_here and not code.co_name.startswith("<")
