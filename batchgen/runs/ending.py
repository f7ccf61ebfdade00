"""How a run ended, for whoever reports it to the user."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from batchgen.records import BATCH_INVARIANT, RowId, RunStats, precision_of
from batchgen.runs.sums import ScoreSums


@dataclass(frozen=True, slots=True)
class Failures:
    """How many rows failed, out of how many, and the first failed row."""

    number: int = 0
    of: int = 0
    first_id: RowId | None = None
    first_error: str = ""


@dataclass(frozen=True, slots=True)
class RanOn:
    """What a run's rows ran on. `num_threads` is per worker, and None on an accelerator.

    `bits` says whether the bits of a row's results depend on its batch. If `is_exact`, at least its tokens do not.
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
    bits: str | None = None  # None: nothing was run

    @property
    def precision(self) -> str:
        """The dtype, preceded by what the linear layers are quantised to, if any."""
        return precision_of(self.dtype, self.quantize)

    @property
    def is_independent(self) -> bool:
        """Whether a row gets the same tokens in any batch."""
        return self.is_exact or self.bits in (None, BATCH_INVARIANT)


@dataclass(frozen=True, slots=True)
class Ending:
    """What a run did, what it ran on, and which files were `written`.

    A stopped run has `kept` results in `store`; a run with `resume` continues from them. `was_complete` means that an
    earlier run had already done everything. `sums` are those of scored rows.
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
    """Return counts, times and what they were measured on, as written by `--stats` and in the manifest."""
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
