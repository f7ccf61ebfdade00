"""Starts batchgen as a user does, real or with the fake engine, and judges how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torture.answers import wrong_lines
from torture.lab import Found

REAL = (sys.executable, "-m", "batchgen", "run", "--model", "bundled")
FAKE = (sys.executable, str(Path(__file__).with_name("fake.py")), "run")
PATIENCE_S = 240.0
TICK_S = 1.0
NO_FOLDER = os.devnull + "/cache"  # nothing can be written there
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("BATCHGEN_", "TORTURE_"))},
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": NO_FOLDER,
    "XDG_CACHE_HOME": NO_FOLDER,
    "XDG_CONFIG_HOME": NO_FOLDER,
}


def keep_cache(folder: Path) -> None:
    """Keep what batchgen learns about a model in `folder` from now on: an engine is tried once, not at each start."""
    ENVIRONMENT["XDG_CACHE_HOME"] = str(folder)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended; `code` is the shell's exit code: 128 plus the signal's number for a killed process."""

    code: int
    stdout: bytes
    stderr: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        """Lines of stderr, without the progress of the run."""
        return [line for line in self.stderr.splitlines() if "tokens/s" not in line or "model " in line]

    def problem(self, *codes: int) -> str | None:
        """Return why it did not end as it must: with one of these codes, only our lines on stderr, and no traceback."""
        if self.code not in codes:
            return f"exit {self.code}, not {' or '.join(map(str, codes))}: {self.stderr[-2000:]}"
        strange = [line for line in self.stderr.splitlines() if not line.startswith("batchgen: ")]
        return f"stderr has {strange[0]!r}: {self.stderr[-2000:]}" if strange else None

    def refusal_problem(self, *names: str, code: int = 1) -> str | None:
        """Return why it is not a refusal: a nonzero exit code, and one error line on stderr with all these names."""
        if problem := self.problem(code):
            return problem
        errors = [line for line in self.lines if line.startswith("batchgen: error: ")]
        if len(errors) != 1:
            return f"{len(errors)} error lines: {self.stderr[-2000:]}"
        missing = [name for name in names if name not in errors[0]]
        return f"the line does not say {missing[0]!r}: {errors[0]}" if missing else None


def start(command: Iterable[object], *, environment: dict[str, str] | None = None, **options: Any) -> Running:
    """Start a command in its own process group."""
    return Running([str(part) for part in command], environment or {}, options)


def run(
    command: Iterable[object],
    *,
    stdin: bytes = b"",
    limit_s: float = PATIENCE_S,
    environment: dict[str, str] | None = None,
    **options: Any,
) -> Ended:
    return start(command, environment=environment, stdin=subprocess.PIPE, **options).wait(limit_s, stdin)


class Running:
    """A process and its group."""

    def __init__(self, command: list[str], environment: dict[str, str], options: dict[str, Any]) -> None:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            command, env={**ENVIRONMENT, **environment}, start_new_session=True, **{**pipes, **options}
        )

    @property
    def is_over(self) -> bool:
        return self.process.poll() is not None

    def signal(self, number: int) -> None:
        """Send a signal to the whole group, as a terminal or a service manager does."""
        if not self.is_over:
            os.killpg(self.process.pid, number)

    def sleep(self, seconds: float) -> None:
        """Wait for `seconds`, or until the process ends by itself."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def wait(self, limit_s: float = PATIENCE_S, stdin: bytes | None = None) -> Ended:
        """Wait for the process to end; kill it if it takes longer, which its code shows."""
        ended = self._communicate(stdin, limit_s)
        if ended is None:
            self.signal(signal.SIGKILL)
            stdout, stderr = self.process.communicate()
            stderr = (stderr or b"") + f"\nkilled: it ran for more than {limit_s} s".encode()
        else:
            stdout, stderr = ended
        code = self.process.returncode
        errors = (stderr or b"").decode("utf-8", "surrogateescape")
        return Ended(code if code >= 0 else 128 - code, stdout or b"", errors, time.monotonic() - self.started)

    def _communicate(self, stdin: bytes | None, limit_s: float) -> tuple[bytes | None, bytes | None] | None:
        """Return what it wrote until its end; None if it still runs. A suspended machine counts as one tick."""
        left_s = limit_s
        while left_s > 0:
            with suppress(subprocess.TimeoutExpired):
                return self.process.communicate(stdin, timeout=min(TICK_S, left_s))
            stdin, left_s = None, left_s - TICK_S
        return None


def wait_until(holds: Callable[[], bool], running: Running, pause_s: float = 0.002) -> None:
    """Wait until something holds, or the process has ended."""
    while not holds() and not running.is_over:
        time.sleep(pause_s)


def rows_of(number: int) -> list[dict[str, Any]]:
    """Return rows of varied lengths, with ids and a column."""
    return [{"id": f"r{i}", "prompt": f"Row {i} " + "word " * (i * 7 % 23), "topic": i % 5} for i in range(number)]


def write_rows(path: Path, number: int) -> Path:
    """Write those rows as JSON Lines."""
    return write_jsonl(path, rows_of(number))


def right_bytes(output: Path, number: int) -> bytes:
    """Return the fake engine's output for these rows, as a reference. Raises `Found` if it is wrong."""
    content = output.read_bytes()
    if problem := wrong_lines(content, rows_of(number)):
        raise Found(problem)
    return content


def write_jsonl(path: Path, rows: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def left_over(folder: Path, *expected: str) -> str | None:
    """Return a problem if a folder holds anything except these files and the records of their runs."""
    records = {f".{name}.run" for name in expected}
    names = sorted(path.name for path in folder.iterdir() if path.name not in records)
    return None if names == sorted(expected) else f"the folder has {names}, not {sorted(expected)}"


def is_being_written(folder: Path) -> bool:
    """Whether a run is writing a file that does not have its final name yet."""
    return any(folder.glob(".batchgen-*.tmp"))


def difference(output: Path, whole: bytes) -> str | None:
    """Return a problem if a file does not have these bytes; lost and duplicated rows are counted."""
    if not output.exists():
        return f"{output.name} is not there"
    found = output.read_bytes()
    if found == whole:
        return None
    lines, expected = found.splitlines(), whole.splitlines()
    lost, twice = len(set(expected) - set(lines)), len(lines) - len(set(lines))
    return f"{output.name} differs from an uninterrupted run's: {lost} rows lost or changed, {twice} twice"
