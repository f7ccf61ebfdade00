"""`batchgen rerun`: repeat the run of a manifest and show what differs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from batchgen.cli.diff import SHOWN, show_diff
from batchgen.cli.exit_codes import SOME_ROWS_FAILED
from batchgen.cli.typed import without
from batchgen.errors import InputError, OutputError
from batchgen.render.screen import Screen
from batchgen.runs.checks import check_file
from batchgen.runs.manifest import GOES_ON
from batchgen.runs.results import facts_of

OUTPUT = ("--output", "-o")
NOTES = ("--manifest", "--stats", "--html")
SWITCHES = GOES_ON | {"--keep-store"}


def rerun(
    manifest: Annotated[
        Path,
        typer.Argument(
            metavar="MANIFEST", show_default=False, help="The manifest of a run, or its output, or its store."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Output file. Default: NAME.rerun.SUFFIX next to the old one."
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(metavar="X", min=0.0, help="Largest difference in log-probabilities that counts as equal.")
    ] = 0.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", metavar="", help="Replace FILE if it exists.")] = False,
) -> None:
    """Repeat a run from its manifest and show what differs.

    [bold]batchgen rerun manifest.json[/]
    [bold]batchgen rerun out.parquet -o again.parquet[/]

    The command runs in the folder where it was first typed, and writes a new file. The
    exit code is that of `diff`: 0 if all rows are the same, 4 if not. If the run fails,
    it is that of the run.
    """
    screen = Screen()
    facts = _read(manifest)
    words, folder = _command(facts, manifest)
    old = folder / _value_of(words, OUTPUT, manifest) if manifest.suffix != ".parquet" else manifest.absolute()
    if not old.exists():
        raise InputError(f"{old}, the output of {manifest}, does not exist: there is nothing to compare with")
    name, _, suffix = old.name.partition(".")
    new = output.absolute() if output else old.with_name(f"{name}.rerun.{suffix}")
    check_file("output", new, [], overwrite=overwrite)
    again = [*_again(words), "--overwrite"] if overwrite else list(_again(words))
    again.insert(1, f"--output={new}")  # before any `--`
    exit_code = run_again(again, folder)
    if exit_code not in (0, SOME_ROWS_FAILED):
        raise typer.Exit(exit_code)
    if facts.get("input") not in (None, facts_of(new).get("input")):
        screen.say("the input has changed since then: rows are matched by id")
    raise typer.Exit(show_diff(old, new, tolerance=tolerance, limit=SHOWN, as_json=False))


def run_again(words: Sequence[str], folder: Path) -> int:
    """Run a command in a folder and return its exit code."""
    return subprocess.run([sys.executable, "-m", "batchgen", *words], cwd=folder, check=False).returncode


def _read(manifest: Path) -> Mapping[str, Any]:
    """Read a manifest, or the facts stored with an output."""
    try:
        facts = json.loads(manifest.read_bytes())
    except OSError as error:
        raise InputError(f"{manifest} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        facts = None
    if isinstance(facts, dict) and "options" in facts:
        return facts
    return facts_of(manifest)


def _command(facts: Mapping[str, Any], manifest: Path) -> tuple[list[str], Path]:
    """Return the words after `batchgen` and the folder where they were typed.

    A Parquet file does not record the folder; it is then the working directory.
    """
    command = facts.get("command") or {}
    words = [str(word) for word in command.get("words", ())]
    if len(words) < 2 or words[1] not in ("run", "score"):
        raise InputError(f"{manifest} does not record its command: name the output of `run` or `score`")
    folder = Path(str(command.get("folder", ".")))
    if not folder.is_dir():
        raise InputError(f"{folder}, where the run was started, does not exist")
    return words[1:], folder


def _value_of(words: Sequence[str], names: tuple[str, ...], manifest: Path) -> str:
    long, short = names
    for word, value in zip(words, [*words[1:], ""], strict=True):
        if word in names:
            return value
        if word.startswith(f"{long}="):
            return word.partition("=")[2]
        if word.startswith(short) and len(word) > len(short) and not word.startswith("--"):
            return word[len(short) :]
    raise OutputError(f"the run of {manifest} had no {short}: there is no output file to compare with")


def _again(words: Sequence[str]) -> Iterator[str]:
    """Yield the command without the options that name or continue its output files."""
    skip = False
    for word in without(words, SWITCHES):
        if skip:
            skip = False
        elif word in (*OUTPUT, *NOTES):
            skip = True
        elif not word.startswith(tuple(f"{name}=" for name in (*OUTPUT, *NOTES))) and not _is_joined(word):
            yield word


def _is_joined(word: str) -> bool:
    """Whether a word has the form `-oFILE`."""
    return word.startswith("-o") and not word.startswith("--") and len(word) > len("-o")
