"""Engines: sequences in, finished sequences out, in completion order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from batchgen.engines.backoff import Backoff
from batchgen.errors import UsageError
from batchgen.memory import BatchLimits, budget_bytes
from batchgen.probes import Bound, MemoryLimit, PeakMeter, available_bytes, memory_bounds
from batchgen.records import Sequence

if TYPE_CHECKING:
    from batchgen.model import Model


ENGINES = ("auto", "reference")


class Engine(Protocol):
    """What the pipeline needs of an engine; a fake one needs no model. `backoff` knows the limits and the memory."""

    backoff: Backoff
    num_batches: int
    decode_work: int
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
    memory: MemoryLimit | None = None,
    reuse_blocks: Callable[[bool], None] = lambda is_plenty: None,
    say: Callable[[str], None] = lambda line: None,
) -> Engine:
    """The engine of that name for a model; `auto` takes the fastest that fits it.

    Near ties are decided again (`exact`) in float32 only: 16 bits are too coarse for it. `memory` is the user's own
    bound, and `say` is told each time that memory ran out.
    """
    import torch

    from batchgen.engines.reference import ReferenceEngine

    if name not in ENGINES:
        raise UsageError(f"--engine {name} is not one of {', '.join(ENGINES)}")
    exact = exact and model.dtype == torch.float32
    backoff = Backoff(
        limits,
        budget=lambda: budget_bytes(available_bytes(model.device, memory)),
        wall=lambda: _wall_bytes(memory_bounds(model.device, memory)),
        reuse_blocks=reuse_blocks,
        meter=PeakMeter(model.device),
        say=say,
        on_dropped=lambda num_tokens: on_step(-num_tokens),
    )
    return ReferenceEngine(model, limits, exact=exact, on_step=on_step, should_stop=should_stop, backoff=backoff)


def _wall_bytes(bounds: list[Bound]) -> int | None:
    """What is left under the tightest bound that kills, or that the user has set."""
    walls = (bound.available_bytes for bound in bounds if bound.kills or bound.name.startswith("--memory"))
    return min(walls, default=None)
