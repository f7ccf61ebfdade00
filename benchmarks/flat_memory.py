"""Resident memory of each engine's `plan`, and of a run with an engine that does nothing, over millions of prompts.

    python benchmarks/flat_memory.py [--rows 5000000]

Prints how much the process grew between a fifth of the rows and all of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import psutil
from idle import IdleEngine

from batchgen.engines.choice import KINDS
from batchgen.model import open_checkpoint
from batchgen.model.shape import Footprint, ModelShape
from batchgen.pipeline import Pipeline
from batchgen.planning.forecast import forecast
from batchgen.records import Request, SamplingParams


def requests(num_rows: int, resident: list[int]) -> Iterator[Request]:
    """Yield prompts that all differ; record the process's size after a fifth of them, and after the last."""
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
            done = sum(1 for _ in Pipeline(checkpoint, IdleEngine(wants_rows=64)).run(requests(num_rows, resident)))
        assert done == num_rows
        grown = (resident[1] - resident[0]) / 2**20
        print(
            f"{name}: {num_rows:,} rows in {time.perf_counter() - started:.0f} s, grew by {grown:.1f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
