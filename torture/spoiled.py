"""The bundled model with broken numbers, appended tokens, workers, or another engine: unaffected rows stay the same.

Rows with nothing wrong must get what they get alone from the unspoiled model.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torture.commands import REAL, Ended, run, write_jsonl
from torture.hostile import BUNDLED, WEIGHTS
from torture.lab import Check, Trial, Tried

NEW = 6
PROGRAM = REAL[:-2]  # without its model
SHORT = ["My dog is", "I like", "The cat", "She said"]
LONG = "word" + " word" * 895  # 896 tokens: its third new token reaches the broken position
BROKEN_POSITION = 898  # beyond the positions that an engine is tried on
EOS = "<|endoftext|>"


def generate(folder: Path, prompts: list[str], *options: str, model: str = "bundled") -> tuple[Ended, list[Any]]:
    rows = write_jsonl(folder / "rows.jsonl", [{"id": i, "prompt": prompt} for i, prompt in enumerate(prompts)])
    ended = run([*PROGRAM, "--model", model, rows, "-q", "--max-new-tokens", str(NEW), "--format", "jsonl", "--ids",
                 *options], cwd=folder)  # fmt: skip
    return ended, [json.loads(line) for line in ended.stdout.splitlines()]


def tokens(rows: list[Any]) -> list[Any]:
    return [row["output_ids"] for row in rows]


def clean(folder: Path) -> list[Any]:
    """Return the tokens of the short rows, each run alone."""
    found = []
    for prompt in SHORT:
        ended, rows = generate(folder, [prompt])
        assert ended.code == 0, ended.stderr
        found += tokens(rows)
    return found


def copy_model(folder: Path) -> Path:
    model = folder / "model"
    shutil.copytree(BUNDLED, model)
    return model


def break_position(model: Path, position: int) -> None:
    """Write NaN into the embedding of a position: rows break when they get there."""
    content = bytearray((model / WEIGHTS).read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    entry = json.loads(content[8 : 8 + length])["transformer.wpe.weight"]
    size = {"F16": 2, "F32": 4}[entry["dtype"]] * entry["shape"][1]
    begin = 8 + length + entry["data_offsets"][0] + position * size
    content[begin : begin + size] = b"\xff" * size
    (model / WEIGHTS).unlink()
    (model / WEIGHTS).write_bytes(content)


def broken_rows(trial: Trial) -> Iterator[Tried]:
    engine = trial.given
    wanted = trial.lab.once(clean)
    break_position(copy_model(trial.folder), BROKEN_POSITION)
    ended, rows = generate(trial.folder, [*SHORT[:2], LONG, *SHORT[2:]], "--engine", engine, model="model")
    problem = ended.problem(3)
    if not problem and [row["finish_reason"] == "error" for row in rows] != [False, False, True, False, False]:
        problem = f"the rows ended with {[row['finish_reason'] for row in rows]}"
    if not problem and (found := tokens(rows[:2] + rows[3:])) != wanted:
        problem = f"other rows have {found}, and alone {wanted}"
    yield Tried(engine, problem)


def stopped(trial: Trial) -> Iterator[Tried]:
    """A stop cuts the text where the stop is in the text without it, and no more tokens are generated."""
    _, [plain] = generate(trial.folder, SHORT[:1], "--engine", trial.given)
    words = plain["text"].split(" ")
    stop = f" {words[2]}"
    ended, rows = generate(trial.folder, SHORT[:1], "--engine", trial.given, "--stop", stop)
    problem = ended.problem(0)
    if not problem:
        row = rows[0]
        right = plain["text"][: plain["text"].index(stop)]
        if (row["text"], row["finish_reason"]) != (right, "stop") or row["num_output_tokens"] >= NEW:
            problem = f"it is {row['text']!r}, {row['finish_reason']}, {row['num_output_tokens']} tokens, not {right!r}"
    yield Tried(f"{trial.given}, stop {stop!r}", problem)


def appended(trial: Trial) -> Iterator[Tried]:
    """A tokenizer whose post-processor ends each text: the prompts are continued as without it."""
    wanted = trial.lab.once(clean)
    model = copy_model(trial.folder)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    single = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": EOS, "type_id": 0}}]
    special = {EOS: {"id": EOS, "ids": [50256], "tokens": [EOS]}}
    tokenizer["post_processor"] = {**tokenizer["post_processor"], "single": single, "special_tokens": special}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    ended, rows = generate(trial.folder, SHORT, model="model")
    problem = ended.problem(0) or (None if tokens(rows) == wanted else f"{tokens(rows)}, and without it {wanted}")
    yield Tried("eos behind each text", problem)


def shared(trial: Trial) -> Iterator[Tried]:
    """Two workers, samples and options of rows: every row comes out once, as from one process."""
    rows = [{"id": i % 5, "prompt": SHORT[i % 4], "sampling": {"max_new_tokens": 2 + i % 4}} for i in range(24)]
    file = write_jsonl(trial.folder / "rows.jsonl", rows)
    options = ["--temperature", "1", "--num-samples", "2", "-q", "--ids", "--format", "jsonl"]
    one, two = (run([*REAL, file, *options, "--workers", number], cwd=trial.folder) for number in ("1", "2"))
    found = [_row(line) for line in two.stdout.splitlines()]
    problem = one.problem(0) or two.problem(0)
    if not problem and [row[:2] for row in found] != [[i, sample] for i in range(len(rows)) for sample in (0, 1)]:
        problem = f"the rows are {[row[:2] for row in found]}"
    if not problem and found != [_row(line) for line in one.stdout.splitlines()]:
        problem = "two workers have other tokens than one process"
    yield Tried("--workers 2", problem)


def _row(line: bytes) -> list[Any]:
    record = json.loads(line)
    return [record[name] for name in ("index", "sample_index", "id", "output_ids", "finish_reason")]


def other_engine(trial: Trial) -> Iterator[Tried]:
    """A run that is resumed with another engine and another batch size: rows get what they get alone."""
    wanted = trial.lab.once(clean)
    file = write_jsonl(trial.folder / "rows.jsonl", [{"prompt": prompt} for prompt in SHORT])
    command = [*REAL, file, "-q", "--max-new-tokens", str(NEW), "--ids", "-o", "out.jsonl"]
    begun = run([*command, "--limit", "2", "--keep-store", "--engine", "continuous"], cwd=trial.folder)
    assert begun.code == 0, begun.stderr
    (trial.folder / "out.jsonl").unlink()
    ended = run([*command, "--resume", "--engine", "reference", "--batch-size", "1"], cwd=trial.folder)
    problem = ended.problem(0)
    if not problem:
        found = tokens([json.loads(line) for line in (trial.folder / "out.jsonl").read_bytes().splitlines()])
        problem = None if found == wanted else f"{found}, and alone {wanted}"
    yield Tried("continuous, then reference", problem)


ENGINES = ["continuous", "reference"]
CHECKS = [
    Check("model-nan", "a row that meets NaN while decoding fails alone", lambda lab: ENGINES, broken_rows),
    Check("model-stop", "a stop ends its row where it stands", lambda lab: ENGINES, stopped),
    Check("model-appended", "what a tokenizer appends is not shown", lambda lab: [None], appended),
    Check("model-workers", "workers: every row once, as one process has it", lambda lab: [None], shared),
    Check("model-engine", "another engine and batch size on resume: the same tokens", lambda lab: [None], other_engine),
]
