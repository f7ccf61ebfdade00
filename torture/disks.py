"""Disks that are full, small, or not allowed to grow: one line, a nonzero code, and the same bytes with enough room."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torture.commands import FAKE, difference, left_over, right_bytes, run, write_rows
from torture.endings import STREAMED
from torture.lab import Check, Lab, Skipped, Trial, Tried

KIB = 1024
ROWS = 300
SMALL_DISKS = [16 * KIB, 32 * KIB, 64 * KIB, 64 * KIB, 96 * KIB, 128 * KIB, 192 * KIB, 256 * KIB]
FULL = "/dev/full"


def rows(folder: Path) -> tuple[Path, bytes]:
    prompts, output = write_rows(folder / "rows.jsonl", ROWS), folder / "out.jsonl"
    ended = run([*FAKE, prompts, "-o", output])
    assert ended.code == 0, ended.stderr
    return prompts, right_bytes(output, ROWS)


# Devices.


@dataclass(frozen=True, slots=True)
class Device:
    """A shell command line that ends in /dev/full; `says` must be in its error line, if it can print one."""

    arguments: str
    says: str | None
    codes: tuple[int, ...] = (1,)
    form: str = ""


DEVICES = [
    *(Device(f"--format {form} > {FULL}", "No space left") for form in STREAMED),
    *(Device(f"--format {form} -o {FULL}", FULL) for form in STREAMED),
    Device(f"--format jsonl -o {FULL} --quiet", FULL),
    Device(f"-o out.jsonl 2> {FULL}", None, codes=(0, 1)),
    Device(f"-o out.jsonl --stats {FULL}", FULL),
    Device(f"-o out.jsonl --manifest {FULL}", FULL),
    Device(f"--quiet > {FULL} 2> {FULL}", None),
]


def full_device(trial: Trial) -> Iterator[Tried]:
    device = trial.given
    if not Path(FULL).is_char_device():
        raise Skipped(f"there is no {FULL}")
    prompts, whole = trial.lab.once(rows)
    shell = " ".join([*FAKE, str(prompts), device.arguments])
    ended = run(["bash", "-c", f"exec {shell}"], cwd=trial.folder)
    output = trial.folder / "out.jsonl"
    problem = ended.problem(*device.codes)
    if device.says:
        problem = problem or ended.refusal_problem(device.says)
    if not Path(FULL).is_char_device():
        problem = f"{FULL} was replaced"
    if not problem and "out.jsonl" in device.arguments:
        ended = run([*FAKE, prompts, "-o", output, "--resume"])
        problem = ended.problem(0) or difference(output, whole) or left_over(trial.folder, "out.jsonl")
    yield Tried(device.arguments, problem)


# Small disks.


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "none", folder], capture_output=True)
    if made.returncode:
        raise Skipped(f"no tmpfs can be mounted: {made.stderr.decode().strip()} (needs root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def full_disk(trial: Trial) -> Iterator[Tried]:
    prompts, whole = trial.lab.once(rows)
    with small_disk(trial.folder, trial.given) as folder:
        output = folder / "out.jsonl"
        command = [*FAKE, prompts, "-o", output]
        environment = {"TORTURE_COMMIT_ROWS": "10"}
        ended = run([*command, "-q"], environment=environment)
        problem = ended.refusal_problem(str(output))
        again = run([*command, "-q", "--resume"], environment=environment)  # the disk is as full as before
        problem = problem or again.refusal_problem(str(output))
        subprocess.run(["mount", "-o", "remount,size=16m", folder], check=True)
        ended = run([*command, "--resume"])
        problem = problem or ended.problem(0) or difference(output, whole) or left_over(folder, "out.jsonl")
    yield Tried(f"a disk of {trial.given // KIB} KiB", problem)


def sizes(lab: Lab) -> list[int]:
    if os.geteuid() != 0:
        raise Skipped("no tmpfs can be mounted: this needs root")
    return list(lab.pick(SMALL_DISKS, len(SMALL_DISKS)))


# A limit on the size of files.


def limited(trial: Trial) -> Iterator[Tried]:
    prompts, whole = trial.lab.once(rows)
    output = trial.folder / "out.jsonl"
    limit = trial.draw.randrange(len(whole) * 2)
    command = [*FAKE, prompts, "-o", output]
    ended = run(
        [*command, "-q"],
        environment={"TORTURE_COMMIT_ROWS": str(trial.draw.choice([5, 50, 500]))},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    # A large enough limit does no harm.
    problem = ended.problem(0) if ended.code == 0 else ended.refusal_problem(str(output))
    ended = run([*command, "--resume"])
    problem = problem or ended.problem(0) or difference(output, whole) or left_over(trial.folder, "out.jsonl")
    yield Tried(f"ulimit -f, {limit} bytes", problem)


CHECKS = [
    Check("fault-devices", "/dev/full in every place", lambda lab: DEVICES, full_device),
    Check("fault-tmpfs", "a full disk (tmpfs of 16 to 256 KiB), twice, and then room", sizes, full_disk),
    Check("fault-ulimit", "ulimit -f at random sizes", lambda lab: range(lab.some(20)), limited),
]
