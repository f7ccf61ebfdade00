"""Predicted against measured peak memory of whole runs: any models, both engines, short rows and long ones.

    python benchmarks/memory_families.py FOLDER... [--write] [--only short,long] [--engines ...] [--dtypes ...]

Each line is a run of the command in its own process: what it expected its rows to take besides the weights, and how
much the process grew while they ran. A line holds if measured / predicted is from 0.6 to 1.25, or, below 64 MiB
measured, if at most 128 MiB were predicted. The exit code is 1 if a line does not hold. `--write` puts the table into
docs/memory.md.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

MIB = 2**20
LEAST_RATIO, MOST_RATIO = 0.6, 1.25
SMALL_MIB, MOST_PREDICTED_MIB = 64, 128
PAGE = Path(__file__).parent.parent / "docs" / "memory.md"
BEGIN, END = "<!-- families -->\n", "<!-- end of families -->\n"
TEXT = "the rain in Spain falls mainly on plain and my dog is very happy to see green train again under old trees"
WORDS = TEXT.split()
WORKLOADS = {"short": (64, 4, 60), "long": (6, 500, 700)}  # rows, words of the shortest and the longest prompt
NEW_TOKENS = 16


@dataclass(frozen=True)
class Line:
    """What one run expected and took, in MiB."""

    model: str
    dtype: str
    engine: str
    rows: str
    predicted: float
    measured: float

    @property
    def holds(self) -> bool:
        if self.measured < SMALL_MIB:
            return self.predicted <= MOST_PREDICTED_MIB
        return LEAST_RATIO <= self.measured / self.predicted <= MOST_RATIO

    def __str__(self) -> str:
        return (
            f"| {self.model} | {self.dtype} | {self.engine} | {self.rows} | {self.predicted:,.0f} | "
            f"{self.measured:,.0f} | {self.measured / self.predicted:.2f} | {'yes' if self.holds else 'NO'} |"
        )


HEADER = (
    "| model | dtype | engine | rows | predicted MiB | measured MiB | measured/predicted | holds |\n"
    "|---|---|---|---|--:|--:|--:|---|"
)


def write_prompts(path: Path, rows: int, least: int, most: int) -> None:
    draw = random.Random(0)
    lengths = [most, *(draw.randint(least, most) for _ in range(rows - 1))]
    path.write_text("".join(" ".join(draw.choices(WORDS, k=length)) + "\n" for length in lengths), encoding="utf-8")


def measure(folder: Path, dtype: str, engine: str, rows: str) -> Line:
    with tempfile.TemporaryDirectory() as name:
        prompts, stats = Path(name, "prompts.txt"), Path(name, "stats.json")
        write_prompts(prompts, *WORKLOADS[rows])
        command = [sys.executable, "-m", "batchgen", "run", str(prompts), "--model", str(folder), "--dtype", dtype]
        command += ["--engine", engine, "--max-new-tokens", str(NEW_TOKENS), "--ignore-eos", "--device", "cpu"]
        done = subprocess.run([*command, "--no-chat", "--stats", str(stats)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{folder.name} {dtype} {engine} {rows}: {done.stderr.strip()}")
        found = json.loads(stats.read_text(encoding="utf-8"))
    predicted, measured = found["predicted_batch_bytes"], found["measured_batch_bytes"]
    return Line(folder.name, dtype, found["engine"], rows, predicted / MIB, measured / MIB)


def lines(options: argparse.Namespace) -> Iterator[Line]:
    for folder, dtype, engine, rows in product(options.folders, options.dtypes, options.engines, options.only):
        yield measure(folder, dtype, engine, rows)


def main() -> None:
    def words(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--only", type=words, default=list(WORKLOADS))
    parser.add_argument("--engines", type=words, default=["auto", "reference"])
    parser.add_argument("--dtypes", type=words, default=["float32", "bfloat16"])
    parser.add_argument("--write", action="store_true", help="put the table into docs/memory.md")
    options = parser.parse_args()
    print(HEADER)
    found = []
    for line in lines(options):
        found.append(line)
        print(line, flush=True)
    if options.write:
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        table = "\n".join([HEADER, *map(str, found)])
        PAGE.write_text(before + BEGIN + table + "\n" + END + rest.split(END)[1], encoding="utf-8")
    sys.exit(not all(line.holds for line in found))


if __name__ == "__main__":
    main()
