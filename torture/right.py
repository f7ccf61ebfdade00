"""All kinds of undisturbed runs; the check computes independently what must come out."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torture.answers import Outcome, Row, expected, outcome_of, wrong
from torture.commands import FAKE, left_over, run, write_jsonl
from torture.lab import Check, Trial, Tried

ROWS = 300
LONG = 300  # new tokens: no answer is cut


def plain() -> list[dict[str, Any]]:
    return [{"id": f"r{i}", "prompt": f"Row {i} " + "word " * (i * 7 % 23)} for i in range(ROWS)]


def equal_ids() -> list[dict[str, Any]]:
    return [{"id": f"r{i % 7}", "prompt": f"Row {i // 14}"} for i in range(ROWS)]


def without_ids() -> list[dict[str, Any]]:
    return [{"prompt": f"Row {i}"} for i in range(ROWS)]


def own_sampling() -> list[dict[str, Any]]:
    """Each row has its own options, some rows have samples."""
    kinds: list[Any] = [
        {"max_new_tokens": 3}, {"temperature": 0.5, "seed": 7}, {"temperature": 1.0, "num_samples": 3}, None,
        {"temperature": 2.0, "top_k": 5, "top_p": 0.5},
    ]  # fmt: skip
    return [row | {"sampling": kinds[i % len(kinds)]} for i, row in enumerate(plain())]


@dataclass(frozen=True, slots=True)
class Way:
    """A kind of run: its rows, its options (as flags, and what they mean), and what ran before it."""

    name: str
    rows: Callable[[], list[dict[str, Any]]] = plain
    flags: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    output: str = "out.jsonl"
    before: tuple[tuple[str, ...], ...] = ()  # flags of earlier runs; their output was removed
    keeps_output: bool = False  # it was not removed

    def __str__(self) -> str:
        return self.name


SAMPLED = ("--temperature", "1", "--num-samples", "3")
WAYS = [
    Way("plain"),
    Way("to a pipe", output="-"),
    Way("samples", flags=SAMPLED, options={"temperature": 1.0, "num_samples": 3}),
    Way("options of rows", own_sampling),
    Way("equal ids", equal_ids),
    Way("no ids", without_ids),
    Way("small batches", flags=("--batch-size", "7")),
    Way("a database", output="out.db"),
    Way("a table", output="out.csv"),
    Way("resumed, another batch size", equal_ids, ("--resume", "--batch-size", "5"),
        before=(("--limit", "100", "--keep-store"),)),
    Way("samples, resumed", own_sampling, ("--resume",), before=(("--limit", "150", "--keep-store"),)),
    Way("overwritten", flags=("--overwrite",), before=(("--seed", "9"),), keeps_output=True),
    Way("an interrupted run overwritten", flags=("--overwrite",), before=(("--seed", "9", "--keep-store"),)),
]  # fmt: skip


def right(trial: Trial) -> Iterator[Tried]:
    way, folder = trial.given, trial.folder
    rows = way.rows()
    write_jsonl(folder / "rows.jsonl", rows)
    command = [*FAKE, "rows.jsonl", "-q", "--max-new-tokens", str(LONG), "-o", way.output]
    if way.output == "-":
        command += ["--format", "jsonl"]
    for flags in way.before:
        begun = run([*command, *flags], cwd=folder)
        assert begun.code == 0, begun.stderr
        if not way.keeps_output:
            (folder / way.output).unlink()
    ended = run([*command, *way.flags], cwd=folder)
    yield Tried(way.name, ended.problem(0) or _wrong(way, folder, ended.stdout, rows))


def _wrong(way: Way, folder: Path, stdout: bytes, rows: Sequence[Row]) -> str | None:
    wanted = list(expected(rows, **{"max_new_tokens": LONG, **way.options}))
    if problem := wrong(read_outcomes(folder / way.output, stdout), wanted):
        return problem
    return left_over(folder, "rows.jsonl", *([way.output] if way.output != "-" else []))


def read_outcomes(output: Path, stdout: bytes) -> list[Outcome]:
    """Return what came out, whatever its format."""
    if output.suffix == ".db":
        connection = sqlite3.connect(output)
        columns = "row_index, sample_index, id, prompt, text, finish_reason, error"
        found = connection.execute(f"SELECT {columns} FROM results ORDER BY row_index, sample_index").fetchall()
        connection.close()
        return [tuple(row) for row in found]
    if output.suffix == ".csv":
        with output.open(newline="") as stream:
            return [_from_cells(row) for row in csv.DictReader(stream)]
    content = output.read_bytes() if output.name != "-" else stdout
    return [outcome_of(json.loads(line)) for line in content.splitlines()]


def _from_cells(row: dict[str, str]) -> Outcome:
    numbers = {"index": int(row["index"]), "sample_index": int(row["sample_index"])}
    return outcome_of({**row, **numbers, "error": row["error"] or None})


CHECKS = [
    Check(
        "right",
        "what comes out is what the check itself reckons, row for row",
        lambda lab: lab.pick(WAYS, len(WAYS)),
        right,
    ),
]
