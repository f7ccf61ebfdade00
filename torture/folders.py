"""A hostile working folder: it contains Python files named like modules that batchgen or its workers import."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from torture.commands import run, write_rows
from torture.lab import Check, Lab, Trial, Tried

# From the standard library and others; starting a worker imports most of them.
MODULES = (
    "socket", "pickle", "signal", "struct", "json", "queue", "threading", "multiprocessing", "tempfile", "runpy",
    "torch", "transformers", "tokenizers", "numpy", "batchgen", "sitecustomize",
)  # fmt: skip
CANARY = "canary"
# The command as installed: a script in another folder.
ENTRY = "from batchgen.__main__ import main\nif __name__ == '__main__':\n    main()\n"
COMMANDS = [
    ("run", "rows.jsonl", "--model", "bundled", "--max-new-tokens", "2", "--workers", "2", "--format", "jsonl"),
    ("run", "-p", "x", "--model", "bundled", "--max-new-tokens", "2", "--format", "jsonl"),
    ("verify", "-p", "x", "--model", "bundled", "--max-new-tokens", "2"),
    ("plan", "rows.jsonl", "--model", "bundled"),
]


def working_folder(trial: Trial) -> Iterator[Tried]:
    folder, elsewhere = trial.folder / "downloaded", trial.folder / "bin"
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / "batchgen-command.py").write_text(ENTRY)
    canary = trial.folder / CANARY
    for name in MODULES:
        (folder / f"{name}.py").write_text(f"open({str(canary)!r}, 'a').write('{name} ')\n")
    write_rows(folder / "rows.jsonl", 20)
    ended = run([sys.executable, str(elsewhere / "batchgen-command.py"), *trial.given], cwd=folder)
    problem = ended.problem(0)
    if canary.exists():
        problem = f"code of the working folder ran: {canary.read_text()}"
    yield Tried(" ".join(trial.given), problem)


def settings(trial: Trial) -> Iterator[Tried]:
    """A downloaded batchgen.toml must not start processes or read files."""
    key, value = trial.given
    secret = trial.folder / "secret.txt"
    secret.write_text("nobody's business")
    (trial.folder / "batchgen.toml").write_text(f"[run]\n{key} = {value}\n")
    ended = run([sys.executable, "-m", "batchgen", "run", "-p", "x", "--model", "bundled"], cwd=trial.folder)
    yield Tried(key, ended.refusal_problem("batchgen.toml", key, code=2))


def commands(lab: Lab) -> list[tuple[str, ...]]:
    return list(lab.pick(COMMANDS, len(COMMANDS)))


def keys(lab: Lab) -> list[tuple[str, str]]:
    return [("workers", "2"), ("system-file", "'secret.txt'"), ("prompt", "['x']"), ("output", "'x.jsonl'")]


CHECKS = [
    Check("folder-modules", "Python files in the working folder are not run, by workers neither", commands,
          working_folder),
    Check("folder-settings", "a batchgen.toml that came along starts no processes, names no files", keys, settings),
]  # fmt: skip
