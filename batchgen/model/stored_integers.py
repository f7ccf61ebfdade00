"""Read weights that a checkpoint stores as 8-bit integers with a scale for each output.

Reads the files of compressed-tensors and torchao without importing either; other schemes raise an error that names
them. Knows nothing about integer multiplication: weights become floats, and layers keep their scales, from which the
integers can be recovered.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchgen.errors import ModelError, parameter
from batchgen.model.checks import INDEX, indexed_files

if TYPE_CHECKING:
    import torch
    from torch import nn

    Read = Callable[[str], torch.Tensor]

COMPRESSED, TORCHAO = "compressed-tensors", "torchao"
FORMATS = ("int-quantized", "naive-quantized", "pack-quantized")  # of compressed-tensors
CONFIGS = ("Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig")  # of torchao
CHANNEL = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
TOKEN = {"num_bits": 8, "type": "int", "strategy": "token"}
METHODS = {
    "aqlm": "AQLM",
    "awq": "AWQ",
    "bitnet": "BitNet",
    "eetq": "EETQ",
    "fbgemm_fp8": "FP8 (FBGEMM)",
    "fp8": "FP8",
    "gptq": "GPTQ",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "mxfp4": "MXFP4",
    "mxfp8": "MXFP8",
    "nvfp4": "NVFP4",
    "spqr": "SpQR",
    "vptq": "VPTQ",
}
# The suffixes of a layer's integers, scales and zero points in a file.
PACKED, SHAPE = ".weight_packed", ".weight_shape"
LAYOUTS = {
    COMPRESSED: ((".weight", PACKED), ".weight_scale", ".weight_zero_point"),
    TORCHAO: (("._weight_qdata",), "._weight_scale", "._weight_zero_point"),
}


def stored_scheme(name: str, folder: Path) -> str | None:
    """The library that wrote a model's integer weights; None if its weights are floats.

    Raises `ModelError` for an unsupported scheme.
    """
    scheme = _quantization(folder)
    if scheme is None:
        return None
    method = scheme.get("quant_method")
    if method is None and (scheme.get("load_in_4bit") or scheme.get("load_in_8bit")):
        method = "bitsandbytes"
    detail = {COMPRESSED: _odd_in_compressed, TORCHAO: _odd_in_torchao}.get(str(method), _bits)(scheme)
    if method in LAYOUTS and detail is None:
        return str(method)
    known = METHODS.get(str(method), str(method))[:40] if method else "an unnamed scheme"
    known += f" ({detail[:60]})" if detail else ""
    raise ModelError(
        f"model {name} has weights quantised by {known}, which batchgen does not read: "
        f"use the model that it was made from, with {parameter('quantize')} int8 or {parameter('dtype')} bfloat16"
    )


def _quantization(folder: Path) -> Mapping[str, Any] | None:
    """The quantization_config in config.json; None if there is none. Invalid JSON is reported elsewhere."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    for part in (config, config.get("text_config")) if isinstance(config, dict) else ():
        if isinstance(part, dict) and isinstance(part.get("quantization_config"), dict):
            found: Mapping[str, Any] = part["quantization_config"]
            return found
    return None


def _bits(scheme: Mapping[str, Any]) -> str | None:
    bits = scheme.get("bits") or (scheme.get("load_in_4bit") and 4) or (scheme.get("load_in_8bit") and 8)
    return f"{bits} bits" if type(bits) is int else None


def _odd_in_compressed(scheme: Mapping[str, Any]) -> str | None:
    """The unsupported part of a compressed-tensors config: anything but 8-bit integers by output. None if supported."""
    form = scheme.get("format")
    if form not in FORMATS:
        return f"format {form}"
    for key in ("sparsity_config", "transform_config"):
        given = scheme.get(key) or {}
        if given and not (isinstance(given, dict) and given.get("format") == "dense"):
            return key
    groups = scheme.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else [None]:
        weights, inputs = (group.get(key) for key in ("weights", "input_activations")) if group else (None, None)
        if not _has(weights, CHANNEL):
            return _scheme_text("weights", weights)
        if inputs is not None and not (_has(inputs, TOKEN) and inputs.get("dynamic") is True):
            return _scheme_text("inputs", inputs)
    return None


def _has(given: object, wanted: Mapping[str, Any]) -> bool:
    return isinstance(given, dict) and all(given.get(key) == value for key, value in wanted.items())


def _scheme_text(what: str, given: object) -> str:
    """A short description of a scheme, for the error.

    >>> _scheme_text("weights", {"num_bits": 4, "type": "int", "strategy": "group", "symmetric": True})
    'weights: 4-bit int by group'
    """
    if not isinstance(given, dict):
        return what
    kinds = [f"{given.get('num_bits')}-bit {given.get('type')} by {given.get('strategy')}"]
    kinds += ["with zero points"] * (given.get("symmetric") is False)
    kinds += ["static"] * (what == "inputs" and given.get("dynamic") is not True)
    return f"{what}: {', '.join(kinds)}"


def _odd_in_torchao(scheme: Mapping[str, Any]) -> str | None:
    kind = scheme.get("quant_type")
    kinds = list(kind.values()) if isinstance(kind, dict) else [kind]
    names = [each.get("_type") if isinstance(each, dict) else each for each in kinds if each is not None]
    odd = [name for name in names if name not in CONFIGS]
    return str(odd[0]) if odd or not names else None


class StoredWeights:
    """The tensors of a folder with integer weights, as floats; `scales` has the scales of the layers read so far."""

    def __init__(self, folder: Path, method: str) -> None:
        self.scales: dict[str, torch.Tensor] = {}  # by the path of a layer: [O], float32
        self._folder, self._method = folder, method

    def floats(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """All tensors by their names in the network: integers times their scales in `dtype`, others as stored.

        Raises `ModelError` for integers without one scale per output.
        """
        from safetensors import safe_open

        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(path, framework="pt")) for path in self._files()]
            tensors = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - no mapping
            return dict(self._read(lambda name: tensors[name].get_tensor(name), set(tensors), dtype))

    def keep_scales(self, network: nn.Module) -> None:
        """Store in each linear layer the scales of its stored integers, as the buffer `weight_scale`."""
        from torch import nn

        for path, layer in network.named_modules():
            scale = self.scales.get(path)
            if scale is None or type(layer) is not nn.Linear or len(scale) != layer.out_features:
                continue
            if scale.isfinite().all() and scale.all():
                layer.register_buffer("weight_scale", scale, persistent=False)

    def _files(self) -> list[Path]:
        names = indexed_files(self._folder / INDEX) or {"model.safetensors"}
        return [self._folder / name for name in sorted(names)]

    def _read(self, read: Read, names: set[str], dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        integers, scale, zeros = LAYOUTS[self._method]
        for name in sorted(names):
            ending = next((each for each in integers if name.endswith(each)), None)
            path = name.removesuffix(ending) if ending else ""
            if ending and path + scale in names:
                if path + zeros in names and read(path + zeros).any():
                    raise self._refusal(name, "has zero points")
                weight = self._unpacked(path, read) if ending == PACKED else read(name)
                yield f"{path}.weight", self._float(path, name, weight, read(path + scale)).to(dtype)
            elif not name.endswith((scale, zeros, SHAPE)):
                yield name, self._checked(name, read(name))

    def _float(self, path: str, name: str, integers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        import torch

        if integers.dtype != torch.int8 or integers.ndim != 2 or scale.numel() != len(integers):
            raise self._refusal(name, f"is {_shown(integers)} with scales {_shown(scale)}, not integers by output")
        self.scales[path] = scale = scale.float().flatten()  # [O]
        return integers * scale[:, None]  # [O, I]

    def _unpacked(self, path: str, read: Read) -> torch.Tensor:
        """Unpack four integers from each 32-bit one: lowest bits first, each stored with 128 added."""
        import torch

        words, (outputs, inputs) = read(path + PACKED), read(path + SHAPE).tolist()
        is_right = words.dtype == torch.int32 and words.ndim == 2 and len(words) == outputs
        if not is_right or not 0 < inputs <= 4 * words.shape[1]:
            raise self._refusal(path + PACKED, f"is {_shown(words)}, for a weight of {outputs} x {inputs}")
        return (words.contiguous().view(torch.uint8)[:, :inputs] ^ 128).view(torch.int8)

    def _checked(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor. Raises `ModelError` for an 8-bit integer weight without scales."""
        import torch

        if name.endswith(".weight") and tensor.dtype == torch.int8:
            raise self._refusal(name, "has no scales")
        return tensor

    def _refusal(self, name: str, what: str) -> ModelError:
        return ModelError(f"{self._folder}: {name} {what}: batchgen cannot read this model by {self._method}")


def _shown(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {' x '.join(map(str, tensor.shape))}"
