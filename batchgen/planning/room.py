"""How much memory there is for a model that is not loaded yet."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from batchgen.machine.devices import certain_cpu
from batchgen.machine.limits import Bound, memory_bounds
from batchgen.machine.speeds import kept_rows
from batchgen.model.footprint import footprint_of
from batchgen.model.shape import ModelShape
from batchgen.model.weights import choose_device, choose_dtype
from batchgen.planning.kinds import EngineKind
from batchgen.planning.memory import BatchLimits
from batchgen.records import EngineOptions, precision_of

if TYPE_CHECKING:
    from batchgen.model import Checkpoint


@dataclass(frozen=True, slots=True)
class Room:
    """A model that is not loaded yet and the memory available to it; `bounds` are all limits in force, tightest first.

    `packed_bytes` is the size of the output layer, if the slot engine may pack it into a copy of its own.
    """

    model: str
    device: str
    dtype: str
    engine: str
    weights_bytes: int
    packed_bytes: int
    bounds: tuple[Bound, ...]
    limits: BatchLimits
    quantize: str | None = None

    @property
    def precision(self) -> str:
        """The dtype, preceded by what the linear layers are quantised to, if any."""
        return precision_of(self.dtype, self.quantize)

    def to_dict(self) -> dict[str, Any]:
        names = ("model", "device", "dtype", "quantize", "weights_bytes", "packed_bytes", "engine")
        return {name: getattr(self, name) for name in names} | {
            "available_bytes": self.bounds[0].available_bytes,
            "bounds": [asdict(bound) for bound in self.bounds],
            "batch_budget_bytes": self.limits.budget_bytes,
        }


def make_room(
    checkpoint: Checkpoint,
    device: str,
    dtype: str,
    kind: EngineKind,
    options: EngineOptions,
) -> Room:
    """Return what `run` would find with these options, before it loads the weights."""
    on = certain_cpu(device) or choose_device(device)
    dtype = choose_dtype(dtype, on.type, checkpoint.outline)
    footprint = footprint_of(checkpoint, dtype, kind.name, is_exact=options.exact)
    shape = ModelShape.from_config(checkpoint.outline)
    weights_bytes = kind.quantized_bytes(footprint, shape) if options.quantize else footprint.weights
    packed_bytes = 0 if options.quantize else kind.copied_bytes(shape, footprint.element_bytes, on.type)
    bounds = tuple(memory_bounds(on, options.memory))
    available_bytes = max(0, bounds[0].available_bytes - weights_bytes - packed_bytes)
    names = (checkpoint.name, str(on), dtype)
    precision = precision_of(dtype, options.quantize)
    best_rows = kept_rows(checkpoint.name, str(on), precision) if kind.takes_best_rows else None
    limits = kind.limits(footprint, on.type, available_bytes, options.batch_size, best_rows)
    return Room(*names, kind.name, weights_bytes, packed_bytes, bounds, limits, options.quantize)
