"""What is imported is declared, and the lowest allowed versions are older than the pinned ones."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import lowest
import pytest
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
ALONG = {"fsspec": "ray", "backports": "backports.zstd"}  # modules of other libraries, or with other names


def name_of(requirement: str) -> str:
    return re.split(r"[\[>;]", requirement)[0].replace("_", "-").lower()


def modules_in(nodes: Iterable[ast.AST]) -> set[str]:
    modules = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(str(node.module).split(".")[0])
        elif isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
    return modules - set(sys.stdlib_module_names) - {"batchgen"}


def imported() -> set[str]:
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "batchgen").rglob("*.py"))
    return set().union(*(modules_in(ast.walk(tree)) for tree in trees))


def test_what_is_imported_is_declared() -> None:
    declared = {
        name_of(line)
        for extra in (
            PROJECT["dependencies"],
            *(EXTRAS[name] for name in ("constrained", "fast", "parquet", "zstd", "ray", "lm-eval")),
        )
        for line in extra
    }
    assert {ALONG.get(module, module).replace("_", "-").lower() for module in imported()} <= declared


def test_what_is_declared_is_imported() -> None:
    assert {name_of(line) for line in PROJECT["dependencies"]} <= {module.replace("_", "-") for module in imported()}


def test_what_pytest_collects_for_doctests_imports_no_extra_that_make_test_does_not_install() -> None:
    names = [
        re.split(r"[\[>;]", line)[0]
        for extra in ("constrained", "fast", "parquet", "zstd", "test")
        for line in EXTRAS[extra]
    ]
    installed = {name_of(line) for line in PROJECT["dependencies"]} | {name_of(name) for name in names}
    ignored = {
        word.partition("=")[2] for word in PYPROJECT["tool"]["pytest"]["ini_options"]["addopts"] if "--ignore=" in word
    }
    own = {path.stem for path in (ROOT / "tools").iterdir()} | {"batchgen", "benchmarks", "tests", "torture"}
    for path in (*(ROOT / "batchgen").rglob("*.py"), *(ROOT / "tools").rglob("*.py")):
        if str(path.relative_to(ROOT)) not in ignored:
            wanted = modules_in(ast.parse(path.read_text(encoding="utf-8")).body) - own
            assert {ALONG.get(module, module).replace("_", "-").lower() for module in wanted} <= installed, path


@pytest.mark.parametrize("line", lowest.lowest(PROJECT, [*EXTRAS]))
def test_a_floor_is_not_above_what_is_pinned(line: str) -> None:
    name, _, floor = line.partition(";")[0].partition("==")
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {name_of(pin.partition("==")[0]): pin.partition("==")[2] for pin in pins if "==" in pin}
    if name_of(name) in pinned:  # except the peers of the benchmarks
        assert Version(floor) <= Version(pinned[name_of(name)])


def test_machines_with_a_gpu_of_this_year_are_allowed() -> None:
    floors = dict(line.split("==") for line in lowest.lowest(PROJECT, []))
    assert Version(floors["torch"]) <= Version("2.11")
    assert Version(floors["transformers"]) <= Version("5.17")
