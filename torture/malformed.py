"""Generated inputs, from good to hopeless: every row comes out; good rows are answered, bad rows say what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import cycle

from torture.commands import FAKE, run
from torture.generated import FORMATS, Drawn
from torture.lab import Check, Trial, Tried


def malformed(trial: Trial) -> Iterator[Tried]:
    name = trial.given
    drawn = FORMATS[name](trial.draw)
    source, output = trial.folder / name, trial.folder / "out.jsonl"
    source.write_bytes(drawn.content)
    into_file = trial.draw.random() < 0.5
    options = ["--format", "jsonl", *(["-o", output] if into_file else [])]  # otherwise a Batch gets a Batch
    ended = run([*FAKE, source, "-q", "--max-new-tokens", "300000", *options])
    what = f"{name}, {'into a file' if into_file else 'to a pipe'}"
    if drawn.says or (drawn.is_damaged and ended.code == 1):
        yield Tried(what, ended.refusal_problem(drawn.says or name, name))
        return
    written = output.read_bytes() if into_file and output.exists() else ended.stdout
    yield Tried(what, ended.problem(0, 3) or _wrong(written, drawn, ended.code))


def _wrong(written: bytes, drawn: Drawn, code: int) -> str | None:
    """Return what is wrong with the rows that came out."""
    rows = [json.loads(line) for line in written.split(b"\n")[:-1]]
    num_rows = len(rows) if drawn.num_rows is None else drawn.num_rows
    if [row["index"] for row in rows if row["sample_index"] == 0] != list(range(num_rows)):
        return f"{num_rows} rows went in, and out came {[row['index'] for row in rows]}"
    for row in rows:
        if (row["error"] is None) == (row["finish_reason"] == "error"):
            return f"row {row['index']} is neither answered nor failed: {row}"
        prompt = drawn.prompts.get(row["index"])
        if prompt is not None and (row["error"], row["prompt"]) != (None, prompt):
            return f"row {row['index']} is not answered: {str(row)[:500]}, its prompt was {prompt!r}"
        if row["error"] is None and not row["text"].startswith(row["prompt"]):
            return f"row {row['index']} has another's answer: {str(row)[:500]}"
    num_errors = sum(row["error"] is not None for row in rows)
    return None if code == (3 if num_errors else 0) else f"{num_errors} rows failed, and the code is {code}"


CHECKS = [
    Check(
        "malformed",
        "generated inputs, good, odd and hopeless: ok + error = rows, no crash",
        lambda lab: [name for _, name in zip(range(lab.some(200)), cycle(FORMATS), strict=False)],
        malformed,
    )
]
