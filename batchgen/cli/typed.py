"""The command as typed: recorded with a run, and used to suggest the next command."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from batchgen.cli.lazy import TYPED
from batchgen.runs.manifest import GOES_ON


def typed_command(context: Any) -> tuple[str, ...]:
    """Return the words of this command line."""
    return tuple(context.meta.get(TYPED, ()))


def again(words: Sequence[str], flag: str, folder: str | None) -> str:
    """Return a run's command with a flag that continues it, preceded by `cd` if it was typed in another folder."""
    name, command, *rest = words
    line = shlex.join([name, command, *without(rest, GOES_ON), flag])
    if "--" in rest:  # after `--`, words are not flags
        line = shlex.join([name, command, flag, *without(rest, GOES_ON)])
    return line if folder in (None, str(Path.cwd())) else f"cd {shlex.quote(str(folder))} && {line}"


def without(words: Iterable[str], flags: set[str]) -> list[str]:
    """Return the words without flags that take no value."""
    return [word for word in words if word not in flags]
