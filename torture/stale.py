"""An interrupted run after which something has changed: refused, naming what changed.

Once undone, the run continues.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torture.commands import FAKE, difference, left_over, run, write_jsonl
from torture.lab import Check, Trial, Tried

BEGUN = 4  # rows of the interrupted run
MODEL = {
    "model.safetensors": b"weights",
    "config.json": b"{}",
    "generation_config.json": b"{}",
    "tokenizer.json": b"[1]",
    "tokenizer_config.json": b"{}",
}
ROWS = [{"id": f"r{i}", "prompt": f"Row {i}", "other": f"Other {i}", "topic": "a"} for i in range(6)]

Change = Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class Mutation:
    """What has changed: added options, or something in the folder; and what the refusal must name."""

    name: str
    says: str
    options: tuple[str, ...] = ()
    change: Change = lambda folder: None

    def __str__(self) -> str:
        return self.name


def edit_row(number: int, **changed: object) -> Change:
    def change(folder: Path) -> None:
        rows = [row | changed if i == number else row for i, row in enumerate(ROWS)]
        write_jsonl(folder / "rows.jsonl", rows)

    return change


def order_rows(*numbers: int) -> Change:
    return lambda folder: write_jsonl(folder / "rows.jsonl", [ROWS[i] for i in numbers])


def edit_model(name: str) -> Change:
    return lambda folder: (folder / "model" / name).write_bytes(MODEL[name] + b" ")


def other_model(folder: Path) -> None:
    shutil.copytree(folder / "model", folder / "model2")
    (folder / "model2" / "model.safetensors").write_bytes(b"other weights")


MUTATIONS = [
    Mutation("the first prompt", "rows.jsonl:1 has changed", change=edit_row(0, prompt="Other")),
    Mutation("a prompt's end", "rows.jsonl:3 has changed", change=edit_row(2, prompt="Row 2 ")),
    Mutation("an id", "rows.jsonl:2 has changed", change=edit_row(1, id="r-1")),
    Mutation("a column", "rows.jsonl:4 has changed", change=edit_row(3, topic="b")),
    Mutation("a row's own options", "rows.jsonl:3 has changed", change=edit_row(2, sampling={"max_new_tokens": 3})),
    Mutation("a row less", "rows.jsonl:2 has changed", change=order_rows(0, 2, 3, 4, 5)),
    Mutation("two rows swapped", "rows.jsonl:1 has changed", change=order_rows(1, 0, 2, 3, 4, 5)),
    Mutation("a row twice", "rows.jsonl:2 has changed", change=order_rows(0, 0, 1, 2, 3, 4, 5)),
    Mutation("the input cut short", "the input ends after 2 rows", change=order_rows(0, 1)),
    Mutation("--field", '--field "prompt", but now it is "other"', ("--field", "other")),
    Mutation("--seed", "--seed 0, but now it is 7", ("--seed", "7")),
    Mutation("--temperature", "--temperature 1.0, but now it is 0.5", ("--temperature", "0.5")),
    Mutation("--max-new-tokens", "--max-new-tokens 50, but now it is 51", ("--max-new-tokens", "51")),
    Mutation("--min-new-tokens", "--min-new-tokens 0, but now it is 1", ("--min-new-tokens", "1")),
    Mutation("--top-k", "--top-k 0, but now it is 5", ("--top-k", "5")),
    Mutation("--top-p", "--top-p 1.0, but now it is 0.9", ("--top-p", "0.9")),
    Mutation("--min-p", "--min-p 0.0, but now it is 0.1", ("--min-p", "0.1")),
    Mutation("--stop", 'without --stop, but now it is "x"', ("--stop", "x")),
    Mutation("--repetition-penalty", "--repetition-penalty 1.0, but now it is 1.5", ("--repetition-penalty", "1.5")),
    Mutation("--no-repeat-ngram-size", "--no-repeat-ngram-size 0, but now it is 2", ("--no-repeat-ngram-size", "2")),
    Mutation("--num-samples", "--num-samples 1, but now it is 2", ("--num-samples", "2")),
    Mutation("--dtype", '--dtype "float32", but now it is "bfloat16"', ("--dtype", "bfloat16")),
    Mutation("--no-exact", "with --exact, but now without it", ("--no-exact",)),
    Mutation("--parse-special", "without --parse-special, but now with it", ("--parse-special",)),
    Mutation("--too-long", '--too-long "error", but now it is "truncate"', ("--too-long", "truncate")),
    Mutation("the weights", "weights_sha256", change=edit_model("model.safetensors")),
    Mutation("the config", "config_sha256", change=edit_model("config.json")),
    Mutation("the eos tokens", "config_sha256", change=edit_model("generation_config.json")),
    Mutation("the tokenizer", "tokenizer_sha256", change=edit_model("tokenizer.json")),
    Mutation("the tokenizer's settings", "tokenizer_sha256", change=edit_model("tokenizer_config.json")),
    Mutation("another model", 'model "model", but now it is "model2"', ("--model", "model2"), other_model),
]


def begin(folder: Path) -> None:
    """Write prompts and a model."""
    write_jsonl(folder / "rows.jsonl", ROWS)
    (folder / "model").mkdir(exist_ok=True)
    for name, content in MODEL.items():
        (folder / "model" / name).write_bytes(content)


def command(*options: str) -> list[str]:
    begun_with = ["rows.jsonl", "-o", "out.jsonl", "--model", "model", "--temperature", "1", "--field", "prompt"]
    return [*FAKE, *begun_with, *options]


def whole(folder: Path) -> bytes:
    begin(folder)
    ended = run(command(), cwd=folder)
    assert ended.code == 0, ended.stderr
    return (folder / "out.jsonl").read_bytes()


def stale(trial: Trial) -> Iterator[Tried]:
    mutation, folder = trial.given, trial.folder
    begin(folder)
    output = folder / "out.jsonl"
    begun = run(command("--limit", str(BEGUN), "--keep-store"), cwd=folder)
    assert begun.code == 0, begun.stderr
    output.unlink()
    mutation.change(folder)
    refused = run(command("--resume", *mutation.options), cwd=folder)
    problem = refused.refusal_problem(mutation.says, "--overwrite")
    problem = problem or ("an output was written" if output.exists() else None)
    begin(folder)  # undo the change
    ended = run(command("--resume"), cwd=folder)
    problem = problem or ended.problem(0) or difference(output, trial.lab.once(whole))
    shutil.rmtree(folder / "model2", ignore_errors=True)
    yield Tried(str(mutation), problem or left_over(folder, "model", "out.jsonl", "rows.jsonl"))


CHECKS = [
    Check(
        "stale",
        "resume after a mutation of input, model or options: refused, naming what changed; put back, it goes on",
        lambda lab: lab.pick(MUTATIONS, len(MUTATIONS)),
        stale,
    )
]
