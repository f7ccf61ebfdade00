"""Kills, and full or broken disks, at every single system call that changes the output's folder; needs strace."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torture.commands import ENVIRONMENT, FAKE, Ended, difference, left_over, run, write_jsonl
from torture.lab import Check, Lab, Skipped, Trial, Tried

CALLS = ("openat", "write", "pwrite64", "fsync", "fdatasync", "ftruncate", "linkat", "rename", "unlink")
TRACED = f"trace={','.join(CALLS)}"
ENDINGS = ("", ".run.db", ".run.db-wal", ".run.db-journal", "-wal", "-journal")
NOTES = ("manifest.json", "stats.json")
FAILURES = "out.errors.jsonl"
COMMITS = {"TORTURE_COMMIT_ROWS": "2"}
SOME_FAILED = 3
ROWS = [{"id": f"r{i}", "prompt": f"Row {i}"} for i in range(5)] + [{"id": "bad"}, {"id": "r6", "prompt": "x" * 5000}]


@dataclass(frozen=True, slots=True)
class Start:
    """A kind of run, and what is in its folder when it starts."""

    name: str
    options: tuple[str, ...] = ()
    output: str = "out.jsonl"
    before: tuple[str, ...] | None = None  # options of an interrupted run that was there
    kept: tuple[str, ...] = ()  # files that remain besides the output


STARTS = [
    Start("new"),
    Start("resumed", ("--resume",), before=()),
    Start("overwritten", ("--overwrite",), before=("--seed", "9")),
    Start("kept", ("--keep-store",), kept=("out.jsonl.run.db",)),
    Start("noted", ("--manifest", "manifest.json", "--stats", "stats.json"), kept=NOTES),
    Start("database", output="out.db"),
    Start("csv", output="out.csv"),
    Start("packed", output="out.jsonl.gz"),
    Start("parquet", output="out.parquet"),
    Start("batch", ("--format", "openai-batch"), kept=(FAILURES,)),
]


@dataclass(frozen=True, slots=True)
class Blow:
    """What happens at the `nth` of a system call: `signal=KILL`, or `error=EIO` once or from then on."""

    start: Start
    call: str
    nth: int
    effect: str
    for_good: bool = False

    @property
    def injection(self) -> str:
        return f"{self.call}:{self.effect}:when={self.nth}{'+' if self.for_good else ''}"

    def __str__(self) -> str:
        return f"{self.start.name}: {self.injection}"


def strace(folder: Path, output: str, *options: str) -> list[str]:
    """Return the start of a command line that traces what happens to the output and the files beside it."""
    # Full paths, as SQLite and Python pass them.
    whole = [output, f".{output}.run", *NOTES, FAILURES]
    names = [*(f"{output}{ending}" for ending in ENDINGS), *whole, *(f".batchgen-{name}.tmp" for name in whole)]
    paths = [folder.resolve(), *(folder.resolve() / name for name in dict.fromkeys(names))]
    wanted = [part for path in paths for part in ("-P", str(path))]
    return ["strace", "-f", "-qq", "-o", str(folder.parent / f"{folder.name}.trace"), *wanted, *options]


def command(start: Start, *options: str) -> list[str]:
    return [*FAKE, "../rows.jsonl", "-o", start.output, *options]


def perform(folder: Path, start: Start, *options: str, wrap: tuple[str, ...] | list[str] = ()) -> Ended:
    return run([*wrap, *command(start, *options)], cwd=folder, environment=COMMITS)


def check_strace(_folder: Path) -> bool:
    if not shutil.which("strace"):
        raise Skipped("strace is not installed")
    tried = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True, env=ENVIRONMENT)
    if tried.returncode:
        raise Skipped("strace may not trace here (ptrace is not permitted)")
    return True


def prepare(folder: Path) -> dict[str, tuple[bytes, Counter[str]]]:
    """For each start, return what an uninterrupted run leaves, and how often it makes each system call."""
    made = {}
    for start in STARTS:
        scene = begin(folder / start.name, start)
        ended = perform(scene, start, *start.options, wrap=strace(scene, start.output, "-e", TRACED))
        assert ended.code == SOME_FAILED, ended.stderr
        trace = (folder / f"{start.name}.trace").read_text()
        made[start.name] = content(scene / start.output), Counter(re.findall(r"^\d+ +(\w+)\(", trace, re.MULTILINE))
    return made


def begin(folder: Path, start: Start) -> Path:
    """Prepare the folder for a run. An interrupted run was killed during its commits, so its journal is still hot."""
    folder.mkdir(exist_ok=True)
    write_jsonl(folder.parent / "rows.jsonl", ROWS)
    if start.before is not None:
        kill = strace(folder, start.output, "-e", "trace=fdatasync", "--inject=fdatasync:signal=KILL:when=9")
        ended = perform(folder, start, *start.before, wrap=kill)
        assert ended.code == 137, (ended.code, ended.stderr)
    return folder


def content(output: Path) -> bytes:
    """Return what a user reads in an output: its bytes, or a database's rows."""
    if output.suffix != ".db" or not output.exists():
        return output.read_bytes() if output.exists() else b""
    connection = sqlite3.connect(output)
    columns = "row_index, sample_index, id, prompt, text, finish_reason, error, metadata, model"
    rows = connection.execute(f"SELECT {columns} FROM results ORDER BY row_index, sample_index").fetchall()
    connection.close()
    return json.dumps(rows).encode()


def kill_blows(lab: Lab) -> list[Blow]:
    """Return a kill at every call of a new and a resumed run, and at some calls of the others."""
    lab.once(check_strace)
    counts = {name: calls for name, (_, calls) in lab.once(prepare).items()}
    blows = {
        start.name: [
            Blow(start, call, nth, "signal=KILL") for call in CALLS for nth in range(1, counts[start.name][call] + 1)
        ]
        for start in STARTS
    }
    every = [blow for name in ("new", "resumed") for blow in blows[name]]
    others = [blow for name, some in blows.items() if name not in ("new", "resumed") for blow in some]
    return [*lab.pick(every, len(every)), *lab.pick(others, 80)]


def fault_blows(lab: Lab) -> list[Blow]:
    """Return ENOSPC and EIO at the calls, once and from then on."""
    lab.once(check_strace)
    counts = {name: calls for name, (_, calls) in lab.once(prepare).items()}
    blows = [
        Blow(start, call, nth, f"error={error}", for_good)
        for start in STARTS
        for call in CALLS
        for nth in range(1, counts[start.name][call] + 1)
        for error, for_good in (("ENOSPC", False), ("EIO", True), ("EIO", False), ("ENOSPC", True))
    ]
    return list(lab.pick(blows, 160))


def strike(trial: Trial) -> Ended:
    blow = trial.given
    scene = begin(trial.folder / "scene", blow.start)
    wrap = strace(scene, blow.start.output, "-e", TRACED, f"--inject={blow.injection}")
    return perform(scene, blow.start, *blow.start.options, "-q", wrap=wrap)


def killed(trial: Trial) -> Iterator[Tried]:
    struck = strike(trial)
    problem = None if struck.code == 137 else f"not killed, exit {struck.code}: {struck.stderr}"
    yield Tried(str(trial.given), problem or _after(trial))


def faulty(trial: Trial) -> Iterator[Tried]:
    """A failing disk is reported in one line that names the file; what a library recovers from is not a failure."""
    struck = strike(trial)
    if struck.code == SOME_FAILED:
        problem = None if len(struck.lines) == 1 else f"it went on, and said {struck.stderr}"
    else:
        problem = struck.refusal_problem()
        if not problem and not any(name in struck.stderr for name in (str(trial.folder / "scene"), *NOTES)):
            problem = f"the line names no file: {struck.stderr}"
    yield Tried(str(trial.given), problem or _after(trial))


def _after(trial: Trial) -> str | None:
    """Return what is wrong after running the same command again, with `--resume`, on a working disk."""
    blow, scene = trial.given, trial.folder / "scene"
    whole, _ = trial.lab.once(prepare)[blow.start.name]
    output = scene / blow.start.output
    options = [option for option in blow.start.options if option not in ("--overwrite", "--resume")]
    ended = perform(scene, blow.start, *options, "--resume", "-q")
    if blow.start.before and "was started with" in ended.stderr:  # it had not yet cleared the old store
        ended = perform(scene, blow.start, *options, "--overwrite", "-q")
    problem = ended.problem(SOME_FAILED, *([0] if output.exists() else []))
    if not problem and content(output) != whole:
        problem = difference(output, whole)
    return problem or left_over(scene, blow.start.output, *blow.start.kept)


CHECKS = [
    Check(
        "kill-calls",
        "SIGKILL at each write, sync, rename, unlink, truncate, open of small runs: same bytes",
        kill_blows,
        killed,
    ),
    Check(
        "fault-calls",
        "ENOSPC and EIO at the k-th such call, once and for good: one line, resumable to the same bytes",
        fault_blows,
        faulty,
    ),
]
