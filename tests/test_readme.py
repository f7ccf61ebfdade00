"""What the README shows is what the commands print; what the command line offers, the README or the help tells."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from batchgen.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n\$ (.*)\n((?:.*\n)*?)```", README)
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize(("command", "output"), BLOCKS, ids=[command for command, _ in BLOCKS])
def test_a_command_prints_what_the_readme_shows(command: str, output: str) -> None:
    if "jq" in command and not shutil.which("jq"):
        pytest.skip("jq is not installed")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "80"}
    shown = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert [line.rstrip() for line in shown.stdout.splitlines()] == output.splitlines()


def test_the_python_recipe_runs(capsys: pytest.CaptureFixture[str]) -> None:
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 2


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
