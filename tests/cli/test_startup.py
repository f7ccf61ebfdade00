"""What a command imports: every user waits for it at every call."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

import pytest
import typer

from batchgen.cli import app
from batchgen.cli.lazy import SUMMARIES
from tests.support.processes import check_python, modules_of

COMPILER = {"torch._dynamo", "torch._inductor", "sympy"}
DISTRIBUTED = {"torch.distributed.tensor", "torch.distributed.fsdp"}


def test_help_imports_no_command_and_no_rich() -> None:
    modules = modules_of("--help")
    assert not modules & {"torch", "transformers", "rich", "batchgen.model", "tomllib"}
    assert not modules & {f"batchgen.cli.{name}" for name in SUMMARIES}


def test_run_imports_neither_torchs_compiler_nor_its_distributed_tensors() -> None:
    modules = modules_of("run", "--model", "bundled", "-p", "My dog is", "--max-new-tokens", 2)
    assert "transformers.models.gpt2.modeling_gpt2" in modules
    assert not modules & (COMPILER | DISTRIBUTED)


def test_status_imports_nothing_that_reads_prompts_or_opens_models() -> None:
    """It is called repeatedly, while a run needs the machine."""
    code = "import sys, batchgen.cli.status, batchgen.model.private; print(*sys.modules, sep='\\n')"
    modules = set(check_python(code).stdout.splitlines())
    assert "batchgen.runs.status" in modules
    assert not modules & {"numpy", "batchgen.model.checkpoint", "batchgen.formats.reading", "importlib.metadata"}


WORKER = """
import sys
from batchgen.engines.pool.worker import ModelRecipe
from batchgen.model.find import BUNDLED_FOLDER
from batchgen.records import EngineOptions
assert not {"torch", "transformers"} & set(sys.modules)
ModelRecipe("bundled", BUNDLED_FOLDER, "cpu", "float32", EngineOptions()).make(print, lambda choice: choice)
print(*sys.modules, sep="\\n")
"""


def test_a_worker_of_a_pool_imports_neither_of_them() -> None:
    modules = set(check_python(WORKER).stdout.splitlines())
    assert "transformers.models.gpt2.modeling_gpt2" in modules
    assert not modules & (COMPILER | DISTRIBUTED)


@pytest.mark.parametrize("name", SUMMARIES)
def test_a_commands_summary_is_the_first_line_of_its_help(name: str) -> None:
    function = getattr(import_module(f"batchgen.cli.{name}"), name)
    assert str(inspect.getdoc(function)).splitlines()[0] == SUMMARIES[name]


def test_every_command_knows_its_options_before_it_runs() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert set(commands) == set(SUMMARIES)
    assert all(command.params for command in commands.values())


# For other families, trial forwards show how much memory rows take, so a plan needs torch.
WITHOUT_TORCH = [("bundled", "inspect"), ("llama", "inspect", "--json"), ("bundled", "plan", "--device", "cpu")]


@pytest.mark.parametrize("words", WITHOUT_TORCH, ids=" ".join)
def test_a_batch_and_its_plan_need_no_torch(words: tuple[str, ...], folders: dict[str, Path]) -> None:
    name, *command = words
    modules = modules_of(*command, "--model", folders.get(name, name), "-p", "My dog is", "-p", "It will rain in the")
    assert "tokenizers" in modules
    assert not modules & {"torch", "transformers", "numpy"}
