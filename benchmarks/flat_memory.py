"""Resident memory of `plan` and of a run with an engine that does nothing, over millions of one-line prompts.

    python benchmarks/flat_memory.py [--rows 5000000]

Prints how far the process grew between a fifth of the rows and all of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator

import psutil

from batchgen.model import open_checkpoint
from batchgen.pipeline import Pipeline
from batchgen.planning.backoff import Backoff
from batchgen.planning.forecast import forecast
from batchgen.planning.memory import BatchLimits, Footprint, ModelShape
from batchgen.records import Request, SamplingParams, Sequence


class IdleEngine:
    """Finishes each row with one token, at once."""

    name = "idle"
    is_busy = False
    num_batches = decode_work = 0
    prefill_s = decode_s = 0.0

    def __init__(self, limits: BatchLimits) -> None:
        self.backoff = Backoff(limits)

    def generate(self, windows: Iterable[list[Sequence]]) -> Iterator[Sequence]:
        for window in windows:
            for sequence in window:
                sequence.output_ids, sequence.finish_reason = [11], "length"
                yield sequence


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
    limits = BatchLimits(Footprint.of_shape(ModelShape.from_config(checkpoint.config), 4), 1 << 32, most_rows=64)
    for name in ("plan", "run"):
        resident: list[int] = []
        started = time.perf_counter()
        if name == "plan":
            done = forecast(checkpoint, requests(num_rows, resident), limits).rows
        else:
            done = sum(1 for _ in Pipeline(checkpoint, IdleEngine(limits)).run(requests(num_rows, resident)))
        assert done == num_rows
        grown = (resident[1] - resident[0]) / 2**20
        print(
            f"{name}: {num_rows:,} rows in {time.perf_counter() - started:.0f} s, grew by {grown:.1f} MiB", flush=True
        )


if __name__ == "__main__":
    main()
