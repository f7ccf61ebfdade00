"""The folders and layers of the package, and maximum sizes of its parts.

Exceptions are listed in SAME_NAME and LONG_FILES. An entry that is no longer needed fails: remove it.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import batchgen

PACKAGE = Path(batchgen.__file__).parent
# Bottom first. A module only imports from its own folder and from lower rows.
LAYERS = [
    {"records", "errors", "text"},
    {"formats", "machine"},
    {"model"},
    {"planning"},
    {"engines"},
    {"pipeline"},
    {"runs", "bench", "doctor", "proof"},
    {"render"},
    {"cli"},
    {"lm_eval"},  # uses everything, and nothing imports it
]
RANKS = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}
MOST_FILE_LINES, MOST_FUNCTION_LINES = 300, 40

SAME_NAME: set[str] = set()
LONG_FILES: set[str] = set()

HEAVY = {"torch", "transformers", "numba", "huggingface_hub", "safetensors", "psutil", "pyarrow"}
# These load some of them at once, and are themselves imported where they are used.
LATE = {
    "model.probe",
    "engines.continuous.blocks",
    "engines.continuous.engine",
    "engines.continuous.kv_cache",
    "engines.continuous.pages",
    "engines.continuous.latents",
    "engines.continuous.layer",
    "engines.continuous.linear",
    "engines.continuous.network",
    "engines.continuous.packing",
    "engines.continuous.quantized",
    "engines.continuous.prompt_attention",
    "engines.continuous.raw_products",
    "engines.continuous.row_counts",
    "engines.continuous.row_rotary",
    "engines.continuous.rowwise",
    "engines.continuous.same_bits",
    "engines.continuous.slot_attention",
    "engines.continuous.slot_model",
    "engines.continuous.slots",
    "engines.continuous.states",
    "engines.continuous.step_view",
    "engines.compiled.attention",
    "engines.compiled.compiling",
    "engines.compiled.layers",
    "engines.compiled.int8",
    "engines.compiled.integers",
    "engines.compiled.floats",
    "engines.compiled.products",
    "engines.compiled.prompt_attention",
    "engines.compiled.prompts",
    "engines.compiled.network",
    "engines.compiled.rows",
    "engines.compiled.dots",
    "engines.compiled.sums",
    "engines.compiled.tensors",
    "engines.compiled.threads",
    "engines.compiled.tile",
    "engines.fused.block",
    "engines.fused.norm",
    "engines.fused.product",
    "engines.fused.recognize",
    "engines.fused.watch",
    "engines.int8.calibrate",
    "engines.int8.embedding",
    "engines.int8.linear",
    "engines.int8.network",
    "engines.int8.packed_rows",
    "engines.reference.engine",
    "engines.reference.processors",
    "engines.sampling.constraints",
    "engines.sampling.draws",
    "engines.sampling.filters",
    "engines.sampling.logprobs",
    "engines.sampling.penalties",
    "engines.sampling.sampler",
    "engines.scoring.bits",
    "engines.scoring.engine",
    "engines.scoring.network",
    "engines.trial.rows",
    "engines.trial.widened",
    "proof.inspector.attention",
    "proof.inspector.watch",
    "proof.inspector.whole",
}


@dataclass(frozen=True)
class Module:
    name: str  # without `batchgen.`; for a folder, its own name
    path: Path
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.name.split(".")[0]

    def imports(self, *, only_at_import: bool = False) -> set[str]:
        """Return all imported names, even those only for type checkers; or only those needed to import the module."""
        nodes = _loaded_at_import(self.tree) if only_at_import else ast.walk(self.tree)
        return {name for node in nodes for name in _imported(node)}

    def inner_imports(self, *, only_at_import: bool = False) -> set[str]:
        """Return the other modules of the package that a module imports."""
        names = {name.removeprefix("batchgen.") for name in self.imports(only_at_import=only_at_import)}
        return {module for name in names if (module := _module_of(name))} - {self.name}


def _loaded_at_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        is_typing = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not is_typing and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from _loaded_at_import(child)


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _module_of(name: str) -> str | None:
    """Return the module that `a.b.c` is, or that has the name c."""
    return next((known for known in (name, name.rpartition(".")[0]) if known in modules()), None)


@cache
def modules() -> dict[str, Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        if name not in ("", "__main__"):
            found[name] = Module(name, path, text, ast.parse(text))
    return found


ROOMS = sorted({module.room for module in modules().values() if module.path.parent != PACKAGE})


# Folders and layers.


def test_every_room_stands_on_a_layer() -> None:
    assert {module.room for module in modules().values()} == set(RANKS)


def test_sixteen_things_stand_at_the_top() -> None:
    beside = {"__init__.py", "__main__.py", "lm_eval.py", "__pycache__", "py.typed"}
    names = {path.name for path in PACKAGE.iterdir()} - beside
    assert len(names) <= 16, sorted(names)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_knows(room: str) -> None:
    assert ast.get_docstring(modules()[room].tree)


def test_imports_run_down_the_layers() -> None:
    climbing = {
        f"{module.name} imports {room}"
        for module in modules().values()
        for room in {name.split(".")[0] for name in module.inner_imports()} - {module.room}
        if RANKS[room] >= RANKS[module.room]
    }
    assert not climbing


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Modules that only import removed modules are removed, until none is left."""
    left = {name: module.inner_imports() for name, module in modules().items()}
    while done := {name for name, needed in left.items() if not needed & left.keys()}:
        left = {name: needed for name, needed in left.items() if name not in done}
    assert not left


def test_no_library_function_shares_a_modules_name() -> None:
    assert not set(batchgen.__all__) & {module.room for module in modules().values()}


def test_public_names_are_there() -> None:
    for name in batchgen.__all__:
        assert getattr(batchgen, name) is not None


# What is imported where.


@pytest.mark.parametrize(("library", "rooms"), [("typer", {"cli"}), ("rich", {"cli", "render"})])
def test_typer_and_rich_stay_in_their_rooms(library: str, rooms: set[str]) -> None:
    importing = {
        module.name for module in modules().values() if library in {name.split(".")[0] for name in module.imports()}
    }
    assert not {name for name in importing if name.split(".")[0] not in rooms}


def test_heavy_libraries_load_where_they_are_used() -> None:
    at_once = {
        module.name
        for module in modules().values()
        if HEAVY & {name.split(".")[0] for name in module.imports(only_at_import=True)}
    }
    assert at_once == LATE


def test_what_loads_heavy_libraries_is_imported_late() -> None:
    at_once = {
        f"{module.name} imports {name}"
        for module in modules().values()
        if module.name not in LATE
        for name in module.inner_imports(only_at_import=True) & LATE
    }
    assert not at_once


# Names and sizes.


def test_no_two_classes_have_the_same_name() -> None:
    names = Counter(
        node.name for module in modules().values() for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)
    )
    assert {name for name, times in names.items() if times > 1} == SAME_NAME


def test_no_file_is_long() -> None:
    long = {module.name for module in modules().values() if module.text.count("\n") > MOST_FILE_LINES}
    assert long == LONG_FILES


def test_no_function_is_long() -> None:
    long = {
        f"{module.name}.{node.name}"
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if _num_lines(node, only_body=module.room == "cli") > MOST_FUNCTION_LINES
    }
    assert not long


def _num_lines(node: ast.FunctionDef | ast.AsyncFunctionDef, *, only_body: bool) -> int:
    """Return the number of lines; a command's parameters are its options with their help, so they do not count."""
    first = node.body[0].lineno if only_body else node.lineno
    return (node.end_lineno or first) - first + 1


# The tests themselves.


def test_no_test_imports_a_test() -> None:
    """What several tests need belongs in tests/support."""
    folder = Path(__file__).parent
    tests = [*folder.rglob("test_*.py"), *folder.rglob("conftest.py")]
    names = {path.stem for path in tests}
    importing = {
        (path.name, name)
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in _imported(node)
        if names & set(name.split("."))
    }
    assert not importing


def test_no_two_test_files_have_the_same_name() -> None:
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert not {name for name, times in names.items() if times > 1}
