"""Weights that a checkpoint stores in 8-bit integers with a scale for each output: which are read, and how.

Reads what compressed-tensors and torchao write, without either; any other scheme is refused by name. Knows nothing of
how integers are multiplied: weights become floats, and layers keep their scales, which give the integers back.
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
# The integers of a layer, its scales and its zero points, by what their names end with in a file.
PACKED, SHAPE = ".weight_packed", ".weight_shape"
LAYOUTS = {
    COMPRESSED: ((".weight", PACKED), ".weight_scale", ".weight_zero_point"),
    TORCHAO: (("._weight_qdata",), "._weight_scale", "._weight_zero_point"),
}


def stored_scheme(name: str, folder: Path) -> str | None:
    """Who wrote the integers of a model; None where its weights are floats.

    Raises `ModelError` for a scheme that is not read.
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
    """What config.json says of quantised weights; a file that is no JSON is left to others."""
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
    """What of a config of compressed-tensors is not 8-bit integers by output; None where all is."""
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
    """
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
    """The tensors of a model folder with integers, as floats; `scales` are those of its layers, once they were read."""

    def __init__(self, folder: Path, method: str) -> None:
        self.scales: dict[str, torch.Tensor] = {}  # by the path of a layer: [O], float32
        self._folder, self._method = folder, method

    def floats(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """All tensors by their names in a network: integers times their scales in `dtype`, others as they are stored.

        Raises `ModelError` for integers that are not by output.
        """
        from safetensors import safe_open

        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(path, framework="pt")) for path in self._files()]
            tensors = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - no mapping
            return dict(self._read(lambda name: tensors[name].get_tensor(name), set(tensors), dtype))

    def keep_scales(self, network: nn.Module) -> None:
        """Gives each linear layer the scales that its integers were stored with, as `weight_scale`."""
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
        """Four integers stand in one of 32 bits, the first one lowest, each 128 higher than it is."""
        import torch

        words, (outputs, inputs) = read(path + PACKED), read(path + SHAPE).tolist()
        is_right = words.dtype == torch.int32 and words.ndim == 2 and len(words) == outputs
        if not is_right or not 0 < inputs <= 4 * words.shape[1]:
            raise self._refusal(path + PACKED, f"is {_shown(words)}, for a weight of {outputs} x {inputs}")
        return (words.contiguous().view(torch.uint8)[:, :inputs] ^ 128).view(torch.int8)

    def _checked(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """An integer without scales is no weight of this scheme."""
        import torch

        if name.endswith(".weight") and tensor.dtype == torch.int8:
            raise self._refusal(name, "has no scales")
        return tensor

    def _refusal(self, name: str, what: str) -> ModelError:
        return ModelError(f"{self._folder}: {name} {what}: batchgen cannot read this model by {self._method}")


def _shown(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {' x '.join(map(str, tensor.shape))}"
