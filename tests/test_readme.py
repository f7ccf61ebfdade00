"""What README and docs show is what the commands print; what the command line offers, the README or the help tells."""

from __future__ import annotations

import re
import shlex
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import typer.main
from refresh_docs import blocks, shell, stripped
from typer.testing import CliRunner

from batchgen.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MASKS = (ROOT / "docs" / "masks.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize(("command", "output"), blocks(README), ids=[command for command, _ in blocks(README)])
def test_a_command_prints_what_the_readme_shows(command: str, output: str) -> None:
    if "jq" in command and not shutil.which("jq"):
        pytest.skip("jq is not installed")
    assert shell(command) == output


@pytest.mark.parametrize(("command", "output"), blocks(MASKS), ids=[command for command, _ in blocks(MASKS)])
def test_a_command_prints_what_the_page_on_masks_shows(
    command: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert _in_process(command) == output


def _in_process(command: str) -> str:
    """What the command prints, run in this process, which has torch already, unless a shell is needed."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    program, *arguments = lexer
    if "|" in arguments:
        return shell(command)
    if program == "batchgen":
        return stripped(CliRunner().invoke(app, arguments, env={"COLUMNS": "80"}).stdout)
    assert (program, arguments[0]) == ("python", "-c")
    with redirect_stdout(StringIO()) as output:
        exec(compile(arguments[1], command, "exec"), {})
    return stripped(output.getvalue())


@pytest.mark.parametrize(("code", "num_lines"), zip(PYTHON, (2, 2), strict=True), ids=("generate", "check_padding"))
def test_the_python_recipes_run(code: str, num_lines: int, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == num_lines


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme_and_has_help(name: str) -> None:
    assert f"batchgen {name}" in README
    text = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).stdout
    for parameter in COMMANDS[name].params:
        assert parameter.help, parameter.name
        assert all(option in text for option in parameter.opts if option.startswith("--"))


def test_every_make_target_is_documented() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert targets == set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert targets >= {"run", "test", "help", "lint", "types", "fmt", "check", "clean", "dist"}


def test_the_file_tree_names_every_room() -> None:
    rooms = {
        path.name + "/" * path.is_dir() for path in (ROOT / "batchgen").iterdir() if not path.name.startswith("__")
    }
    assert {room for room in rooms if f"      {room} " not in README} == {"py.typed"}
