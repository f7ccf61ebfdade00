"""Readers that leave, and signals: how soon a run ends, with which code, and that it can be resumed."""

from __future__ import annotations

import os
import re
import select
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from batchgen.cli.options import Format
from torture.commands import (
    FAKE,
    REAL,
    Ended,
    Running,
    difference,
    is_being_written,
    left_over,
    right_bytes,
    run,
    start,
    write_rows,
)
from torture.lab import Check, Trial, Tried

ROWS = 2000
BATCH_S = "0.03"
REAL_ROWS = 150
REAL_OPTIONS = ("--max-new-tokens", "20")
SIGNAL_LIMIT_S, PIPE_LIMIT_S = 5.0, 1.0
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
KEPT = re.compile(r"; ([\d,]+) results? are kept in ")
# Formats for standard output; none of these needs a file.
STREAMED = [form.value for form in Format if form not in (Format.auto, Format.sqlite)]


def fake_rows(folder: Path) -> tuple[Path, bytes]:
    return _whole(folder, ROWS, FAKE)


def real_rows(folder: Path) -> tuple[Path, bytes]:
    return _whole(folder, REAL_ROWS, (*REAL, *REAL_OPTIONS))


def _whole(folder: Path, number: int, program: tuple[str, ...]) -> tuple[Path, bytes]:
    prompts, output = write_rows(folder / "rows.jsonl", number), folder / "out.jsonl"
    ended = run([*program, prompts, "-o", output])
    assert ended.code == 0, ended.stderr
    return prompts, right_bytes(output, number) if program == FAKE else output.read_bytes()


# Readers that leave.


def broken_pipe(trial: Trial) -> Iterator[Tried]:
    """The reader takes some of the output, or none, and leaves."""
    form = trial.given
    prompts, _ = trial.lab.once(fake_rows)
    wanted = trial.draw.choice([0, 1, trial.draw.randrange(5000), trial.draw.randrange(50_000)])
    running = start([*FAKE, prompts, "--format", form], environment={"TORTURE_BATCH_S": "0.15"})
    running.sleep(trial.draw.uniform(0, 0.5))
    stream = running.process.stdout
    assert stream
    taken = _take(stream, wanted)
    stream.close()
    left = time.monotonic()
    ended = _wait_without_stdout(running)
    seconds = time.monotonic() - left
    # If the reader leaves while Python starts, the first row notices it.
    limit_s = (PIPE_LIMIT_S if taken else PIPE_LIMIT_S + 1.0) * trial.lab.patience
    problem = ended.problem(141)
    problem = problem or (f"took {seconds:.2f} s" if seconds > limit_s else None)
    problem = problem or (f"said {ended.stderr}" if ended.stderr else None)
    if taken:
        trial.measure("slowest end after the reader left, s", seconds)
    yield Tried(f"{form}, reader leaves after {taken} bytes", problem)


def _take(stream: IO[bytes], wanted: int) -> int:
    """Read this many bytes, or what comes within two seconds: Parquet comes late."""
    taken = 0
    until = time.monotonic() + 2
    while taken < wanted and select.select([stream], [], [], max(0.0, until - time.monotonic()))[0]:
        if not (part := os.read(stream.fileno(), wanted - taken)):
            break
        taken += len(part)
    return taken


def _wait_without_stdout(running: Running) -> Ended:
    assert running.process.stderr
    with running.process.stderr as stream:
        errors = stream.read()
    code = running.process.wait(30)
    return Ended(code if code >= 0 else 128 - code, b"", errors.decode(), 0.0)


# Signals.


def fake_signals(trial: Trial) -> Iterator[Tried]:
    prompts, whole = trial.lab.once(fake_rows)
    yield from _signalled(trial, [*FAKE, prompts], whole, longest_s=2.5)


def real_signals(trial: Trial) -> Iterator[Tried]:
    prompts, whole = trial.lab.once(real_rows)
    yield from _signalled(trial, [*REAL, *REAL_OPTIONS, prompts], whole, longest_s=7)


def _signalled(trial: Trial, command: list[object], whole: bytes, longest_s: float) -> Iterator[Tried]:
    """Send a signal at a random time, also while Python starts, while the file is written, and at the very end."""
    output = trial.folder / "out.jsonl"
    command = [*command, "-o", output]
    number = trial.given
    delay_s = trial.draw.choice([trial.draw.uniform(0, 0.6), trial.draw.uniform(0, longest_s)])
    running = start(command, environment={"TORTURE_BATCH_S": BATCH_S})
    if trial.draw.random() < 0.2:  # while the final output is written
        while not is_being_written(trial.folder) and not running.is_over:
            time.sleep(0.001)
        delay_s = trial.draw.expovariate(50)
    running.sleep(delay_s)
    sent = time.monotonic()
    running.signal(number)
    if is_second := trial.draw.random() < 0.2:
        running.sleep(trial.draw.uniform(0, 0.5))
        running.signal(number)
    ended = running.wait(30)
    seconds = time.monotonic() - sent
    trial.measure("slowest end after a signal, s", seconds)
    # Python's own line: the signal came before our handler was installed, and nothing had begun.
    is_too_early = ended.stderr.strip() == "KeyboardInterrupt" and not any(trial.folder.iterdir())
    problem = None if is_too_early else ended.problem(CODES[number], 0)
    problem = problem or (f"took {seconds:.2f} s" if seconds > SIGNAL_LIMIT_S * trial.lab.patience else None)
    problem = problem or _untrue(ended, output)
    again = run([*command, "--resume"])
    problem = problem or again.problem(0) or difference(output, whole) or left_over(trial.folder, "out.jsonl")
    times = "twice " if is_second else ""
    yield Tried(f"{signal.Signals(number).name} {times}after {delay_s:.3f} s", problem)


def _untrue(ended: Ended, output: Path) -> str | None:
    """Return a problem if what the closing line says about kept results is not true."""
    store = output.with_name(output.name + ".run.db")
    if found := KEPT.search(ended.stderr):
        connection = sqlite3.connect(store)
        [(kept,)] = connection.execute("SELECT count(*) FROM results").fetchall()
        connection.close()
        said = int(found[1].replace(",", ""))
        return None if kept == said else f"it says that {said} results are kept, and {kept} are"
    if ended.code == 0 and not output.exists():
        return "exit 0, and no output"
    return None


CHECKS = [
    Check(
        "pipe",
        "broken pipe, every format: silent, 141, 1 s",
        lambda lab: [form for form in STREAMED for _ in range(lab.some(20))],
        broken_pipe,
    ),
    Check(
        "signal-fake",
        "SIGINT and SIGTERM at random times, fake engine: 5 s, right code, resumable to the same bytes",
        lambda lab: [number for number in CODES for _ in range(lab.some(40))],
        fake_signals,
    ),
    Check(
        "signal-real",
        "SIGINT and SIGTERM at random times, bundled model, also while it loads",
        lambda lab: [number for number in CODES for _ in range(lab.some(10))],
        real_signals,
    ),
]
