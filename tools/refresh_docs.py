"""Reruns the commands in the console blocks of Markdown files, and writes what they print now.

    python tools/refresh_docs.py README.md docs/masks.md

A block is a line `$ command` and what it prints on standard output, 80 columns wide. The tests compare them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"```console\n\$ (.*)\n((?:.*\n)*?)```")


def blocks(text: str) -> list[tuple[str, str]]:
    r"""Each command with what is said to come of it.

    >>> blocks("```console\n$ echo a\na\n```")
    [('echo a', 'a\n')]
    """
    return BLOCK.findall(text)


def shell(command: str) -> str:
    """What a command prints, with this environment's programs first; lines without spaces at their ends."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "80"}
    run = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    return stripped(run.stdout)


def stripped(output: str) -> str:
    """Lines without spaces at their ends."""
    return "".join(f"{line.rstrip()}\n" for line in output.splitlines())


def refreshed(text: str, run: Callable[[str], str] = shell) -> str:
    r"""The text with the output of every block as it is now.

    >>> refreshed("```console\n$ echo a\nb\n```", lambda command: "a\n")
    '```console\n$ echo a\na\n```'
    """
    return BLOCK.sub(lambda block: f"```console\n$ {block[1]}\n{run(block[1])}```", text)


def main(names: list[str]) -> None:
    for name in names:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = refreshed(before)
        changed = sum(old != new for old, new in zip(blocks(before), blocks(after), strict=True))
        path.write_text(after, encoding="utf-8")
        print(f"{name}: {changed} of {len(blocks(before))} blocks changed")


if __name__ == "__main__":
    main(sys.argv[1:])
