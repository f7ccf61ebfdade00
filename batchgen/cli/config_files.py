"""Settings from files: `batchgen.toml` in the working directory, then in the user's config folder.

Knows keys and values, not what they mean; the command line checks them against its options. Files cannot set what a run
reads and writes, what starts processes, or what lowers a guard: a downloaded folder may contain one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchgen.errors import UsageError

FILE_NAME = "batchgen.toml"
LARGEST = 2**20  # bytes
# What is read and how much of it, what starts processes, what is written or continued, what trusts the input.
NOT_FROM_FILES = {
    "prompt", "template-file", "system-file", "recursive", "limit", "workers",
    "output", "manifest", "stats", "svg", "html", "ray", "overwrite", "resume", "retry-errors", "keep-store",
    "parse-special", "csv-raw", "json-schema", "grammar",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of one file: for the command `command`, or if that is None for all commands with such an option."""

    key: str
    value: object
    file: Path
    command: str | None = None

    @property
    def place(self) -> str:
        """The file, table and key, for error messages."""
        return f"{self.file}: {f'[{self.command}] ' if self.command else ''}{self.key}"


def config_files(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Return where settings may be, lowest priority first, following the XDG base directory specification.

    With neither XDG_CONFIG_HOME nor a home, only the working directory counts.
    """
    home = environ.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - stays "~" for a user whom the system lacks
    folder = environ.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home != "~" else None)
    return [*([Path(folder) / "batchgen" / FILE_NAME] if folder else []), Path(FILE_NAME)]


def read_settings(files: list[Path], commands: set[str]) -> list[Setting]:
    """Read the settings of files, lowest priority first: a nearer file overrides, and so does a command's own table.

    Raises `UsageError` if a file cannot be read, is not TOML, or sets what files may not set.
    """
    settings = [setting for file in files for setting in _read(file, commands)]
    for setting in settings:
        if setting.key in NOT_FROM_FILES:
            raise UsageError(
                f"{setting.place} cannot be set in a config file: give --{setting.key} on the command line"
            )
    return settings


def _read(file: Path, commands: set[str]) -> Iterator[Setting]:
    table = _parse(file)
    for key, value in table.items():
        if key not in commands:
            yield Setting(key.replace("_", "-"), value, file)
    for command in commands & table.keys():
        if not isinstance(table[command], dict):
            raise UsageError(f"{file}: {command} is a command: its settings go in a table [{command}]")
        yield from (Setting(key.replace("_", "-"), value, file, command) for key, value in table[command].items())


def _parse(file: Path) -> dict[str, Any]:
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise UsageError(f"{file} is not a regular file")
        with file.open("rb") as stream:
            content = stream.read(LARGEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    if len(content) > LARGEST:
        raise UsageError(f"{file} is larger than {LARGEST:,} bytes")
    import tomllib  # here, because most runs have no config file

    try:
        return tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is not valid TOML: {str(error).splitlines()[0]}") from None
