"""Two runs on one output: one continues, the other is refused by name, and the remaining files are always complete."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torture.commands import FAKE, Ended, Running, difference, left_over, right_bytes, run, start, write_rows
from torture.lab import Check, Lab, Trial, Tried

ROWS = 300
BATCH_S = "0.1"  # five batches: both runs are up before the first one finishes
READY_S = 1.0  # both have finished their imports


@dataclass(frozen=True, slots=True)
class Race:
    """Two runs with these options. They start together, or the second one starts while the first one is ending."""

    options: tuple[str, ...] = ()
    at_the_end: bool = False

    def __str__(self) -> str:
        return f"{' '.join(self.options) or 'new'}{', at the end' if self.at_the_end else ''}"


TOGETHER = [Race(), Race(("--resume",)), Race(("--overwrite",))]
AT_THE_END = [Race(("--resume",), True), Race(("--overwrite",), True)]


@dataclass(frozen=True, slots=True)
class Scene:
    """The prompts, the output of an uninterrupted run, and an interrupted run's store."""

    prompts: Path
    whole: bytes
    store: Path


def scene(folder: Path) -> Scene:
    prompts, output, store = write_rows(folder / "rows.jsonl", ROWS), folder / "out.jsonl", folder / "out.jsonl.run.db"
    assert run([*FAKE, prompts, "-o", output, "--limit", "100", "--keep-store"]).code == 0
    shutil.copy(store, folder / "interrupted.db")
    ended = run([*FAKE, prompts, "-o", output, "--resume"])
    assert ended.code == 0, ended.stderr
    return Scene(prompts, right_bytes(output, ROWS), folder / "interrupted.db")


def together(trial: Trial) -> Iterator[Tried]:
    """Exactly one of two continues."""
    race, made = trial.given, trial.lab.once(scene)
    output = trial.folder / "out.jsonl"
    if race.options:
        shutil.copy(made.store, trial.folder / "out.jsonl.run.db")
    moment = time.time() + READY_S
    delays = (0.0, trial.draw.choice([0.0, trial.draw.uniform(0, 0.05)]))
    ended = _race([*FAKE, made.prompts, "-o", output, "-q", *race.options], moment, delays)
    winners = [one for one in ended if one.code == 0]
    losers = [one for one in ended if one.code != 0]
    problem = None if len(winners) == 1 else f"{len(winners)} went on: {[one.stderr for one in ended]}"
    problem = problem or losers[0].refusal_problem("out.jsonl")
    problem = problem or (f"the winner said {winners[0].stderr}" if winners[0].stderr else None)
    yield Tried(str(race), problem or difference(output, made.whole) or left_over(trial.folder, "out.jsonl"))


def at_the_end(trial: Trial) -> Iterator[Tried]:
    """The second run starts while the first one writes its file and removes its store; then it is killed, and resumed.

    The second run is refused, or has its own store, which no other run removes while it uses it.
    """
    race, made = trial.given, trial.lab.once(scene)
    output = trial.folder / "out.jsonl"
    command = [*FAKE, made.prompts, "-o", output, *race.options]
    moment = time.time() + READY_S
    runs = [_start(command, moment, "0"), _start(command, moment + trial.draw.uniform(0.08, 0.3), "0.05")]
    first = runs[0].wait()
    runs[1].sleep(trial.draw.uniform(0, 0.3))
    problem = _works_on_removed(runs[1])
    runs[1].signal(signal.SIGKILL)
    second = runs[1].wait()
    refused = [one for one in (first, second) if one.code not in (0, 137)]
    problem = problem or next(filter(None, (one.refusal_problem("out.jsonl") for one in refused)), None)
    problem = problem or ("both are refused" if len(refused) == 2 else None)
    ended = run([*FAKE, made.prompts, "-o", output, "--resume"])
    problem = problem or ended.problem(0) or difference(output, made.whole)
    yield Tried(str(race), problem or left_over(trial.folder, "out.jsonl"))


def _works_on_removed(running: Running) -> str | None:
    """Return a problem if a run writes into a deleted store, which a kill would lose. Only Linux shows this."""

    def removed() -> list[str]:
        links = Path(f"/proc/{running.process.pid}/fd")
        with suppress(OSError):
            return [name for link in links.iterdir() if (name := str(link.readlink())).endswith("(deleted)")]
        return []

    if removed():
        running.sleep(0.05)  # it may be closing it
        return f"it works on {found[0]}" if (found := removed()) else None
    return None


def _race(command: list[object], moment: float, delays: tuple[float, ...]) -> list[Ended]:
    runs = [_start(command, moment + delay, BATCH_S) for delay in delays]
    return [one.wait() for one in runs]


def _start(command: list[object], moment: float, batch_s: str) -> Running:
    return start(command, environment={"TORTURE_START": str(moment), "TORTURE_BATCH_S": batch_s})


def _spread(lab: Lab, races: list[Race], number: int) -> list[Race]:
    """Return at least one of each race, however small the share."""
    return [races[i % len(races)] for i in range(max(len(races), lab.some(number)))]


CHECKS = [
    Check(
        "race-start",
        "two writers at once (new, --resume, --overwrite): exactly one goes on",
        lambda lab: _spread(lab, TOGETHER, 50),
        together,
    ),
    Check(
        "race-end",
        "a second writer while the first one ends: refused, or it has a store of its own",
        lambda lab: _spread(lab, AT_THE_END, 20),
        at_the_end,
    ),
]
