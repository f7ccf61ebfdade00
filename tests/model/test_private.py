"""Private names of other libraries are used in one file only, exist, and can be replaced."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

import batchgen
from batchgen.model import private
from tests.support.processes import check_python

PACKAGE = Path(batchgen.__file__).parent
SOURCES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
PYTHONS = {"_exit"}  # os._exit


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name != "_"


@cache
def own_names() -> frozenset[str]:
    """Return private names that batchgen defines: functions, classes, variables, attributes of `self` or `cls`."""
    names = set()
    for node in (node for tree in SOURCES.values() for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return frozenset(filter(is_private, names))


def foreign_names(tree: ast.AST) -> Iterator[str]:
    """Return private attributes and modules of other libraries that a file names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own_names() | PYTHONS:
            yield node.attr
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (part for module in modules for part in module.split(".") if is_private(part))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_of_libraries_stand_in_one_file(path: Path) -> None:
    if path.name != "private.py":
        assert set(foreign_names(SOURCES[path])) == set()


def test_the_installed_libraries_have_every_name() -> None:
    assert private.missing_names() == []


def test_a_name_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(private._NAMES, "torch: _soon_gone", lambda: torch._soon_gone)
    assert private.missing_names() == ["torch: _soon_gone"]


COMPILES = """
import sys
from batchgen.model.private import spare_imports
spare_imports()
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.masking_utils import TransformGetItemToIndex
config = GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=64, bos_token_id=0, eos_token_id=0)
model, ids = GPT2LMHeadModel(config).eval(), torch.ones(2, 3, dtype=torch.int64)
assert model.transformer.wte.weight.std() > 0
new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3)
assert not {"torch._dynamo", "torch.distributed.tensor"} & set(sys.modules)
model.save_pretrained(sys.argv[1])
again = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
assert torch.equal(again.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3), new)
compiled = torch.compile(model, backend="eager")
assert torch.allclose(compiled(ids).logits, model(ids).logits)
assert torch.distributed.is_available() and torch.compiler.disable.__module__ == "torch.compiler"
assert type(TransformGetItemToIndex()).__module__ == "torch._dynamo._trace_wrapped_higher_order_op"
assert sys.modules["torch._dynamo"] is torch._dynamo
"""


def test_models_generate_save_and_compile_with_spared_imports(tmp_path: Path) -> None:
    check_python(COMPILES, tmp_path)


def test_importing_batchgen_changes_no_imports() -> None:
    imports = "import batchgen, batchgen.model.private, batchgen.engines, batchgen.pipeline"
    check_python(f"import sys; before = list(sys.meta_path); {imports}; assert sys.meta_path == before")
