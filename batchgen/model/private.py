"""Every private name of torch and transformers that batchgen uses, one function each; no other module may use one.

`TRIED` gives the tested versions. If a name is missing, there is a fallback or an error that names it;
`missing_names` reports it to `doctor` and the tests.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from batchgen.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig


TRIED = "torch 2.11 to 2.13 and transformers 5.17 to 5.23"


def supports_sdpa(network_class: type) -> bool:
    """Whether an architecture supports scaled dot product attention; if the name is missing, eager is used."""
    return bool(getattr(network_class, "_supports_sdpa", False))


def supports_attention_backend(network_class: type) -> bool:
    """Whether an architecture takes an attention function by name; if unknown, the engine is `reference`."""
    if getattr(network_class, "_supports_attention_backend", False):
        return True
    return hasattr(sys.modules[network_class.__module__], "ALL_ATTENTION_FUNCTIONS")  # not all declare it


def set_attention(config: PretrainedConfig, name: str | None) -> None:
    """Make networks of this config call the attention function `name`."""
    if not hasattr(type(config), "_attn_implementation"):
        raise _gone("transformers' _attn_implementation")
    config._attn_implementation = name


def pack_weight(weight: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Pack `[O, I]` into oneDNN's blocks for products with about `num_rows` rows; `.to_dense()` restores it exactly."""
    import torch

    return torch.ops.mkldnn._reorder_linear_weight(weight, num_rows)  # type: ignore[no-any-return]


def packed_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str = "none", form: str = ""
) -> torch.Tensor:
    """`[…, I]` times a packed weight, plus a bias `[O]`, then an activation (such as "gelu" with the form "tanh")."""
    import torch

    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], form)  # type: ignore[no-any-return]


def packed_linear_plus(
    x: torch.Tensor, other: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """`[…, I]` times a packed weight, plus a bias `[O]` and `other` `[…, O]`."""
    import torch

    return torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, bias, "add")  # type: ignore[no-any-return]


def has_vnni() -> bool:
    """Whether this processor can multiply unsigned by signed 8-bit integers and sum in 32 bits in one instruction."""
    import torch

    return bool(getattr(torch.cpu, "_is_vnni_supported", bool)())


def has_int8_linear() -> bool:
    """Whether torch has the two operations below."""
    return all(_is_there(_NAMES[f"torch: onednn.qlinear_{name}"]) for name in ("prepack", "pointwise"))


def pack_int8(weight: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Pack signed 8-bit weights `[O, I]` into oneDNN's blocks for products with about `num_rows` rows."""
    import torch

    return torch.ops.onednn.qlinear_prepack(weight, [num_rows, weight.shape[1]])  # type: ignore[no-any-return]


def int8_linear(
    x: torch.Tensor, zero_point: int, weight: torch.Tensor, scale: torch.Tensor, zeros: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Unsigned 8-bit `[N, I]` minus the zero point, times a packed weight, times its scale `[O]`: `[N, O]`."""
    import torch

    product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        x, 1.0, zero_point, weight, scale, zeros, None, 1.0, 0, dtype, "none", [], ""
    )
    return product


def bytes_of_packed(packed: torch.Tensor) -> torch.Tensor:
    """The memory of a packed weight as signed bytes; valid as long as the packed weight lives."""
    import torch

    size, place = torch.ops.mkldnn._nbytes(packed), torch.ops.mkldnn.data_ptr(packed)
    return torch.frombuffer((ctypes.c_int8 * size).from_address(place), dtype=torch.int8)


def storage_key(storage: torch.UntypedStorage) -> int:
    """A number that identifies a storage among all live ones."""
    return int(storage._cdata)


def dispatch_mode() -> type[Any]:
    """The base class for modes that see every torch operation, below autograd."""
    from torch.utils._python_dispatch import TorchDispatchMode

    return TorchDispatchMode


def tensors_in(tree: object) -> list[torch.Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    import torch
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def reads_number(operation: object) -> bool:
    """Whether an operation passes a tensor's number to Python, as `.item()` does."""
    import torch

    return operation is torch.ops.aten._local_scalar_dense.default


def is_grouped_product(operation: object) -> bool:
    """Whether an operation multiplies each group of rows by its own matrix, as mixtures of experts do."""
    import torch

    return operation is torch._grouped_mm


def missing_names() -> list[str]:
    """The private names that the installed torch and transformers no longer have."""
    return [name for name, find in _NAMES.items() if not _is_there(find)]


def _network_class() -> Any:
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel


def _config_class() -> Any:
    from transformers import GPT2Config

    return GPT2Config


def _storage() -> Any:
    import torch

    return torch.empty(0).untyped_storage()


def _torch() -> Any:
    import torch

    return torch


def _operations(namespace: str) -> Any:
    import torch

    return getattr(torch.ops, namespace)


_NAMES: dict[str, Callable[[], object]] = {
    "transformers: _supports_sdpa": lambda: _network_class()._supports_sdpa,
    "transformers: _supports_attention_backend": lambda: _network_class()._supports_attention_backend,
    "transformers: _attn_implementation": lambda: _config_class()._attn_implementation,
    "torch: mkldnn._reorder_linear_weight": lambda: _operations("mkldnn")._reorder_linear_weight,
    "torch: mkldnn._linear_pointwise": lambda: _operations("mkldnn")._linear_pointwise,
    "torch: mkldnn._linear_pointwise.binary": lambda: _operations("mkldnn")._linear_pointwise.binary,
    "torch: mkldnn.data_ptr": lambda: _operations("mkldnn").data_ptr,
    "torch: mkldnn._nbytes": lambda: _operations("mkldnn")._nbytes,
    "torch: cpu._is_vnni_supported": lambda: _torch().cpu._is_vnni_supported,
    "torch: onednn.qlinear_prepack": lambda: _operations("onednn").qlinear_prepack,
    "torch: onednn.qlinear_pointwise": lambda: _operations("onednn").qlinear_pointwise,
    "torch: UntypedStorage._cdata": lambda: _storage()._cdata,
    "torch: utils._python_dispatch": dispatch_mode,
    "torch: utils._pytree": lambda: tensors_in([]),
    "torch: aten._local_scalar_dense": lambda: reads_number(None),
    "torch: _grouped_mm": lambda: is_grouped_product(None),
}


def _is_there(find: Callable[[], object]) -> bool:
    try:
        find()
    except (AttributeError, ImportError):
        return False
    return True


def _gone(name: str) -> ModelError:
    return ModelError(f"{name} is missing in the installed version: install a tested one ({TRIED})")


# transformers imports this only for compiling and distributed runs, and it takes a fifth of a short run's time.
DYNAMO = "torch._dynamo"
DYNAMO_LEAF = "torch._dynamo._trace_wrapped_higher_order_op"  # transformers.masking_utils takes a class from it
MARKS = ("allow_in_graph", "assume_constant_result", "disable")  # decorators
LEAF_CLASS = "TransformGetItemToIndex"


def spare_imports() -> None:
    """Let transformers be imported without torch's compiler and without `torch.distributed.tensor`.

    Only for batchgen's own processes, which neither compile nor distribute a network. torch then reports that
    torch.distributed is not available, and the compiler's decorators do nothing. Importing `torch._dynamo` loads the
    real module and restores everything. Does nothing if transformers is already imported.
    """
    if "transformers" not in sys.modules and not any(isinstance(finder, _Spare) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Spare())


class _Spare:
    """An import hook that sees imports before they happen, and never finds a module itself."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if name == "transformers" and not self._undo and DYNAMO not in sys.modules:
            self._undo = list(_stand_in())
        elif name == DYNAMO:
            sys.meta_path.remove(self)
            for undo in self._undo:
                undo()


def _stand_in() -> Iterator[Callable[[], object]]:
    """Install the stand-ins, and yield a function that removes each."""
    import torch

    real = {name: getattr(torch.compiler, name) for name in MARKS}
    vars(torch.compiler).update(dict.fromkeys(MARKS, _mark_nothing))
    yield lambda: vars(torch.compiler).update(real)
    vars(torch)["_dynamo"] = _LateDynamo(DYNAMO)
    yield lambda: vars(torch).pop("_dynamo", None)
    leaf = ModuleType(DYNAMO_LEAF)
    vars(leaf)[LEAF_CLASS] = _LateClass
    sys.modules[DYNAMO_LEAF] = leaf
    yield lambda: sys.modules.pop(DYNAMO_LEAF, None)
    is_available = torch.distributed.is_available
    torch.distributed.is_available = lambda: False
    yield lambda: setattr(torch.distributed, "is_available", is_available)
    init = vars(torch.nn.init)
    fills = {name: fill for name, fill in init.items() if name.endswith("_") and not name.startswith("_")}
    init.update({name: _fill_numbers(fill) for name, fill in fills.items()})
    yield lambda: init.update(fills)


def _fill_numbers(fill: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function of `torch.nn.init` so that it skips meta tensors.

    Networks are built on the meta device before weights are loaded, and there torch would ask its compiler.
    """

    @wraps(fill)
    def unless_meta(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        return tensor if tensor.is_meta else fill(tensor, *args, **options)

    return unless_meta


def _mark_nothing(function: Any = None, *_: object, **__: object) -> Any:
    """A compiler decorator that does nothing, used as `@mark` or as `@mark(…)`."""
    return function if callable(function) else _mark_nothing


class _LateDynamo(ModuleType):
    """Has the decorators that transformers uses; any other attribute comes from the real module."""

    def __getattr__(self, name: str) -> Any:
        return _mark_nothing if name in MARKS else getattr(import_module(DYNAMO), name)


class _LateClass:
    """Creates an object of the real class, which it imports at that moment."""

    def __new__(cls, *args: Any, **options: Any) -> Any:
        import_module(DYNAMO)  # removes this stand-in
        return getattr(import_module(DYNAMO_LEAF), LEAF_CLASS)(*args, **options)
