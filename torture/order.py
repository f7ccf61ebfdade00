"""The recorded order of system calls: a file is on disk before it gets its name, and its name before the store goes.

SIGKILL loses nothing that the kernel already has, so kills cannot show this; only the calls can. Needs strace.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torture.commands import FAKE, run, write_jsonl
from torture.lab import Check, Lab, Trial, Tried
from torture.syscalls import check_strace

ROWS = [{"id": f"r{i}", "prompt": f"Row {i}"} for i in range(9)]
COMMITS = {"TORTURE_COMMIT_ROWS": "2"}
NUM_COMMITS = len(ROWS) // 2
TRACED = "write,pwrite64,writev,fsync,fdatasync,link,linkat,rename,renameat,renameat2,unlink,unlinkat"
CALL = re.compile(r"^\d+ +(\w+)\((.*)\) += (-?\d+)")
FD = re.compile(r"^\d+<([^>]*)>")
NAMED = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Call:
    """A system call that succeeded: `write`, `sync`, `name` (a rename or a link) or `unlink`, and the files' names."""

    kind: str
    file: str
    target: str = ""


KINDS = {"write": "write", "pwrite64": "write", "writev": "write", "fsync": "sync", "fdatasync": "sync"}


def read_calls(trace: str) -> Iterator[Call]:
    """Yield the calls of a trace by `strace -y`, with the last parts of the paths."""
    for line in trace.splitlines():
        found = CALL.match(line)
        if not found or int(found[3]) < 0:
            continue
        name, arguments = found[1], found[2]
        if name in KINDS:
            if path := FD.match(arguments):
                yield Call(KINDS[name], Path(path[1]).name)
            continue
        paths = [Path(path).name for path in NAMED.findall(arguments)]
        if name.startswith("unlink"):
            yield Call("unlink", paths[0])
        elif len(paths) == 2:
            yield Call("name", paths[0], paths[1])


@dataclass(frozen=True, slots=True)
class Run:
    """A kind of run whose calls are recorded."""

    name: str
    output: str = "out.jsonl"
    flags: tuple[str, ...] = ()
    is_old_there: bool = False

    def __str__(self) -> str:
        return self.name


RUNS = [
    Run("new"),
    Run("packed", "out.jsonl.gz"),
    Run("overwritten", flags=("--overwrite",), is_old_there=True),
    Run("noted", flags=("--stats", "stats.json")),
]


def order(trial: Trial) -> Iterator[Tried]:
    given, folder = trial.given, trial.folder / "scene"
    folder.mkdir()
    write_jsonl(folder / "rows.jsonl", ROWS)
    if given.is_old_there:
        (folder / given.output).write_text("old\n")
    trace = trial.folder / "trace"
    strace = ["strace", "-f", "-y", "-qq", "-s", "300", "-e", f"trace={TRACED}", "-o", trace]
    ended = run([*strace, *FAKE, "rows.jsonl", "-q", "-o", given.output, *given.flags], cwd=folder, environment=COMMITS)
    problem = ended.problem(0)
    yield Tried(given.name, problem or disorder(list(read_calls(trace.read_text())), given.output, folder.name))


def disorder(calls: list[Call], output: str, folder: str) -> str | None:
    """Return what is wrong with the order of the calls that made an output."""
    named = [place for place, call in enumerate(calls) if call.kind == "name" and call.target == output]
    if len(named) != 1:
        return f"{output} was given its name {len(named)} times"
    place, store = named[0], f"{output}.run.db"
    temporary = calls[place].file
    written = _last(calls, "write", temporary)
    synced = _last(calls, "sync", temporary)
    folder_synced = next((i for i in range(place, len(calls)) if calls[i] == Call("sync", folder)), None)
    gone = next(
        (i for i, call in enumerate(calls) if _is_end_of(call, store) and (i > place or call.file == store)), None
    )
    log_syncs = sum(call == Call("sync", f"{store}-wal") for call in calls)
    if written is None or synced is None or not written < synced < place:
        return f"{output} gets its name at call {place}, written at {written}, synced at {synced}"
    if folder_synced is None:
        return f"the folder was not synced after {output} got its name"
    if gone is None or gone < folder_synced:
        return f"the store went at call {gone}, the name was on the disk at {folder_synced}"
    if log_syncs < NUM_COMMITS:
        return f"the store's log was synced {log_syncs} times in {NUM_COMMITS} commits"
    return None


def _is_end_of(call: Call, store: str) -> bool:
    """Whether a store, or one of its files, is removed; at the start this may be what another run left."""
    return call.kind == "unlink" and call.file.startswith(store)


def _last(calls: list[Call], kind: str, file: str) -> int | None:
    return max((i for i, call in enumerate(calls) if call == Call(kind, file)), default=None)


def runs(lab: Lab) -> list[Run]:
    lab.once(check_strace)
    return list(lab.pick(RUNS, len(RUNS)))


CHECKS = [
    Check("order", "recorded calls: written < synced < named < folder synced < store removed; each commit synced",
          runs, order),
]  # fmt: skip
