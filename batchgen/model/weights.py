"""Load a checkpoint's weights onto a device, in a dtype: only complete safetensors, and no code of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from batchgen.errors import ModelError, UsageError
from batchgen.machine.devices import Device
from batchgen.machine.limits import held_bytes, memory_bounds
from batchgen.model.checkpoint import Checkpoint, attention_kernel
from batchgen.model.checks import check_weights
from batchgen.model.config_view import ConfigView
from batchgen.model.footprint import footprint_of
from batchgen.model.loaded import Model
from batchgen.model.private import set_attention
from batchgen.model.quiet import one_line, quiet
from batchgen.model.stored_integers import StoredWeights, stored_scheme
from batchgen.model.text_part import NAMES
from batchgen.records import MemoryLimit
from batchgen.text import size_text

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

PROCESS_BYTES = 256 * 2**20  # of a worker, besides its weights: Python, torch and transformers
DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_model(
    checkpoint: Checkpoint, device: str = "auto", dtype: str = "auto", memory: MemoryLimit | None = None
) -> Model:
    """The checkpoint with its weights on `device`. Raises `ModelError` for missing, misshapen or too large weights."""
    import torch
    from transformers import GenerationConfig

    on = choose_device(device)
    dtype = choose_dtype(dtype, on.type, checkpoint.outline)
    as_dtype: torch.dtype = getattr(torch, dtype)
    folder = checkpoint.folder
    check_weights(folder)
    with quiet(), one_line(checkpoint.name, folder):
        check_room(checkpoint, on, dtype, memory)
        # Set in both places: a config may name a kernel from the Hub, which would be code.
        attention = attention_kernel(checkpoint.config)
        set_attention(checkpoint.config, attention)
        network, loading, stored = _read_network(checkpoint, attention, as_dtype)
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        if keys := loading.get(problem):
            what = problem.replace("_keys", " weights").replace("_msgs", "s")
            raise ModelError(
                f"{folder} does not have the complete model: {len(keys)} {what}, first {sorted(map(str, keys))[0]}"
            )
    if stored:
        stored.keep_scales(network)
    network.generation_config = GenerationConfig()  # the checkpoint's own settings must not leak into `generate`
    return Model(checkpoint, network.eval().to(on), on, as_dtype)


def _read_network(
    checkpoint: Checkpoint, attention: str, dtype: torch.dtype
) -> tuple[PreTrainedModel, Mapping[str, Any], StoredWeights | None]:
    """The network, transformers' loading report, and the reader of the files if they store integers."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    folder, config = checkpoint.folder, checkpoint.config
    options = {"config": config, "dtype": dtype, "attn_implementation": attention, "output_loading_info": True}
    if config.model_type != json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type"):
        options["key_mapping"] = NAMES  # the text part of a larger model
    if scheme := stored_scheme(checkpoint.name, folder):
        stored = StoredWeights(folder, scheme)
        family = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        return *family.from_pretrained(None, state_dict=stored.floats(dtype), **options), stored
    network, loading = AutoModelForCausalLM.from_pretrained(
        folder, use_safetensors=True, trust_remote_code=False, local_files_only=True, **options
    )
    return network, loading, None


def check_room(
    checkpoint: Checkpoint, device: Device, dtype: str, memory: MemoryLimit | None = None, *, num_copies: int = 1
) -> None:
    """Raise `ModelError` for weights that cannot fit: the system would kill the process without an error."""
    weights = num_copies * footprint_of(checkpoint, dtype).weights
    needed = weights + (num_copies * PROCESS_BYTES if num_copies > 1 and device.type == "cpu" else 0)
    bound = memory_bounds(device, memory)[0]
    if needed > bound.available_bytes:
        if memory and bound.name.startswith("--memory"):
            raise ModelError(
                f"--memory {memory.text} is too small for {checkpoint.name}: its weights need {size_text(needed)} in "
                f"{dtype}, and this process takes {size_text(held_bytes(device))} without them: increase it"
            )
        what = f"the weights of {checkpoint.name} need {size_text(needed)} in {dtype}"
        if num_copies > 1:
            what = f"{num_copies} workers with {checkpoint.name} in {dtype} need {size_text(needed)}"
        fix = "a smaller model" if dtype != "float32" else "--dtype bfloat16 (half the size) or a smaller model"
        raise ModelError(
            f"{what}, but {bound.name} leaves {size_text(bound.available_bytes)}: "
            f"try {'fewer --workers, ' if num_copies > 1 else ''}{fix}"
        )


def check_shares(checkpoint: Checkpoint, device: Device, dtype: str, memory: MemoryLimit, num_workers: int) -> None:
    """Raise `ModelError` if the workers' copies of the weights do not fit into their shared memory limit."""
    weights = footprint_of(checkpoint, dtype).weights
    process = PROCESS_BYTES if device.type == "cpu" else 0
    most = memory.size_bytes
    if most is None and memory.share is not None:
        most = int(memory.share * memory_bounds(device)[0].available_bytes)
    if most is not None and num_workers * (weights + process) > most:
        beside = f", and its process takes {size_text(process)} without them" if process else ""
        raise ModelError(
            f"--memory {memory.text} is too small for {num_workers} workers with {checkpoint.name}: the weights of "
            f"each need {size_text(weights)} in {dtype}{beside}: increase it, or use fewer --workers"
        )


def choose_device(name: str) -> torch.device:
    """Choose the device: `auto` is CUDA, then Apple's MPS, then the CPU. Raises `UsageError` or `ModelError`."""
    import torch

    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name} is not a device: use auto, cpu, cuda, cuda:1 or mps") from None
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(has_mps)}.get(device.type, 0)
    if (device.index or 0) >= present:
        raise ModelError(f"--device {name} is not on this machine: use --device auto or cpu")
    return device


def choose_dtype(name: str, device_type: str, config: ConfigView | PretrainedConfig) -> str:
    """Choose the dtype: `auto` is float32 on the CPU, and the checkpoint's own dtype on an accelerator.

    Raises `UsageError` for an unknown name.
    """
    if name not in DTYPES:
        raise UsageError(f"--dtype {name} is not one of {', '.join(DTYPES)}")
    if name != "auto":
        return name
    stored = str(getattr(config.get_text_config(), "dtype", None)).removeprefix("torch.")
    return stored if device_type != "cpu" and stored in DTYPES else "float32"
