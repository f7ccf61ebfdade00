"""How a run ended, for whoever tells it to a person."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from batchgen.records import BATCH_INVARIANT, RowId, RunStats, precision_of
from batchgen.runs.sums import ScoreSums


@dataclass(frozen=True, slots=True)
class Failures:
    """How many rows failed, of how many, and the first of them."""

    number: int = 0
    of: int = 0
    first_id: RowId | None = None
    first_error: str = ""


@dataclass(frozen=True, slots=True)
class RanOn:
    """What a run's rows ran on. `num_threads` are each worker's, None on an accelerator.

    `bits` says whether a row's bits depend on its batch; where it `is_exact`, its tokens at least do not.
    """

    model: str
    engine: str
    device: str
    dtype: str
    is_exact: bool
    num_workers: int = 1
    num_threads: int | None = None
    is_on_ray: bool = False
    quantize: str | None = None
    bits: str | None = None  # nothing was run

    @property
    def precision(self) -> str:
        """The dtype, behind what linear layers are quantised to."""
        return precision_of(self.dtype, self.quantize)

    @property
    def is_independent(self) -> bool:
        """Whether a row's tokens are the same in any batch."""
        return self.is_exact or self.bits in (None, BATCH_INVARIANT)


@dataclass(frozen=True, slots=True)
class Ending:
    """What a run did, on what, and which files it has `written`.

    One that was stopped has `kept` results in `store`, where a run with `resume` goes on from them. `was_complete` says
    that an earlier run had done everything. `sums` are those of rows that were scored.
    """

    stats: RunStats
    ran_on: RanOn
    failures: Failures = Failures()
    store: Path | None = None
    kept: int = 0
    written: tuple[Path, ...] = ()
    was_stopped: bool = False
    was_complete: bool = False
    sums: ScoreSums | None = None


def stats_facts(stats: RunStats, on: RanOn, **more: Any) -> dict[str, Any]:
    """Counts, times and what they were measured on, as `--stats` and the manifest have them."""
    return asdict(stats) | {
        "tokens_per_s": stats.tokens_per_s,
        "padding_share": stats.padding_share,
        **more,
        "model": on.model,
        "dtype": on.dtype,
        "quantize": on.quantize,
        "bits": on.bits,
        "near_ties_decided_alone": on.is_exact,
        "device": on.device,
        "workers": on.num_workers,
        "engine": on.engine,
    }
