"""Engines: sequences in, finished sequences out, in completion order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from batchgen.errors import UsageError
from batchgen.planner import BatchLimits
from batchgen.records import Sequence

if TYPE_CHECKING:
    from batchgen.model import Model


ENGINES = ("auto", "reference")


class Engine(Protocol):
    """What the pipeline needs of an engine; a fake one needs no model."""

    limits: BatchLimits
    num_batches: int
    prefill_s: float
    decode_s: float

    def generate(self, sequences: Iterable[Sequence]) -> Iterator[Sequence]:
        """Runs sequences and yields each when it is finished."""
        ...


def make_engine(
    model: Model,
    limits: BatchLimits,
    *,
    name: str = "auto",
    exact: bool = True,
    on_step: Callable[[int], None] = lambda num_tokens: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Engine:
    """The engine of that name for a model; `auto` takes the fastest that fits it.

    Near ties are decided again (`exact`) in float32 only: 16 bits are too coarse for it.
    """
    import torch

    from batchgen.engines.reference import ReferenceEngine

    if name not in ENGINES:
        raise UsageError(f"--engine {name} is not one of {', '.join(ENGINES)}")
    exact = exact and model.dtype == torch.float32
    return ReferenceEngine(model, limits, exact=exact, on_step=on_step, should_stop=should_stop)
