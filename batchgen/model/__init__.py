"""Find and check a model, load its tokenizer and weights, and choose device and dtype.

Code that comes with a model never runs, weights are read from safetensors only, and from generation_config only the
eos tokens are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchgen.model.checkpoint import Checkpoint
    from batchgen.model.loaded import Model
    from batchgen.model.opening import open_checkpoint, open_model
    from batchgen.model.weights import load_model

__all__ = ["Checkpoint", "Model", "load_model", "open_checkpoint", "open_model"]

_HOMES = {
    "Checkpoint": "checkpoint",
    "Model": "loaded",
    "load_model": "weights",
    "open_checkpoint": "opening",
    "open_model": "opening",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that importing one module of this package does not load the others."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
