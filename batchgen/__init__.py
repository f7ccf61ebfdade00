"""batchgen: a file of prompts to a file of continuations, in left-padded, masked batches."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchgen.errors import BatchgenError
    from batchgen.model import Model, open_model
    from batchgen.pipeline import generate
    from batchgen.proof.verify import RowCheck, check_padding
    from batchgen.records import Request, Result, SamplingParams

__version__ = "0.1.0"

__all__ = [
    "BatchgenError",
    "Model",
    "Request",
    "Result",
    "RowCheck",
    "SamplingParams",
    "check_padding",
    "generate",
    "open_model",
]

_HOMES = {
    "BatchgenError": "errors",
    "Model": "model",
    "Request": "records",
    "Result": "records",
    "RowCheck": "proof.verify",
    "SamplingParams": "records",
    "check_padding": "proof.verify",
    "generate": "pipeline",
    "open_model": "model",
}


def __getattr__(name: str) -> Any:
    """Public names load on first use, so that `batchgen --help` stays quick."""
    if name in _HOMES:
        return getattr(import_module(f"batchgen.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
