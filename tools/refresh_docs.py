"""Rerun the commands in the blocks of Markdown files, and update their output.

    python tools/refresh_docs.py README.md docs/*.md

A block is a line `$ command` and its standard output, 80 columns wide. The tests compare `console` blocks; `text`
blocks show figures that differ between machines.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"```(console|text)\n\$ (.*)\n((?:.*\n)*?)```")


def blocks(text: str) -> list[tuple[str, str]]:
    r"""The command of each console block, with its documented output.
    >>> blocks("```console\n$ echo a\na\n```")
    [('echo a', 'a\n')]
    """
    return [(command, output) for kind, command, output in BLOCK.findall(text) if kind == "console"]


def shell(command: str) -> str:
    """The output of a command, without trailing spaces. Raises if it fails or prints nothing."""
    run = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=shell_environment(), capture_output=True, text=True, timeout=120
    )
    if run.returncode or not run.stdout:
        raise RuntimeError(f"{command}: exit code {run.returncode}: {run.stderr}")
    return stripped(run.stdout)


def shell_environment() -> dict[str, str]:
    """The environment of a documented command: this installation's programs come first, and lines have 80 columns."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "COLUMNS": "80"}


def stripped(output: str) -> str:
    """The output without trailing spaces."""
    return "".join(f"{line.rstrip()}\n" for line in output.splitlines())


def refreshed(text: str, run: Callable[[str], str] = shell) -> str:
    r"""The text with the current output of every block.
    >>> refreshed("```console\n$ echo a\nb\n```", lambda command: "a\n")
    '```console\n$ echo a\na\n```'
    """
    return BLOCK.sub(lambda block: f"```{block[1]}\n$ {block[2]}\n{run(block[2])}```", text)


def main(names: list[str]) -> None:
    for name in names:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = refreshed(before)
        olds, news = BLOCK.findall(before), BLOCK.findall(after)
        path.write_text(after, encoding="utf-8")
        print(f"{name}: {sum(old != new for old, new in zip(olds, news, strict=True))} of {len(olds)} blocks changed")


if __name__ == "__main__":
    main(sys.argv[1:])
