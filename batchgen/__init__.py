"""batchgen: a file of prompts to a file of continuations, in left-padded, masked batches."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchgen.errors import BatchgenError, OutputError
    from batchgen.model import Model, open_model
    from batchgen.proof.verify import RowCheck, check_padding
    from batchgen.records import Request, Result, RunStats, SamplingParams
    from batchgen.runs.calls import generate, run, stream
    from batchgen.runs.scores import Score, score

__version__ = "0.1.0"

__all__ = [
    "BatchgenError",
    "Model",
    "OutputError",
    "Request",
    "Result",
    "RowCheck",
    "RunStats",
    "SamplingParams",
    "Score",
    "check_padding",
    "generate",
    "open_model",
    "run",
    "score",
    "stream",
]

_HOMES = {
    "BatchgenError": "errors",
    "Model": "model",
    "OutputError": "errors",
    "Request": "records",
    "Result": "records",
    "RowCheck": "proof.verify",
    "RunStats": "records",
    "SamplingParams": "records",
    "Score": "runs.scores",
    "check_padding": "proof.verify",
    "generate": "runs.calls",
    "open_model": "model",
    "run": "runs.calls",
    "score": "runs.scores",
    "stream": "runs.calls",
}


def __getattr__(name: str) -> Any:
    """Public names load on first use, so that `batchgen --help` stays quick."""
    if name in _HOMES:
        return getattr(import_module(f"batchgen.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
