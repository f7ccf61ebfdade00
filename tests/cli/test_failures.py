"""Unexpected errors: one line, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from transformers import AutoModelForCausalLM

from batchgen import BatchgenError, generate, run
from batchgen.cli.lazy import MAY_BE_EMPTY, SUMMARIES, LazyCommand
from batchgen.errors import ModelError, UsageError
from batchgen.machine.limits import Bound
from batchgen.model.find import BUNDLED_FOLDER
from tests.support.command import failure, invoke

COMMANDS = ("run", "plan", "inspect", "verify")


class PanicException(BaseException):
    """What a library in Rust raises when it panics."""


def raising(error: BaseException) -> Callable[..., NoReturn]:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise error

    return fail


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("error", [KeyError("n_heads"), PanicException("index out of bounds\nmore"), SystemExit(1)])
def test_an_error_that_nobody_foresaw_is_one_line(
    monkeypatch: pytest.MonkeyPatch, command: str, error: BaseException
) -> None:
    monkeypatch.setattr("batchgen.model.checkpoint.check_files", raising(error))
    line = failure(invoke(command, "-p", "My dog is", "--model", "bundled"), 1)
    assert type(error).__name__ in line
    assert "in read_checkpoint, checkpoint.py:" in line


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("unable to open file <model>: Too many open files (24)"), "too many open files: allow more"),
        (OSError(24, "Too many open files", "/lib/x.py"), "too many open files: allow more"),
        (RuntimeError("unable to mmap 9 bytes from <model>: Cannot allocate memory (12)"), "out of memory: give this"),
        (
            ImportError("libtorch_cpu.so: failed to map segment from shared object"),
            "out of memory: give this process more",
        ),
    ],
)
def test_what_the_machine_refuses_is_said_in_words(
    monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    monkeypatch.setattr("batchgen.model.checkpoint.check_files", raising(error))
    line = failure(invoke("plan", "-p", "My dog is", "--model", "bundled"), 1)
    assert line.startswith(f"batchgen: error: {says}")


@pytest.mark.skipif(os.name != "posix", reason="others keep a folder that is in use")
def test_a_working_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    gone = "import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')"
    code = f"{gone}; from batchgen.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "batchgen: error: the working folder does not exist any more: cd to another one\n"


def test_the_place_of_an_error_is_in_this_package_not_in_a_folder_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    namespace: dict[str, Any] = {}
    exec(compile("def fail(*_, **__): raise KeyError('x')", "/home/me/batchgen/fail.py", "exec"), namespace)
    monkeypatch.setattr("batchgen.model.checkpoint.check_files", namespace["fail"])
    assert "in read_checkpoint, checkpoint.py:" in failure(invoke("plan", "-p", "x", "--model", "bundled"), 1)


def test_a_traceback_is_there_for_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchgen.model.checkpoint.check_files", raising(KeyError("n_heads")))
    monkeypatch.setenv("BATCHGEN_TRACEBACK", "1")
    assert isinstance(invoke("plan", "-p", "x", "--model", "bundled").exception, KeyError)


@pytest.fixture
def spoiled(tmp_path: Path) -> Callable[..., Path]:
    """Copy the bundled model with other values in its config."""

    def spoil(**values: object) -> Path:
        folder = Path(shutil.copytree(BUNDLED_FOLDER, tmp_path / "model"))
        config = folder / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | values))
        return folder

    return spoil


@pytest.mark.parametrize("command", COMMANDS)
def test_heads_that_do_not_divide_are_refused_by_name(spoiled: Callable[..., Path], command: str) -> None:
    folder = spoiled(num_attention_heads=4, num_key_value_heads=3)
    line = failure(invoke(command, "-p", "My dog is", "--model", folder), 1)
    assert f"{folder}/config.json: num_attention_heads 4 is not a multiple of num_key_value_heads 3" in line


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", raising(AssertionError("the weights were loaded")))


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("command", ["run", "verify"])
def test_too_little_memory_is_said_before_the_weights_are_loaded(command: str) -> None:
    line = failure(invoke(command, "-p", "My dog is", "--model", "bundled", "--memory", "10M"), 1)
    assert "--memory 10M is too small for bundled: its weights need " in line


@pytest.mark.usefixtures("no_weights")
def test_so_it_is_in_python() -> None:
    with pytest.raises(ModelError, match=r"^memory 10M is too small for bundled"):
        generate("My dog is", "bundled", memory="10M")


@pytest.mark.parametrize("command", ["run", "plan", "inspect", "verify"])
def test_a_number_that_no_computer_holds_is_one_line(command: str) -> None:
    line = failure(invoke(command, "-p", "x", "--model", "bundled", "--limit", 10**30), 2)
    assert "'--limit'" in line
    assert "is larger than 9223372036854775807" in line


@pytest.mark.usefixtures("no_weights")
def test_workers_are_counted_with_their_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchgen.model.weights.memory_bounds", lambda *_: [Bound("MemAvailable", 4 * 2**30)])
    line = failure(invoke("run", "-p", "x", "--model", "bundled", "--workers", 40), 1)
    assert "40 workers with bundled in float32 need 1" in line
    assert "try fewer --workers" in line


@pytest.mark.parametrize(("limit", "problem"), [(2.5, "limit must be a whole number"), (0, "limit 0 is less than 1")])
def test_a_limit_in_python_is_checked(tmp_path: Path, limit: float, problem: str) -> None:
    (tmp_path / "rows.txt").write_text("x\n")
    with pytest.raises((BatchgenError, ValueError), match=problem):
        run(tmp_path / "rows.txt", output=tmp_path / "o.jsonl", model="bundled", limit=limit)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in SUMMARIES if name != "help"])
def test_an_empty_value_is_refused_by_name_and_never_taken_for_the_working_folder(name: str) -> None:
    command = LazyCommand(name)
    files = ["a.jsonl", "b.jsonl"][
        : sum(parameter.nargs == 1 for parameter in command.params if is_argument(parameter))
    ]
    for parameter in command.params:
        if is_argument(parameter) or parameter.is_flag or parameter.name in MAY_BE_EMPTY:
            continue
        for words in ([parameter.opts[0], ""], [f"{parameter.opts[0]}="]):
            with pytest.raises(UsageError, match=f"{min(parameter.opts, key=len)} is empty: is a shell variable unset"):
                command.make_context(name, [*files, *words])
    for place in range(len(files)):
        with pytest.raises(UsageError, match="is empty: is a shell variable unset"):
            command.make_context(name, [*files[:place], "", *files[place + 1 :]])


def is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")
