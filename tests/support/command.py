"""The command in this process with captured streams: what it wrote, and how it ended."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner, Result

from batchgen.cli import app


def invoke(*arguments: object, stdin: str | bytes | None = "", **environ: str) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin, env=environ)


def run(*arguments: object, stdin: str | bytes | None = "") -> Result:
    return invoke("run", "--model", "bundled", "--max-new-tokens", 5, *arguments, stdin=stdin)


def records(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def failure(result: Result, exit_code: int) -> str:
    """Return the one line on stderr of a command that failed."""
    assert result.exit_code == exit_code, result.stderr
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("batchgen: error: ")
    return line
