"""The command at a terminal, in pipes and interrupted.

Effects of signals and pipes are tested in a separate process.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pexpect
import pytest

from batchgen.cli.lazy import SUMMARIES
from batchgen.errors import ModelError
from tests.support.in_process import at_terminal, between_pipes
from tests.support.processes import PATIENCE_S

BATCHGEN = str(Path(sys.executable).parent / "batchgen")
BUNDLED = ["--model", "bundled"]
# The same command with an engine that only echoes, for processes that are stopped: it takes a fifth of the time.
FAKE = Path(__file__).parents[2] / "torture" / "fake.py"
SLOWLY = {"TORTURE_BATCH_S": "0.01"}  # per batch: a run of many rows cannot end before it is stopped
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="ptys and signals are POSIX")


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """More rows than a test has time for."""
    path = tmp_path / "many.txt"
    path.write_text("".join(f"Once upon a time, number {i}\n" for i in range(100_000)))
    return path


def plain(output: str) -> str:
    """Return what a terminal shows, without colours."""
    return ANSI.sub("", output).replace("\r", "")


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    words = [sys.executable, FAKE, "run", *arguments]
    options = {"env": os.environ | SLOWLY, **pipes}
    return subprocess.Popen(list(map(str, words)), text=True, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def running(many: Path) -> Iterator[subprocess.Popen[str]]:
    """A run that has printed its first row and has many left."""
    process = start(many, "--batch-size", 8)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


# A terminal.


def test_a_terminal_gets_the_table_within_its_width(said: Callable[[str, int], str]) -> None:
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    environment.pop("NO_COLOR", None)
    child = pexpect.spawn(
        BATCHGEN, ["run", "prompts/rain.txt", *BUNDLED, "--max-new-tokens", "5"],
        env=environment, timeout=PATIENCE_S, encoding="utf-8", dimensions=(50, 80),
    )  # fmt: skip
    text = plain(child.read())
    child.close()
    lines = text.splitlines()
    assert child.exitstatus == 0
    assert "│ input_ids      │ 50256 50256 50256  1026   481  6290   287   262" in text
    assert "│ attention_mask │     0     0     0     1     1     1     1     1" in text
    assert f"│ text           │ My dog is{said('My dog is', 5)}" in text
    assert sum(line.startswith(("╭", "╰")) for line in lines) == 2
    assert max(len(line) for line in lines if line.startswith(("╭", "│", "├", "╰"))) == 80
    assert lines[-3].startswith("batchgen: 3 rows")  # the closing line wraps twice


def test_the_continuation_is_highlighted_and_pads_are_dim(said: Callable[[str, int], str]) -> None:
    output, _ = at_terminal("run", "-p", "My dog is", "-p", "It will rain in the", *BUNDLED, "--max-new-tokens", 2)
    assert f"My dog is\x1b[1;32m{said('My dog is', 2)}" in output
    assert re.search(r"\x1b\[2m50256", output)


def test_no_color_is_respected() -> None:
    output, _ = at_terminal("run", "-p", "My dog is", *BUNDLED, "--max-new-tokens", 2, NO_COLOR="1")
    assert "My dog is" in output
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", output)


def test_the_progress_bar_leaves_nothing_behind() -> None:
    output, _ = at_terminal("run", "prompts/rain.txt", *BUNDLED, "--max-new-tokens", 40)
    assert "tokens/s" in output.split("batchgen: 3 rows")[0]
    assert "3 of 3 rows" not in output.split("╰")[1].split("batchgen:")[0].replace("\x1b[2K", "")


@pytest.mark.parametrize("command", ["run", "score"])
def test_what_takes_time_before_the_first_row_is_shown(command: str) -> None:
    shown = plain(at_terminal(command, "prompts/rain.txt", *BUNDLED)[0])
    assert shown.index("loading the model") < shown.index("preparing the engine") < shown.index("batchgen: 3 rows")


def test_batchgen_alone_at_a_terminal_is_ten_lines_that_name_commands() -> None:
    output, exit_code = at_terminal()
    lines = plain(output).splitlines()
    assert (len(lines), exit_code) == (10, 2)
    assert max(map(len, lines)) <= 80
    assert set(re.findall(r"batchgen (\w+)", output)) <= set(SUMMARIES)


def test_nothing_to_do_at_a_terminal_is_a_short_usage() -> None:
    output, exit_code = at_terminal("run")
    assert exit_code == 2
    assert "Usage: batchgen run [OPTIONS] [INPUTS]..." in plain(output)


@pytest.mark.parametrize("form", ["table", "csv", "jsonl"])
def test_no_control_character_of_a_prompt_reaches_the_terminal(form: str) -> None:
    hostile = "\x1b]0;title\x07 \x9b31m \u202e [red]markup[/red] \x7f"
    output, exit_code = at_terminal("run", "-p", hostile, *BUNDLED, "--max-new-tokens", 1, "--format", form, "--quiet")
    assert (exit_code, "markup" in output) == (0, True)
    for raw in ("\x1b]", "\x07", "\x9b", "\u202e", "\x7f"):
        assert raw not in output


def test_the_error_for_a_missing_file_is_one_plain_line() -> None:
    output, exit_code = at_terminal("run", "nowhere.txt")
    assert (plain(output).strip(), exit_code) == ("batchgen: error: there is no file nowhere.txt", 1)


# Pipes.


def test_a_slow_producer_gets_its_answer_before_it_closes() -> None:
    answers: list[str] = []

    def talk(writer: IO[str], reader: IO[str]) -> None:
        for prompt in ("My dog is\n", "It will rain in the\n"):
            writer.write(prompt)
            writer.flush()
            answers.append(reader.readline())

    assert between_pipes(["run", *BUNDLED, "--quiet"], talk) == 0
    assert [json.loads(answer)["index"] for answer in answers] == [0, 1]


def test_a_closed_pipe_is_silent(running: subprocess.Popen[str]) -> None:
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    assert running.wait(timeout=PATIENCE_S) == 141
    assert [line for line in running.stderr if " tokens/s" not in line] == []  # only progress


def test_a_closed_pipe_is_silent_for_a_table_too(many: Path) -> None:
    process = start(many, "--format", "table", "--batch-size", 1)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=PATIENCE_S) == 141
    assert [line for line in process.stderr if " tokens/s" not in line] == []
    process.stderr.close()


def test_limit_answers_without_reading_on() -> None:
    def talk(writer: IO[str], reader: IO[str]) -> None:
        writer.write("One\nTwo\nThree\n")
        writer.flush()  # and not closed
        answers.extend(reader)

    answers: list[str] = []
    assert between_pipes(["run", *BUNDLED, "--limit", 2, "--quiet", "--max-new-tokens", 2], talk) == 0
    assert len(answers) == 2


# Interrupted.


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_with_whole_rows(
    running: subprocess.Popen[str], number: signal.Signals, exit_code: int
) -> None:
    assert running.stdout is not None
    assert running.stderr is not None
    too_late = threading.Timer(PATIENCE_S, running.kill)
    too_late.start()
    running.send_signal(number)
    output, errors = running.stdout.read(), running.stderr.read()  # including what the first readline() buffered
    too_late.cancel()
    assert running.wait() == exit_code
    assert [json.loads(line)["index"] for line in output.splitlines()] == list(range(1, len(output.splitlines()) + 1))
    assert errors.splitlines()[-1].startswith("batchgen: interrupted: ")
    assert "Traceback" not in errors


def test_a_second_signal_ends_at_once(running: subprocess.Popen[str]) -> None:
    running.send_signal(signal.SIGINT)
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=PATIENCE_S) in (130, 143)


def test_an_interrupt_while_torch_is_imported_is_silent(tmp_path: Path) -> None:
    """Uses a fake torch that reports its import and then never finishes."""
    begun = "import sys, time\nprint('imported', file=sys.stderr, flush=True)\ntime.sleep(1e6)\n"
    (tmp_path / "torch.py").write_text(begun)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(
        [BATCHGEN, "run", "-p", "x", *BUNDLED],
        env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline() == "imported\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert (output, errors) == ("", "")
    assert process.returncode in (130, -signal.SIGINT)  # a shell reports 130 for both


def test_an_interrupt_that_a_library_makes_an_error_of_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ModelError("no module") from None

    monkeypatch.setattr("batchgen.runs.equipment.load_model", load)
    output, exit_code = at_terminal("run", "-p", "x", *BUNDLED)
    assert ("error" in output, exit_code) == (False, 130)


def test_an_interrupted_output_file_keeps_its_rows_beside_it(many: Path, tmp_path: Path) -> None:
    output, store = tmp_path / "out.jsonl", tmp_path / "out.jsonl.run.db"
    start(many, "-o", output, "--limit", 3, "--keep-store").communicate(timeout=PATIENCE_S)
    output.unlink()
    process = start(many, "-o", output, "--resume")
    assert process.stderr is not None
    assert process.stderr.readline() == f"batchgen: continuing {store}: 3 results kept\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert f"3 results kept in {store}: to continue, run the same command with --resume" in errors
    assert list(tmp_path.glob("out*")) == [store]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_log_that_is_full_ends_no_run(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        process = start("-p", "My dog is", "-o", tmp_path / "out.jsonl", "--max-new-tokens", 2, stderr=full)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 1


# Start-up.


def test_help_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from batchgen.cli import app\n"
        "for command in ([], ['run'], ['inspect']):\n"
        "    assert CliRunner().invoke(app, [*command, '--help']).exit_code == 0\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)
