"""Predicted against measured peak memory of a batch of the engine `reference`, on a sweep of models, rows and lengths.

    python benchmarks/memory_sweep.py            # prints the table
    python benchmarks/memory_sweep.py --write    # and puts it into docs/memory.md

Each point runs in its own process, with random weights: one batch, once for the growth of the resident set, and once
under torch's profiler for the bytes of live tensors. Takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from batchgen.machine.process import settle

MIB = 2**20
# Below this prediction the difference counts, not the ratio: Python's own allocations are no longer negligible.
SMALL_MIB, MOST_DIFFERENCE_MIB, MOST_RATIO = 64, 32, 1.25
PAGE = Path(__file__).parent.parent / "docs" / "memory.md"
BEGIN, END = "<!-- sweep -->\n", "<!-- end of sweep -->\n"
TOP_P = {"temperature": 1.0, "top_p": 0.9}


@dataclass(frozen=True)
class Point:
    """One batch of one model."""

    model: str
    dtype: str
    rows: int
    columns: int
    new_tokens: int
    top_p: bool


def points() -> list[Point]:
    """Yield every model in both dtypes, rows 1 to 128, prompts of 8 to 900 tokens, greedy and top-p."""
    rows = [
        ("gpt2", "float32", (1, 900, 0), (8, 64, 1), (8, 512, 0), (16, 900, 0), (32, 200, 1), (64, 64, 0), (128, 8, 0)),
        ("gpt2", "bfloat16", (1, 900, 1), (8, 300, 0), (32, 64, 1), (64, 200, 0), (128, 8, 1)),
        ("wide", "float32", (1, 500, 0), (8, 900, 0), (32, 64, 1), (128, 8, 0)),
        ("wide", "bfloat16", (8, 300, 1), (64, 64, 0), (128, 100, 0)),
        ("llama", "float32", (1, 900, 0), (8, 300, 1), (32, 200, 0), (128, 8, 1), (128, 64, 0)),
        ("llama", "bfloat16", (8, 900, 0), (32, 64, 1), (128, 32, 0), (64, 200, 1)),
    ]
    return [
        Point(model, dtype, num_rows, columns, 16, bool(top_p))
        for model, dtype, *cases in rows
        for num_rows, columns, top_p in cases
    ]


def config_of(name: str):
    from transformers import GPT2Config, LlamaConfig

    if name == "gpt2":
        return GPT2Config()
    if name == "wide":
        return GPT2Config(n_layer=2, n_embd=2048, n_head=16)
    return LlamaConfig(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49152,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )


def measure(point: Point) -> dict[str, float]:
    """Return the bytes above the weights for one batch: predicted, live tensors, growth of the resident set."""
    import torch
    from transformers import AutoModelForCausalLM

    from batchgen.engines import finish_all
    from batchgen.engines.reference.engine import ReferenceEngine
    from batchgen.engines.reference.memory import LIBRARIES_BYTES, BatchMemory
    from batchgen.engines.sampling.sampler import Sampler
    from batchgen.machine.meter import PeakMeter
    from batchgen.model import Checkpoint, Model, open_checkpoint
    from batchgen.model.probe import probe_footprint
    from batchgen.planning.memory import BatchLimits, batch_estimate
    from batchgen.records import Request, SamplingParams, Sequence

    torch.manual_seed(0)
    random.seed(0)
    config, dtype = config_of(point.model), getattr(torch, point.dtype)
    network = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    bundled = open_checkpoint("bundled", weights=False)
    checkpoint = Checkpoint(point.model, bundled.folder, config, bundled.tokenizer, frozenset([0]))
    model = Model(checkpoint, network, torch.device("cpu"), dtype)
    footprint = probe_footprint(config, dtype)
    sampling = SamplingParams(max_new_tokens=point.new_tokens, **(TOP_P if point.top_p else {}))

    def rows(num_rows: int, columns: int) -> list[Sequence]:
        lengths = [columns, *(random.randint(max(1, columns // 2), columns) for _ in range(num_rows - 1))]
        ids = [[random.randrange(10, 40000) for _ in range(length)] for length in lengths]
        return [Sequence(Request(i, str(i), "", sampling), 0, input_ids) for i, input_ids in enumerate(ids)]

    def limits_of(batch: list[Sequence]) -> BatchLimits:
        return BatchLimits(BatchMemory(footprint), 1 << 50, 1 << 20, num_rows=len(batch))

    def run(batch: list[Sequence]) -> None:
        # Random weights are so flat that every top-p draw would be decided again, which takes very long.
        sampler = Sampler(checkpoint.eos_token_ids, recompute=None if point.top_p else model.logits_alone)
        for _ in finish_all(ReferenceEngine(model, limits_of(batch), sampler), batch):
            pass

    # One-time allocations of libraries, such as scratch memory of their matrix kernels for this size.
    run(rows(1, point.columns))
    run(rows(point.rows, 8))
    batch = rows(point.rows, point.columns)
    gc.collect()
    meter = PeakMeter(model.device)
    meter.start()
    run(batch)
    growth = meter.growth_bytes()
    live = live_bytes(lambda: run(rows(point.rows, point.columns)))
    estimate = batch_estimate(limits_of(batch), batch)
    predicted = estimate.total - LIBRARIES_BYTES  # libraries have already allocated theirs in the warm-up
    return {"predicted": predicted, "live": live, "resident": growth or 0}


def live_bytes(work) -> int:
    """Return the peak bytes of live tensors, from the allocator's own events."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def in_own_process(point: Point) -> dict[str, float]:
    command = [sys.executable, __file__, "--point", json.dumps(asdict(point))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def holds(predicted: float, measured: float) -> bool:
    if predicted < SMALL_MIB * MIB:
        return abs(predicted - measured) <= MOST_DIFFERENCE_MIB * MIB
    return 1 <= predicted / measured <= MOST_RATIO


def line(point: Point, found: dict[str, float]) -> str:
    predicted, live, resident = (found[name] / MIB for name in ("predicted", "live", "resident"))
    verdict = all(holds(found["predicted"], found[name]) for name in ("live", "resident"))
    choosing = "top-p" if point.top_p else "greedy"
    return (
        f"| {point.model} | {point.dtype} | {point.rows} | {point.columns} | {choosing} | {predicted:,.0f} | "
        f"{live:,.0f} | {resident:,.0f} | {predicted / live:.2f} | {predicted / resident:.2f} | "
        f"{'yes' if verdict else 'NO'} |"
    )


HEADER = (
    "| model | dtype | rows | columns | choice | predicted MiB | live MiB | resident MiB | "
    "predicted/live | predicted/resident | holds |\n"
    "|---|---|--:|--:|---|--:|--:|--:|--:|--:|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/memory.md")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    options = parser.parse_args()
    settle()
    if options.point:
        print(json.dumps(measure(Point(**json.loads(options.point)))))
        return
    lines = [HEADER]
    print(HEADER)
    for point in points():
        lines.append(line(point, in_own_process(point)))
        print(lines[-1], flush=True)
    if options.write:
        text = PAGE.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        after = rest.split(END)[1]
        PAGE.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
