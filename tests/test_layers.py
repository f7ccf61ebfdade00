"""Imports run strictly down the layers of the design; heavy libraries are loaded where they are used."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchgen

PACKAGE = Path(batchgen.__file__).parent
# Bottom first. A module may import from lower layers only; a room that is a folder counts as one, but for the engines.
LAYERS = [
    {"records", "errors", "process", "cgroups", "visible"},
    {"padding", "memory", "probes", "speeds", "row_sampling", "compression", "templates", "config"},
    {"readers", "writers", "model", "render", "page", "engines.slot_attention", "engines.draws"},
    {"store", "engines.kv_cache", "engines.linear", "engines.prefixes", "engines.sampling", "mistakes"},
    {"manifest", "planner", "engines.backoff", "engines.slot_model"},
    {"engines.continuous", "engines.reference", "engines.parts"},
    {"engines"},
    {"engines.worker"},
    {"engines.pool"},
    {"pipeline"},
    {"inspector", "verify", "forecast", "doctor", "bench", "ray_backend"},
    {"cli"},
]
RANKS = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or not path.name.startswith("__"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The room of a module, or of a name in it."""
    two = ".".join(module.split(".")[:2])
    return two if two in RANKS else module.split(".")[0]


def imports(path: Path, *, only_at_import: bool = False) -> Iterator[str]:
    """Names of modules imported anywhere in a file, or only by importing it; type-checking imports do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        or (only_at_import and isinstance(node, ast.FunctionDef))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_down_the_layers(path: Path) -> None:
    room = room_of(name_of(path))
    inner = {name.removeprefix("batchgen.") for name in imports(path) if name.startswith("batchgen.")}
    others = {room_of(name) for name in inner} & set(RANKS) - {room}
    assert {other for other in others if RANKS[other] >= RANKS[room]} == set()


def test_every_module_stands_on_a_layer() -> None:
    assert {room_of(name_of(path)) for path in MODULES} == set(RANKS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_typer_and_rich_stay_in_their_rooms(path: Path) -> None:
    tops = {name.split(".")[0] for name in imports(path)}
    room = name_of(path).split(".")[0]
    assert "typer" not in tops or room == "cli"
    assert "rich" not in tops or room in ("cli", "render")


# Themselves imported late.
LATE_ENGINES = ("continuous", "draws", "kv_cache", "linear", "reference", "sampling", "slot_attention", "slot_model")
LATE_VIEWS = {f"inspector.{name}" for name in ("attention", "sides", "watch", "whole")}
LATE = {f"engines.{name}" for name in LATE_ENGINES} | LATE_VIEWS | {"model.footprint"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_torch_and_transformers_load_where_they_are_used(path: Path) -> None:
    tops = {name.split(".")[0] for name in imports(path, only_at_import=True)}
    if name_of(path) not in LATE:
        assert not tops & {"torch", "transformers", "huggingface_hub", "safetensors", "psutil"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_what_imports_torch_is_imported_late(path: Path) -> None:
    names = {name.removeprefix("batchgen.") for name in imports(path, only_at_import=True)}
    assert name_of(path) in LATE or not names & LATE


def test_public_names_are_there() -> None:
    for name in batchgen.__all__:
        assert getattr(batchgen, name) is not None


def test_no_library_function_shares_a_modules_name() -> None:
    assert not set(batchgen.__all__) & {name_of(path).split(".")[0] for path in MODULES}
