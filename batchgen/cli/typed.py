"""What was typed: kept for a run's notes, and turned into what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from batchgen.cli.lazy import TYPED
from batchgen.runs.manifest import GOES_ON


def typed_command(context: Any) -> tuple[str, ...]:
    """The words that this command line was called with."""
    return tuple(context.meta.get(TYPED, ()))


def again(words: Sequence[str], flag: str, folder: str | None) -> str:
    """A run's command to type, with a flag that says how it goes on; from another folder, with the way there."""
    name, command, *rest = words
    line = shlex.join([name, command, *without(rest, GOES_ON), flag])
    if "--" in rest:  # behind which no flag is one
        line = shlex.join([name, command, flag, *without(rest, GOES_ON)])
    return line if folder in (None, str(Path.cwd())) else f"cd {shlex.quote(str(folder))} && {line}"


def without(words: Iterable[str], flags: set[str]) -> list[str]:
    """The words but flags that take no value."""
    return [word for word in words if word not in flags]
