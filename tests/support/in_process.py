"""The command in a pipe or at a terminal, run in this process: another one would take seconds to import torch."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from typing import IO
from unittest import mock

from refresh_docs import shell, stripped

from batchgen.cli import app


def in_pipe(arguments: Iterable[object], stdin: str = "") -> str:
    """Return what the command writes to standard output if standard input is a pipe that holds `stdin`."""
    said: list[str] = []

    def talk(writer: IO[str], reader: IO[str]) -> None:
        writer.write(stdin)
        writer.close()
        said.append(reader.read())

    between_pipes(arguments, talk)
    return said[0]


def between_pipes(arguments: Iterable[object], talk: Callable[[IO[str], IO[str]], object]) -> int:
    """Return the command's exit code while `talk` writes to its standard input and reads its standard output."""
    source, to_command = _pipe()
    from_command, output = _pipe()
    talker = threading.Thread(target=_talk, args=(talk, to_command, from_command))
    talker.start()
    with source, output, tempfile.TemporaryFile("w", encoding="utf-8") as errors:
        exit_code = run(arguments, source, output, errors, COLUMNS="80")
    talker.join()
    return exit_code


def in_shell(line: str) -> str:
    """Return what a command line prints; `batchgen` in its pipeline runs in this process, the rest in a shell."""
    before, call, after = re.fullmatch(r"(?:(.*) \| )?batchgen (.*?)(?: \| (jq .*))?", line).groups()  # type: ignore[union-attr]
    output = in_pipe(shlex.split(call), shell(before) if before else "")
    return stripped(
        subprocess.run(["bash", "-c", after], input=output, capture_output=True, text=True).stdout if after else output
    )


def at_terminal(*arguments: object, columns: int = 80, **environ: str) -> tuple[str, int]:
    """Return what a terminal gets, and the exit code: standard input, output and error are one pty, as in a shell."""
    ours, theirs = os.openpty()
    sent: list[bytes] = []
    reader = threading.Thread(target=_read_all, args=(ours, sent))
    reader.start()
    settings = {"COLUMNS": str(columns), "LINES": "50", "TERM": "xterm-256color", **environ}
    with os.fdopen(os.dup(theirs), encoding="utf-8") as keyboard, os.fdopen(theirs, "w", encoding="utf-8") as screen:
        exit_code = run(arguments, keyboard, screen, screen, **settings)
    reader.join()
    os.close(ours)
    return b"".join(sent).decode(), exit_code


def run(arguments: Iterable[object], stdin: IO[str], stdout: IO[str], stderr: IO[str], **environ: str) -> int:
    """Return the command's exit code with these streams and environment variables."""
    variables = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | environ
    streams = mock.patch.multiple(sys, stdin=stdin, stdout=stdout, stderr=stderr)
    with streams, mock.patch.dict(os.environ, variables, clear=True):
        try:
            app([str(argument) for argument in arguments], prog_name="batchgen")
        except SystemExit as end:
            return int(end.code or 0)
        finally:
            stdout.flush()
    return 0


def _pipe() -> tuple[IO[str], IO[str]]:
    reading, writing = os.pipe()
    return os.fdopen(reading, encoding="utf-8"), os.fdopen(writing, "w", encoding="utf-8")


def _talk(talk: Callable[[IO[str], IO[str]], object], writer: IO[str], reader: IO[str]) -> None:
    with writer, reader:
        talk(writer, reader)
        writer.close()
        reader.read()  # a pipe without a reader would end the command


def _read_all(descriptor: int, into: list[bytes]) -> None:
    try:
        while some := os.read(descriptor, 1 << 16):
            into.append(some)
    except OSError:  # Linux's way to report that the other end is closed
        return
