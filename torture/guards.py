"""Guards that only matter against attackers or disk errors: modes, planted links, damage, bounds, ids."""

from __future__ import annotations

import csv
import json
import signal
import sqlite3
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torture.answers import wrong_lines
from torture.commands import FAKE, run, start, wait_until, write_jsonl
from torture.lab import Check, Trial, Tried

ROWS = [{"id": f"r{i}", "prompt": f"Row {i}"} for i in range(6)]
# From OWASP's list, with characters that may come first.
FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(1)", "\t=1", "\r=1", "\n=1", "＝1", "＋1+1", "－1+1", "＠SUM(1)", "\ufeff=1",
            "\xa0=1", "\x0b=1", "\x0c=1"]  # fmt: skip
STARTS = "=+-@\t\r\n＝＋－＠"
IGNORED = "\ufeff\xa0\x0b\x0c \t\r\n"


@dataclass(frozen=True, slots=True)
class Guard:
    """Something to try in a folder; returns what did not hold."""

    name: str
    attempt: Callable[[Path], str | None]

    def __str__(self) -> str:
        return self.name


def begin(folder: Path) -> None:
    write_jsonl(folder / "rows.jsonl", ROWS)


def command(*words: str) -> list[str]:
    return [*FAKE, "rows.jsonl", "-q", "-o", "out.jsonl", *words]


def interrupted(folder: Path, *words: str) -> Path:
    """Interrupt a run, and return its store."""
    begun = run(command("--limit", "4", "--keep-store", *words), cwd=folder)
    assert begun.code == 0, begun.stderr
    (folder / "out.jsonl").unlink()
    return folder / "out.jsonl.run.db"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Files.


def old_mode(folder: Path) -> str | None:
    """A private output stays private, and so does its store."""
    begin(folder)
    output, store = folder / "out.jsonl", folder / "out.jsonl.run.db"
    output.write_text("old\n")
    output.chmod(0o640)
    ended = run(command("--overwrite", "--keep-store"), cwd=folder)
    modes = [mode_of(path) for path in (output, store) if path.exists()]
    return ended.problem(0) or (None if modes == [0o640, 0o640] else f"the modes are {[*map(oct, modes)]}")


def store_mode(folder: Path) -> str | None:
    """Only the owner can read a store."""
    begin(folder)
    mode = mode_of(interrupted(folder))
    return None if mode == 0o600 else f"the store has mode {mode:o}"


def planted(folder: Path) -> str | None:
    """A link planted under the name of the file to be written is not followed."""
    begin(folder)
    victim = folder / "victim"
    victim.write_text("precious\n")
    (folder / ".batchgen-out.jsonl.tmp").symlink_to(victim)  # the fake's names are predictable
    run(command(), cwd=folder)
    return None if victim.read_text() == "precious\n" else f"the victim holds {victim.read_text()[:100]!r}"


def appeared(folder: Path) -> str | None:
    """A file that another program creates under the output's name during the run is not replaced."""
    begin(folder)
    running = start(command(), cwd=folder, environment={"TORTURE_BATCH_S": "1"})
    wait_until(lambda: (folder / "out.jsonl.run.db").exists(), running)
    running.sleep(0.3)
    (folder / "out.jsonl").write_text("somebody's\n")
    ended = running.wait()
    problem = ended.refusal_problem("out.jsonl")
    return problem or (None if (folder / "out.jsonl").read_text() == "somebody's\n" else "it was replaced")


def damaged(folder: Path) -> str | None:
    """A store in which one text has changed is refused, and nothing is written from it."""
    begin(folder)
    connection = sqlite3.connect(interrupted(folder))
    connection.execute("UPDATE results SET text = 'Row X' WHERE row_index = 2")
    connection.commit()
    connection.close()
    ended = run(command("--resume"), cwd=folder)
    problem = ended.refusal_problem("out.jsonl.run.db", "damaged")
    return problem or ("an output was written" if (folder / "out.jsonl").exists() else None)


def finished(folder: Path) -> str | None:
    """A finished file does not count as complete for other options or other rows."""
    begin(folder)
    done = run(command(), cwd=folder)
    assert done.code == 0, done.stderr
    before = (folder / "out.jsonl").read_bytes()
    for words in (["--max-new-tokens", "5"], ["--seed", "3"]):
        ended = run(command("--resume", *words), cwd=folder)
        if problem := ended.refusal_problem("out.jsonl", words[0]):
            return problem
    write_jsonl(folder / "rows.jsonl", [*ROWS[:-1], {"id": "r5", "prompt": "Another"}])
    ended = run(command("--resume"), cwd=folder)
    problem = ended.refusal_problem("out.jsonl")
    return problem or (None if (folder / "out.jsonl").read_bytes() == before else "it was written again")


def overwritten(folder: Path) -> str | None:
    """`--overwrite`, killed during the run, and then `--resume`: the new rows, never the old file."""
    begin(folder)
    done = run(command("--seed", "9"), cwd=folder)
    assert done.code == 0, done.stderr
    running = start(command("--overwrite"), cwd=folder, environment={"TORTURE_BATCH_S": "5"})
    wait_until(lambda: (folder / "out.jsonl.run.db").exists(), running)
    running.sleep(0.5)
    running.signal(9)
    running.wait()
    ended = run(command("--resume"), cwd=folder)
    return ended.problem(0) or wrong_lines((folder / "out.jsonl").read_bytes(), ROWS)


def locked(folder: Path) -> str | None:
    """A second writer of a store is refused, and the first one's output is complete."""
    begin(folder)
    interrupted(folder)
    first = start(command("--resume"), cwd=folder, environment={"TORTURE_BATCH_S": "1"})
    wait_until(lambda: (folder / "out.jsonl.run.db-wal").exists(), first)
    first.signal(signal.SIGSTOP)  # so that it is there however long the second one takes
    second = run(command("--resume"), cwd=folder)
    first.signal(signal.SIGCONT)
    ended = first.wait()
    problem = second.refusal_problem("in use") or ended.problem(0)
    return problem or wrong_lines((folder / "out.jsonl").read_bytes(), ROWS)


# The contents of files.


def formulas(folder: Path) -> str | None:
    """No cell of a CSV begins like a spreadsheet formula."""
    rows = [{"id": f"r{i}", "prompt": text, "topic": text} for i, text in enumerate(FORMULAS)]
    write_jsonl(folder / "rows.jsonl", rows)
    ended = run([*FAKE, "rows.jsonl", "-q", "--max-new-tokens", "100", "-o", "out.csv"], cwd=folder)
    with (folder / "out.csv").open(newline="") as stream:
        cells = [cell for row in csv.reader(stream) for cell in row]
    bad = [cell for cell in cells if cell[:1] in (*STARTS,) or cell.lstrip(IGNORED)[:1] in ("=", "＝")]
    problem = ended.problem(0) or (f"a spreadsheet would run {bad[0]!r}" if bad else None)
    return problem or (None if sum("SUM(1)" in cell for cell in cells) == 6 else "cells are not there")


def whose_id(folder: Path) -> str | None:
    """A failed row has its own id or none, never another row's."""
    lines = ['{"prompt": "a"}', "nonsense", '{"id": "x", "prompt": "b", "sampling": {"top_p": 9}}', '{"id": 1}',
             '{"prompt": 5}']  # fmt: skip
    (folder / "rows.jsonl").write_text("\n".join(lines))
    ended = run([*FAKE, "rows.jsonl", "-q", "--format", "jsonl"], cwd=folder)
    ids = [json.loads(line)["id"] for line in ended.stdout.splitlines()]
    return ended.problem(3) or (None if ids == ["0", None, "x", 1, None] else f"the ids are {ids}")


def many_samples(folder: Path) -> str | None:
    """A row that asks for too many samples fails alone."""
    greedy = {"temperature": 1, "num_samples": 20_000}
    write_jsonl(folder / "rows.jsonl", [ROWS[0], ROWS[1] | {"sampling": greedy}, ROWS[2]])
    ended = run([*FAKE, "rows.jsonl", "-q", "--format", "jsonl"], cwd=folder)
    reasons = [json.loads(line)["finish_reason"] for line in ended.stdout.splitlines()[:5]]
    return ended.problem(3) or (None if reasons == ["stop", "error", "stop"] else f"the rows ended with {reasons}")


def unsaid_json(folder: Path) -> str | None:
    """JSON whose name does not say so is read as JSON, or refused; its lines are never treated as prompts."""
    text = json.dumps([{"prompt": "Row 0"}, {"prompt": "Row 1"}], indent=1)
    ended = run([*FAKE, "-q", "--format", "jsonl"], stdin=text.encode(), cwd=folder)
    if ended.code:
        return ended.refusal_problem("JSON", code=ended.code)
    prompts = [json.loads(line)["prompt"] for line in ended.stdout.splitlines()]
    return None if prompts == ["Row 0", "Row 1"] else f"the prompts are {prompts}"


GUARDS = [
    Guard(function.__name__.replace("_", "-"), function)
    for function in (old_mode, store_mode, planted, appeared, damaged, finished, overwritten, locked, formulas,
                     whose_id, many_samples, unsaid_json)
]  # fmt: skip


def guarded(trial: Trial) -> Iterator[Tried]:
    yield Tried(trial.given.name, trial.given.attempt(trial.folder))


def one(guard: Guard) -> Check:
    promise = (guard.attempt.__doc__ or "").strip().rstrip(".")
    return Check(f"guard-{guard.name}", promise, lambda lab: [guard], guarded)


CHECKS = [one(guard) for guard in GUARDS]
