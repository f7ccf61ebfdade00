"""Resident memory of each engine's `plan`, and of a run with an engine that does nothing, over millions of prompts.

    python benchmarks/flat_memory.py [--rows 5000000]

Prints how far the process grew between a fifth of the rows and all of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator

import psutil

from batchgen.engines.choice import KINDS
from batchgen.model import open_checkpoint
from batchgen.model.shape import Footprint, ModelShape
from batchgen.pipeline import Pipeline
from batchgen.planning.forecast import forecast
from batchgen.records import EngineStats, Request, SamplingParams, Sequence


class IdleEngine:
    """Finishes each row with one token, all that it has in one step."""

    wants_rows = 64

    def __init__(self) -> None:
        self._rows: list[Sequence] = []
        self._new_tokens = 0

    @property
    def is_idle(self) -> bool:
        return not self._rows

    @property
    def stats(self) -> EngineStats:
        return EngineStats("idle", new_tokens=self._new_tokens)

    def add(self, sequences: Iterable[Sequence]) -> None:
        self._rows += sequences

    def step(self) -> list[Sequence]:
        rows, self._rows = self._rows, []
        for row in rows:
            row.output_ids, row.finish_reason = [11], "length"
        self._new_tokens += len(rows)
        return rows

    def close(self) -> None:
        self._rows = []


def requests(num_rows: int, resident: list[int]) -> Iterator[Request]:
    """Prompts that all differ; notes the process's size after a fifth of them, and after the last."""
    params = SamplingParams(max_new_tokens=1)
    for index in range(num_rows):
        if index == num_rows // 5:
            resident.append(psutil.Process().memory_info().rss)
        yield Request(index, str(index), f"prompt number {index} of a long list", params)
    resident.append(psutil.Process().memory_info().rss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    num_rows = parser.parse_args().rows
    checkpoint = open_checkpoint("bundled", weights=False)
    footprint = Footprint.of_shape(ModelShape.from_config(checkpoint.config), element_bytes=4)
    for name in ("plan continuous", "plan reference", "run"):
        resident: list[int] = []
        started = time.perf_counter()
        if name != "run":
            kind = KINDS[name.removeprefix("plan ")]
            limits = kind.limits(footprint, "cpu", 1 << 32)
            done = forecast(checkpoint, requests(num_rows, resident), limits, kind).rows
        else:
            done = sum(1 for _ in Pipeline(checkpoint, IdleEngine()).run(requests(num_rows, resident)))
        assert done == num_rows
        grown = (resident[1] - resident[0]) / 2**20
        print(
            f"{name}: {num_rows:,} rows in {time.perf_counter() - started:.0f} s, grew by {grown:.1f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
