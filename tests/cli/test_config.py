"""Settings: flags override the environment, which overrides batchgen.toml, the user's own file, and defaults."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from batchgen.cli import app
from batchgen.cli.config_files import LARGEST, NOT_FROM_FILES, config_files, read_settings
from batchgen.errors import UsageError

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OPTIONS = {flag[2:] for command in COMMANDS.values() for p in command.params for flag in p.opts if flag[:2] == "--"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and a config folder of the user."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in [name for name in os.environ if name.startswith("BATCHGEN_")]:
        monkeypatch.delenv(name)
    (tmp_path / "config" / "batchgen").mkdir(parents=True)
    return folder


def invoke(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", **environ})


def default_of(flag: str, command: str = "run", **environ: str) -> str:
    """Return an option's default as the help shows it."""
    text = invoke(command, "--help", **environ).stdout
    [found] = re.findall(rf"\n {{6}}--{flag} .*?\[default: (.*?)\]", text, re.DOTALL)
    return str(found)


def failure(*arguments: str, **environ: str) -> str:
    result = invoke(*arguments, **environ)
    assert (result.exit_code, result.stdout) == (2, ""), result.stderr
    [line] = result.stderr.splitlines()
    return line.removeprefix("batchgen: error: ")


def test_a_file_here_sets_defaults(here: Path) -> None:
    Path("batchgen.toml").write_text("max-new-tokens = 7\n")
    assert default_of("max-new-tokens") == "7"


@pytest.mark.parametrize("key", ["max-new-tokens", "max_new_tokens"])
def test_keys_are_spelled_as_flags_or_with_underscores(here: Path, key: str) -> None:
    Path("batchgen.toml").write_text(f"{key} = 7\n")
    assert default_of("max-new-tokens", "plan") == "7"


def test_a_command_s_own_table_is_stronger_and_for_it_alone(here: Path) -> None:
    Path("batchgen.toml").write_text("[run]\nmax-new-tokens = 9\n")
    assert (default_of("max-new-tokens"), default_of("max-new-tokens", "plan")) == ("9", "50")
    Path("batchgen.toml").write_text("max-new-tokens = 7\n[run]\nmax-new-tokens = 9\n")
    assert (default_of("max-new-tokens"), default_of("max-new-tokens", "plan")) == ("9", "7")


def test_the_file_here_is_stronger_than_the_user_s(here: Path) -> None:
    (here.parent / "config" / "batchgen" / "batchgen.toml").write_text("[run]\nmax-new-tokens = 9\ntop-k = 5\n")
    assert (default_of("max-new-tokens"), default_of("top-k")) == ("9", "5")
    Path("batchgen.toml").write_text("max-new-tokens = 7\n")
    assert (default_of("max-new-tokens"), default_of("top-k")) == ("7", "5")


def test_flags_are_stronger_than_the_environment_and_that_than_files(here: Path) -> None:
    Path("batchgen.toml").write_text("top-k = 5\n")
    needs_temperature = "--top-k 5 needs --temperature above 0 (0 is greedy)"
    assert needs_temperature in invoke("run", "-p", "x").stderr
    assert "there is no file" in failure_of_input("run", "nowhere.txt", BATCHGEN_TOP_K="0")
    assert "there is no file" in failure_of_input("run", "nowhere.txt", "--top-k", "0", BATCHGEN_TOP_K="6")


def failure_of_input(*arguments: str, **environ: str) -> str:
    result = invoke(*arguments, **environ)
    assert result.exit_code == 1
    return result.stderr


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("tempratur = 1", "batchgen.toml: tempratur: unknown option"),
        ("[run]\nrows = '1'", "batchgen.toml: [run] rows: unknown option of run"),
        ("inputs = ['a.txt']", "batchgen.toml: inputs: unknown option"),
        ("help = true", "batchgen.toml: help: unknown option"),
        ("max-new-tokens = 'many'", "batchgen.toml: max-new-tokens: "),
        ("max-new-tokens = 3.5", "batchgen.toml: max-new-tokens: "),
        ("max-new-tokens = true", "batchgen.toml: max-new-tokens: the value must be a text or a number"),
        ("max-new-tokens = 0", "batchgen.toml: max-new-tokens: "),
        ("max-new-tokens = [1]", "batchgen.toml: max-new-tokens: the value must be a text or a number"),
        ("[run]\nengine = 'warp'", "batchgen.toml: [run] engine: 'warp' is not one of"),
        ("exact = 'no'", "batchgen.toml: exact: the value must be true or false"),
        ("model = 2026-11-23", "batchgen.toml: model: the value must be a text or a number"),
        ("stop = [['a']]", "batchgen.toml: stop: the value must be a text or a number, or a list of them"),
        ("run = 1", "batchgen.toml: run is a command: its settings go in a table [run]"),
        ("model = ", "batchgen.toml is not valid TOML: "),
        ("a = " + "[" * 5000, "batchgen.toml is not valid TOML: "),
    ],
    ids=lambda text: text[:30],
)
def test_what_makes_no_sense_is_one_line_that_names_file_and_key(here: Path, content: str, problem: str) -> None:
    Path("batchgen.toml").write_text(content + "\n")
    assert failure("run", "-p", "x").startswith(problem)


def test_bytes_that_are_no_text_are_one_line(here: Path) -> None:
    Path("batchgen.toml").write_bytes(b"\xff")
    assert failure("run", "-p", "x").startswith("batchgen.toml is not valid TOML: ")


@pytest.mark.parametrize("key", sorted(NOT_FROM_FILES))
def test_what_is_read_and_written_never_comes_from_a_file(here: Path, key: str) -> None:
    Path("batchgen.toml").write_text(f"[run]\n{key} = true\n")
    line = failure("run", "-p", "x")
    assert line == f"batchgen.toml: [run] {key} cannot be set in a config file: give --{key} on the command line"


def test_what_files_may_not_set_are_options() -> None:
    assert NOT_FROM_FILES <= OPTIONS


def test_who_has_no_home_has_no_settings_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # like a user without an entry in the system
    assert config_files({}) == [Path("batchgen.toml")]


def test_a_list_is_given_as_a_list(here: Path) -> None:
    Path("batchgen.toml").write_text('stop = ["END OF", "\\n"]\n')
    assert "END OF" in default_of("stop")


def test_a_number_may_stand_for_text(here: Path) -> None:
    Path("batchgen.toml").write_text("batch-size = 64\n")
    assert default_of("batch-size") == "64"


@pytest.mark.parametrize(
    ("name", "value"), [("MAX_NEW_TOKENS", "many"), ("ENGINE", "warp"), ("TEMPERATURE", "-1"), ("EXACT", "perhaps")]
)
def test_a_variable_that_makes_no_sense_is_one_line(here: Path, name: str, value: str) -> None:
    assert failure("run", "-p", "x", **{f"BATCHGEN_{name}": value}).startswith(f"BATCHGEN_{name}: ")


def test_stop_and_prompt_do_not_come_from_the_environment(here: Path) -> None:
    result = invoke("run", "nowhere.txt", BATCHGEN_STOP="one two", BATCHGEN_PROMPT="c d")
    assert "there is no file nowhere.txt" in result.stderr
    assert "one two" not in invoke("run", "--help", BATCHGEN_STOP="one two").stdout


def test_what_comes_from_a_file_is_said(here: Path) -> None:
    Path("batchgen.toml").write_text("top-k = 5\nseed = 3\nmin-p = 0.5\n")
    lines = invoke("run", "nowhere.txt", "--seed", "4", "--temperature", "1").stderr.splitlines()
    assert lines[0] == "batchgen: settings from batchgen.toml: top-k, min-p"
    assert len(invoke("run", "nowhere.txt", "--temperature", "1", "--quiet").stderr.splitlines()) == 1


def test_a_file_cannot_hide_itself(here: Path) -> None:
    Path("batchgen.toml").write_text("quiet = true\n")
    assert "settings from batchgen.toml: quiet" in invoke("run", "nowhere.txt").stderr


def test_settings_of_other_commands_are_not_said(here: Path) -> None:
    Path("batchgen.toml").write_text("[bench]\nseconds = 3\n")
    assert len(invoke("run", "nowhere.txt").stderr.splitlines()) == 1


def test_a_file_that_is_none_is_refused(here: Path) -> None:
    os.mkfifo("batchgen.toml")
    assert failure("run", "-p", "x") == "batchgen.toml is not a regular file"


def test_a_file_that_is_too_large_is_refused(here: Path) -> None:
    Path("batchgen.toml").write_bytes(b"#" * (LARGEST + 1))
    with pytest.raises(UsageError, match="is larger than"):
        read_settings([Path("batchgen.toml")], set())


def test_files_are_looked_for_in_the_user_s_folder_and_here() -> None:
    assert config_files({"HOME": "/me"}) == [Path("/me/.config/batchgen/batchgen.toml"), Path("batchgen.toml")]
    assert config_files({"XDG_CONFIG_HOME": "/etc/xdg"})[0] == Path("/etc/xdg/batchgen/batchgen.toml")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("max_tokens = 2", "max-tokens: unknown option (did you mean max-new-tokens?)"),
        ("[run]\nmax-tokens = 2", "[run] max-tokens: unknown option of run (did you mean max-new-tokens?)"),
        ("[runn]\nseed = 2", "runn: unknown option (did you mean [run]?)"),
        ("no-exact = true", "no-exact: unknown option (did you mean exact = false?)"),
        ("api-key = 1", "api-key: unknown option"),
    ],
)
def test_an_unknown_key_is_told_the_near_one(here: Path, line: str, words: str) -> None:
    Path("batchgen.toml").write_text(line)
    assert failure("run", "-p", "x") == f"batchgen.toml: {words}"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "BATCHGEN_TEMPRATURE",
            ["BATCHGEN_TEMPRATURE has no effect: there is no such option (did you mean BATCHGEN_TEMPERATURE?)"],
        ),
        ("BATCHGEN_HOME", ["BATCHGEN_HOME has no effect: there is no such option"]),
        ("BATCHGEN_STOP", ["BATCHGEN_STOP has no effect: give --stop on the command line"]),
        ("BATCHGEN_STRIDE", []),
        ("BATCHGEN_TRACEBACK", []),
        ("BATCHGEN_SEED", []),
    ],
)
def test_a_variable_that_sets_nothing_is_said(here: Path, name: str, words: list[str]) -> None:
    result = invoke("plan", "--model", "bundled", "-p", "x", **{name: "1"})
    assert [line.removeprefix("batchgen: ") for line in result.stderr.splitlines() if "no effect" in line] == words
    assert not invoke("plan", "--model", "bundled", "-p", "x", "-q", **{name: "1"}).stderr


def test_a_switch_of_the_environment_that_is_none_is_refused(here: Path) -> None:
    assert failure("run", "-p", "x", BATCHGEN_EXACT="maybe") == "BATCHGEN_EXACT: the value must be true or false"
