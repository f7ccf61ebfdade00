"""Help: what it says, how wide it is, and that it can be piped."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from batchgen.cli.lazy import SUMMARIES
from tests.support.command import failure, invoke

SCREENS = [(), *((name,) for name in SUMMARIES)]


def help_of(*command: str, columns: int = 80) -> list[str]:
    result = invoke(*command, "--help", COLUMNS=str(columns))
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout.splitlines()


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", SCREENS, ids=" ".join)
def test_no_line_is_wider_than_the_terminal(command: tuple[str, ...], columns: int) -> None:
    assert max(map(len, help_of(*command, columns=columns))) < columns


@pytest.mark.parametrize("command", SCREENS, ids=" ".join)
def test_words_have_more_than_half_of_eighty_columns(command: tuple[str, ...]) -> None:
    starts = [len(line) - len(line.lstrip()) for line in help_of(*command) if line]
    assert max(starts) <= 30


@pytest.mark.parametrize("command", SCREENS, ids=" ".join)
def test_no_type_of_python_is_shown(command: tuple[str, ...]) -> None:
    assert re.findall(r"<(?:list|bool|str|int|float|path|file)\b[^>]*>|x>=", "\n".join(help_of(*command))) == []


def test_an_option_shows_its_value_its_choices_and_its_default() -> None:
    text = " ".join("\n".join(help_of("run")).split())
    assert "-o, --output FILE Output file." in text
    assert "--engine ENGINE" in text
    assert "[auto, continuous, reference] [default: auto]" in text
    assert "--exact/--no-exact" in text
    assert "[default: --exact]" in text
    assert "--max-new-tokens N Maximum number of new tokens per row. [default: 50]" in text


@pytest.mark.parametrize(("command", "code"), [("run", "3"), ("verify", "4"), ("inspect", "3"), ("plan", "2")])
def test_exit_codes_are_in_the_help(command: str, code: str) -> None:
    lines = help_of(command)
    codes = lines[lines.index("Exit codes") + 1 :]
    assert code in [line.split()[0] for line in codes]


@pytest.mark.parametrize("words", [("help", "run"), ("--help", "run"), ("-h", "run")], ids=" ".join)
def test_help_of_a_command_may_be_asked_for_in_front(words: tuple[str, ...]) -> None:
    assert invoke(*words).stdout == invoke("run", "--help").stdout


def test_help_alone_lists_the_commands() -> None:
    assert invoke("help").stdout == invoke("--help").stdout
    assert all(f"\n  {name} " in invoke("help").stdout for name in SUMMARIES)


def test_help_of_what_is_no_command_is_one_line() -> None:
    assert failure(invoke("help", "rum"), 2).endswith(
        "there is no command rum (did you mean run?); see batchgen --help"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["help"], ["help", "run"]], ids=" ".join)
def test_help_into_a_pipe_that_nobody_reads_is_silent(words: list[str]) -> None:
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-m", "batchgen", *words], **options) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
