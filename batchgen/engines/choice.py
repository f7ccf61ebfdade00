"""Which engine runs a model, decided from its config alone, and what each engine brings to a plan. Needs no weights."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from batchgen.engines.continuous import memory as slots
from batchgen.engines.continuous import schedule as by_slots
from batchgen.engines.reference import memory as batches
from batchgen.engines.reference import schedule as by_batches
from batchgen.errors import UsageError
from batchgen.planning.kinds import EngineKind
from batchgen.text import size_text

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from batchgen.model.config_view import ConfigView

ENGINES = ("auto", "continuous", "reference")
# On a CPU `generate` gains little beyond 64 rows, and every row waits longer for the slowest one. Slots refill, so no
# row waits, and more of them only cost memory.
CONTINUOUS = EngineKind(
    "continuous",
    slots.SlotMemory,
    by_slots.SlotSchedule,
    by_slots.first_window,
    most_rows={"cpu": 128},
    copied_bytes=slots.packed_bytes,
    quantized_bytes=slots.quantized_bytes,
    takes_best_rows=True,
)
REFERENCE = EngineKind(
    "reference",
    batches.BatchMemory,
    by_batches.BatchSchedule,
    by_batches.first_window,
    most_rows={"cpu": 64},
    plenty_memory=partial(batches.BatchMemory, keeps_blocks=True),
)
KINDS = {kind.name: kind for kind in (CONTINUOUS, REFERENCE)}


def choose_engine(
    name: str, config: ConfigView | PretrainedConfig, num_beams: int = 1, room_bytes: int | None = None
) -> tuple[str, str]:
    """Return `continuous` or `reference`, and why not `continuous`; needs no weights. Raises `UsageError`.

    `auto` selects `continuous` if it supports the model and if `room_bytes`, the memory available to rows, is enough
    for it.
    """
    from batchgen.engines.continuous.requirements import why_no_slots

    if name not in ENGINES:
        raise UsageError(f"--engine {name} is not one of {', '.join(ENGINES)}")
    reason = "" if name == "reference" else "it has no beam search" if num_beams > 1 else why_no_slots(config) or ""
    if name == "auto" and room_bytes is not None and room_bytes < slots.LEAST_SLOTS_BYTES:
        reason = reason or f"less than {size_text(slots.LEAST_SLOTS_BYTES)} is free for the KV cache"
    if name == "continuous" and reason:
        raise UsageError(f"--engine continuous does not run this: {reason}; use --engine auto")
    return ("reference" if name == "reference" or reason else "continuous"), reason
