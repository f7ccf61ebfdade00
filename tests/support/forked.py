"""Processes forked from one that has imported torch and transformers, which takes seconds of CPU time.

They differ from spawned processes in nothing else: own environment and working directory, no threads or locks of the
tests.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

METHODS = multiprocessing.get_all_start_methods()


def get_context(method: str = "spawn") -> BaseContext:
    """Like `multiprocessing.get_context`, but with spawned processes forked if the system supports it."""
    return _Context() if method == "spawn" and "forkserver" in METHODS else multiprocessing.get_context(method)


def run_forked(target: Callable[..., object], *arguments: object) -> int | None:
    """Return the exit code of a process that calls the function, which it imports by name."""
    process = get_context().Process(target=target, args=arguments)  # type: ignore[attr-defined]
    process.start()
    process.join()
    exit_code: int | None = process.exitcode
    return exit_code


if "forkserver" in METHODS:
    from multiprocessing.context import ForkServerContext, ForkServerProcess

    class _Process(ForkServerProcess):
        def __init__(self, *, target: Callable[..., object], args: tuple[Any, ...] = (), **options: Any) -> None:
            here = (dict(os.environ), Path.cwd())
            super().__init__(target=_run_in, args=(*here, target, args), **options)

    class _Context(ForkServerContext):
        Process = _Process  # type: ignore[assignment]

        def __init__(self) -> None:
            self.set_forkserver_preload(["tests.support.preloaded"])


def _run_in(
    environment: Mapping[str, str], folder: Path, target: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    target(*arguments)
