"""README and docs show what the commands print; README or help mention everything that the command line offers."""

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
from terminal_pictures import PICTURES, picture, words_in
from typer.testing import CliRunner

from batchgen.cli import app
from tests.support.in_process import in_shell

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.stem: path.read_text(encoding="utf-8")
    for path in [*sorted((ROOT / "docs").glob("*.md")), ROOT / "tools" / "website" / "start.md"]
}
DOCS_WITH_PYTHON = ("recipes", "verify", "scores", "constraints")
PYTHON = [code for name in DOCS_WITH_PYTHON for code in re.findall(r"```python\n(.*?)```", PAGES[name], re.DOTALL)]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_shows_what_its_command_prints(name: str) -> None:
    shown = (ROOT / "docs" / "pictures" / name).read_text(encoding="utf-8")
    assert words_in(shown) == words_in(picture(PICTURES[name]))


SHOWN = list(dict.fromkeys(blocks(README) + [block for page in PAGES.values() for block in blocks(page)]))


@pytest.mark.parametrize(("command", "output"), SHOWN, ids=[command for command, _ in SHOWN])
def test_a_command_prints_what_readme_and_docs_show(command: str, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "jq" in command and not shutil.which("jq"):
        pytest.skip("jq is not installed")
    monkeypatch.chdir(ROOT)
    assert (python(command) if command.startswith("python") else in_shell(command)) == output


def python(command: str) -> str:
    """Return what `python -c CODE` prints, run in this process unless its error is what counts."""
    if "|" in command:
        return shell(command)
    _, _, code = shlex.split(command)
    with redirect_stdout(StringIO()) as output:
        exec(compile(code, command, "exec"), {})
    return stripped(output.getvalue())


RECIPES = ("generate", "run", "check_padding", "logits", "pydantic")


@pytest.mark.parametrize(("code", "num_lines"), zip(PYTHON, (2, 1, 2, 3, 1), strict=True), ids=RECIPES)
def test_the_python_recipes_run(
    code: str, num_lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "prompts", tmp_path / "prompts")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == num_lines
    assert "logsumexp" not in code or indented(printed) in PAGES["scores"]


def indented(text: str) -> str:
    """Return a block of Markdown.

    >>> indented("a\\nb\\n")
    '    a\\n    b\\n'
    """
    return "".join(f"    {line}\n" for line in text.splitlines())


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
    assert {room for room in rooms if f"      {room} " not in PAGES["architecture"]} == {"py.typed"}


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 130


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
