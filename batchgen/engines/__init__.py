"""Engines: sequences in, finished sequences out, in completion order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from batchgen.errors import ModelError, UsageError
from batchgen.machine.limits import Bound, MemoryLimit, PeakMeter, available_bytes, memory_bounds
from batchgen.machine.speeds import kept_rows
from batchgen.planning.backoff import Backoff
from batchgen.planning.batches import limits_for
from batchgen.planning.memory import LEAST_SLOTS_BYTES, budget_bytes, size_text
from batchgen.records import Sequence

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from batchgen.engines.sampling.sampler import OnLogits
    from batchgen.model import Model


ENGINES = ("auto", "continuous", "reference")


class Limits(Protocol):
    """How many rows are to be read before the first ones run."""

    @property
    def first_window(self) -> int: ...


class EngineMemory(Protocol):
    """What an engine's batches were predicted to take, and took."""

    @property
    def limits(self) -> Limits: ...
    @property
    def peak_bytes(self) -> int: ...
    @property
    def predicted_bytes(self) -> int: ...
    @property
    def measured_bytes(self) -> int | None: ...


class Engine(Protocol):
    """What the pipeline needs of an engine; a fake one needs no model. `backoff` knows the limits and the memory."""

    @property
    def name(self) -> str: ...
    @property
    def backoff(self) -> EngineMemory: ...
    @property
    def num_batches(self) -> int: ...
    @property
    def decode_work(self) -> int: ...
    @property
    def prefill_s(self) -> float: ...
    @property
    def decode_s(self) -> float: ...

    @property
    def is_busy(self) -> bool:
        """Whether there is work in hand, so that the next window should be what has arrived by now."""
        ...

    def generate(self, windows: Iterable[list[Sequence]]) -> Iterator[Sequence]:
        """Runs sequences and yields each when it is finished; those that are so already come straight out."""
        ...


def choose_engine(
    name: str, config: PretrainedConfig, num_beams: int = 1, room_bytes: int | None = None
) -> tuple[str, str]:
    """`continuous` or `reference`, and why not the former; needs no weights. Raises `UsageError`.

    `auto` takes `continuous` where it applies and `room_bytes`, what a batch may take, are enough for it.
    """
    from batchgen.engines.continuous.slot_model import why_no_slots

    if name not in ENGINES:
        raise UsageError(f"--engine {name} is not one of {', '.join(ENGINES)}")
    reason = "" if name == "reference" else "it has no beams" if num_beams > 1 else why_no_slots(config) or ""
    if name == "auto" and room_bytes is not None and room_bytes < LEAST_SLOTS_BYTES:
        reason = reason or f"less than {size_text(LEAST_SLOTS_BYTES)} of memory are left for slots"
    if name == "continuous" and reason:
        raise UsageError(f"--engine continuous does not run this: {reason}; use --engine auto")
    return ("reference" if name == "reference" or reason else "continuous"), reason


def make_engine(
    model: Model,
    *,
    name: str = "auto",
    num_rows: int | None = None,
    num_beams: int = 1,
    exact: bool = True,
    share: bool = True,
    on_step: Callable[[int], None] = lambda num_tokens: None,
    on_logits: OnLogits = lambda logits, sequences: None,
    should_stop: Callable[[], bool] = lambda: False,
    memory: MemoryLimit | None = None,
    reuse_blocks: Callable[[bool], None] = lambda is_plenty: None,
    say: Callable[[str], None] = lambda line: None,
) -> Engine:
    """The engine of that name for a model; `auto` takes the fastest that fits it.

    Near ties are decided again (`exact`) in float32 only: 16 bits are too coarse for it. `num_rows` fixes the rows that
    run together, `memory` is the user's own bound, and `say` is told each time that memory ran out. `on_logits` is told
    the logits of each step before anything is decided.
    """
    import torch

    from batchgen.engines.continuous.engine import ContinuousEngine
    from batchgen.engines.continuous.slot_model import make_slot_model
    from batchgen.engines.reference.engine import ReferenceEngine

    def room_bytes() -> int:
        return budget_bytes(available_bytes(model.device, memory))

    engine, reason = choose_engine(name, model.checkpoint.config, num_beams, room_bytes())
    slot_model = None
    if engine == "continuous":
        slot_model, reason = make_slot_model(model, has_room=lambda num_bytes: num_bytes <= room_bytes())
        if slot_model is None and name == "continuous":
            raise ModelError(f"--engine continuous does not run {model.checkpoint.name}: {reason}; use --engine auto")
    if reason and num_beams == 1:
        say(f"engine reference, the slower one: {reason}")
    best_rows = kept_rows(model.checkpoint.name, str(model.device), model.dtype_name) if slot_model else None
    limits = limits_for(model, num_rows, memory, has_slots=slot_model is not None, most_rows=best_rows)
    backoff = Backoff(
        limits,
        budget=room_bytes,
        wall=lambda: _wall_bytes(memory_bounds(model.device, memory)),
        reuse_blocks=reuse_blocks,
        meter=PeakMeter(model.device),
        say=say,
        on_dropped=lambda num_tokens: on_step(-num_tokens),
    )
    common: dict[str, Any] = {
        "exact": exact and model.dtype == torch.float32,
        "on_step": on_step,
        "on_logits": on_logits,
        "should_stop": should_stop,
        "backoff": backoff,
    }
    if slot_model is None:
        return ReferenceEngine(model, limits, **common)
    return ContinuousEngine(slot_model, limits, share=share, **common)


def _wall_bytes(bounds: list[Bound]) -> int | None:
    """What is left under the tightest bound that kills, or that the user has set."""
    walls = (bound.available_bytes for bound in bounds if bound.kills or bound.name.startswith("--memory"))
    return min(walls, default=None)
