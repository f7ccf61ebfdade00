"""Encode a text first in a process that can be killed: the tokenizers library obeys no time or memory limit.

A pattern may backtrack endlessly on one particular text, which a trial of the tokenizer itself cannot foresee.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from typing import IO

from batchgen.errors import first_line
from batchgen.machine.children import safe_children

MOST_BYTES = 2 * 2**30  # on top of this process
TEXT_CPU_S, CHARACTERS_PER_CPU_S = 3.0, 200_000  # a tokenizer encodes a million characters per CPU second
START_S, PATIENCE = 60.0, 8  # on a busy machine a CPU second takes some seconds
MOST_TOKENS = 16  # for each byte of the text
LOOK_S = 0.1  # how often a waiting thread can be interrupted
CHILD = f"from {__name__} import main; main()"
KEPT_PROBLEMS = 10_000  # number of texts whose problem is remembered


class TextTrial:
    """Tries texts on one tokenizer, given as the tokenizers library's JSON. The process starts with the first text."""

    def __init__(self, tokenizer_json: str) -> None:
        self._json = tokenizer_json
        self._process: subprocess.Popen[bytes] | None = None
        self._problems: dict[tuple[str, bool], str] = {}
        self._one_at_a_time = threading.Lock()

    def problem_of(self, text: str, *, split_special: bool = False) -> str | None:
        """Why a text must not be encoded, in a few words; None if it may be."""
        key = text, split_special
        with self._one_at_a_time:
            if key in self._problems:
                return self._problems[key]
            try:
                problem = self._try(text, split_special)
            except BaseException:  # such as Ctrl-C: the pending answer would be read as the next text's
                self._end()
                raise
            if problem is not None and len(self._problems) < KEPT_PROBLEMS:
                self._problems[key] = problem
            return problem

    def _try(self, text: str, split_special: bool) -> str | None:
        process = self._process = self._process or self._start()
        seconds = TEXT_CPU_S + len(text) / CHARACTERS_PER_CPU_S
        answer = _ask(process, json.dumps([text, split_special, seconds]), PATIENCE * seconds)
        if answer is not None:
            return json.loads(answer)  # type: ignore[no-any-return]
        code = self._end()
        if code == -signal.SIGPROF or code is None:
            return f"it takes more than {seconds:.0f} s of CPU time for these {len(text):,} characters"
        return f"it takes more than {MOST_BYTES >> 30} GiB for these {len(text):,} characters"

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", CHILD]
        with safe_children():
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # only the run itself gets Ctrl-C
            )
        weakref.finalize(self, _end, process)
        if _ask(process, self._json, START_S) is None:
            _end(process)
            raise ChildProcessError("the process that tries texts does not start")
        return process

    def _end(self) -> int | None:
        """Stop the process and return its exit code; None if it had not exited by itself."""
        process, self._process = self._process, None
        return None if process is None else _end(process)


def _end(process: subprocess.Popen[bytes]) -> int | None:
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):
            pipe.close()  # type: ignore[union-attr]
    try:
        return process.wait(LOOK_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def _ask(process: subprocess.Popen[bytes], question: str, seconds: float) -> bytes | None:
    """The answer to a line; None if the process exits first or takes longer than `seconds`."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(question.encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        return None
    ends, answer = time.monotonic() + seconds, b""
    while not answer.endswith(b"\n"):
        if time.monotonic() > ends:
            return None
        if select.select([process.stdout], [], [], LOOK_S)[0]:
            piece = os.read(process.stdout.fileno(), 65536)
            if not piece:
                return None
            answer += piece
    return answer


# In the process.


def limit_process(memory_bytes: int, cpu_s: int | None = None) -> None:
    """Limit this process permanently: memory, CPU time if given, no core file."""
    with suppress(ImportError):
        import resource

        limits = {resource.RLIMIT_AS: memory_bytes, resource.RLIMIT_CORE: 0}
        if cpu_s is not None:
            limits[resource.RLIMIT_CPU] = cpu_s
        for name, most in limits.items():
            hard = resource.getrlimit(name)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(name, (most, most))


def main() -> None:
    """Read a tokenizer, then texts, one line of JSON each; answer each text with what is wrong with it, or null."""
    limit_process(MOST_BYTES)
    serve(sys.stdin.buffer, sys.stdout.buffer)


def serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(questions.readline().decode())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    _answer(answers, None)
    for line in questions:
        text, tokenizer.encode_special_tokens, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # kills the process, whatever it is doing
        problem = _problem(tokenizer, text)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _answer(answers, problem)


def _answer(answers: IO[bytes], problem: str | None) -> None:
    answers.write(json.dumps(problem).encode() + b"\n")
    answers.flush()


def _problem(tokenizer: object, text: str) -> str | None:
    try:
        num_tokens = len(tokenizer.encode(text))  # type: ignore[attr-defined]
    except BaseException as error:  # noqa: BLE001 - a panic is no Exception
        return first_line(error)
    most = MOST_TOKENS * len(text.encode("utf-8", "replace")) + 64
    return None if num_tokens <= most else f"it makes {num_tokens:,} tokens of {len(text):,} characters"
