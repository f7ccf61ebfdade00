"""The measurements behind docs/scale.md: one process against two workers, and the rates of one process's shared work.

    python benchmarks/scale.py [--rounds 3]

GPT-2's shape with random weights, float32, 64 prompts of 3 to 200 tokens, 16 new tokens; the bundled model with 400
short prompts. The rates of the main process are measured alone, with no engine beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from idle import IdleEngine
from workloads import make_model, make_rows

from batchgen.engines import Agree, finish_all
from batchgen.engines.pool.engine import PoolEngine
from batchgen.formats.reading import find_sources, read_requests
from batchgen.model import open_checkpoint
from batchgen.model.padding import encode
from batchgen.pipeline import to_result
from batchgen.records import Request, Result, SamplingParams, Sequence
from batchgen.runs.store import Store

ROWS = 10_000  # of the main process's own work


@dataclass(frozen=True)
class IdleRecipe:
    """Makes an idle engine in a worker's process."""

    def make(self, say: Callable[[str], None], agree: Agree) -> IdleEngine:
        return IdleEngine(wants_rows=16)


def run(prompts: Path, folder: Path, model: str, new_tokens: int, *options: str) -> float:
    """Return the command's new tokens per second, from its first prefill to its last token, by its own `--stats`."""
    stats = folder / "stats.json"
    command = [sys.executable, "-m", "batchgen", "run", str(prompts), "--model", model, "--quiet", "--overwrite"]
    command += ["--max-new-tokens", str(new_tokens), "-o", str(folder / "out.jsonl"), "--stats", str(stats), *options]
    started = time.perf_counter()
    subprocess.run(command, check=True)
    whole_s = time.perf_counter() - started
    facts = json.loads(stats.read_text())
    print(f"  {' '.join(options) or 'one process'}: {facts['tokens_per_s']:.0f} tokens/s, {whole_s:.1f} s in all")
    return facts["tokens_per_s"]


def compare(name: str, prompts: Path, folder: Path, model: str, new_tokens: int, rounds: int) -> None:
    """Compare one process (all cores) and two workers (half of them each), alternating."""
    print(name)
    rates: dict[tuple[str, ...], list[float]] = {(): [], ("--workers", "2"): []}
    for _ in range(rounds):
        for options, so_far in rates.items():
            so_far.append(run(prompts, folder, model, new_tokens, *options))
    one, two = (statistics.median(so_far) for so_far in rates.values())
    print(f"  two workers over one process: {two / one:.2f}")


def write_prompts(file: Path, prompts: Iterable[str]) -> None:
    file.write_text("".join(json.dumps({"id": i, "prompt": prompt}) + "\n" for i, prompt in enumerate(prompts)))


def rate(name: str, num_rows: int, work: Callable[[], object]) -> None:
    started = time.perf_counter()
    work()
    print(f"{name}: {num_rows / (time.perf_counter() - started):,.0f} rows/s")


def measure_main_process(folder: Path) -> None:
    """Measure what one process does for all workers, each part alone. Rows have 20 prompt and 64 new tokens."""
    checkpoint = open_checkpoint("bundled")
    file = folder / "rows.jsonl"
    write_prompts(file, [f"Once upon a time {'there was a ' * 5}{i}" for i in range(ROWS)])
    params = SamplingParams(max_new_tokens=64)
    requests: list[Request] = []
    rate("read", ROWS, lambda: requests.extend(read_requests(find_sources([str(file)]), params)))
    rows: list[Sequence] = []
    rate("tokenize", ROWS, lambda: rows.extend(encode(requests, checkpoint.tokenizer)))
    pool = PoolEngine([IdleRecipe()] * 2, 64)
    done = list(finish_all(pool, rows[:64]))  # a worker has started
    rate("hand out and take in", ROWS - 64, lambda: done.extend(finish_all(pool, rows[64:])))
    pool.close()
    results: list[Result] = []
    rate("decode", ROWS, lambda: results.extend(to_result(row, checkpoint) for row in done))

    def keep() -> None:
        store = Store(folder / "rate.db")
        for result in zip(store.unfinished(requests), results, strict=True):
            store.add(result[1])
        store.close()

    rate("store", ROWS, keep)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure_main_process(folder)
        make_model(folder / "gpt2")
        short, ragged = folder / "short.jsonl", folder / "ragged.jsonl"
        write_prompts(short, (f"Once upon a time, number {i}" for i in range(400)))
        write_prompts(ragged, (row.prompt for row in make_rows(64, [16])))
        compare("bundled model, 400 rows, 30 new tokens", short, folder, "bundled", 30, rounds)
        compare("GPT-2 124M, 64 rows, 16 new tokens", ragged, folder, str(folder / "gpt2"), 16, rounds)


if __name__ == "__main__":
    main()
