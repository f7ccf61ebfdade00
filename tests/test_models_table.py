"""docs/models.md is correct: `make test-models` tries all of its families, `make models` writes it again."""

from __future__ import annotations

from dataclasses import replace

import models_table
import pytest
import torch
from transformers import __version__

from batchgen.machine.limits import cpu_name
from batchgen.model import Checkpoint
from batchgen.records import BATCH_INVARIANT, bits_text
from tests.support.families import OPTIONS, family_of

TEXT = models_table.PAGE.read_text(encoding="utf-8")
COMMITTED = {row.family.strip("`"): row for row in models_table.rows_of(TEXT)}
QUICK = ("opt", "bloom")  # one with slots, one without; others run in tests/engines


def test_the_page_has_every_config_and_nothing_else() -> None:
    assert sorted(COMMITTED) == sorted(OPTIONS)
    assert len({family_of(name) for name in OPTIONS}) >= 60


def test_the_page_is_what_the_tool_makes_of_its_rows() -> None:
    [version] = {line.split(" with ")[1].split(":")[0] for line in TEXT.splitlines() if line.startswith("Each row")}
    [processor] = {line.split(" are of ")[1].rstrip(".") for line in TEXT.splitlines() if line.startswith("Bits may")}
    assert models_table.page(COMMITTED.values(), version, processor) == TEXT


def test_bits_are_shown_as_a_run_promises_them() -> None:
    found = {torch.float32: BATCH_INVARIANT, torch.bfloat16: bits_text("16 bits")}
    assert models_table.same_bits(found) == "float32; bfloat16 may depend on the batch: 16 bits"
    assert models_table.same_bits(dict.fromkeys(found, BATCH_INVARIANT)) == "float32, bfloat16"


def test_every_family_gets_what_generate_gives_each_row_alone() -> None:
    assert {row.parity for row in COMMITTED.values()} == {f"{len(models_table.PROMPTS)} of {len(models_table.PROMPTS)}"}


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OPTIONS if name not in QUICK)]
)
def test_a_family_does_what_the_page_says(name: str, checkpoint: Checkpoint) -> None:
    found, said = models_table.find_row(name, checkpoint), COMMITTED[name]
    if found is None:
        pytest.skip(f"the installed transformers has no {family_of(name)}")
    if f"transformers {__version__}:" not in TEXT:  # another version may use another engine
        said = replace(found, parity=said.parity)
    if f"are of {cpu_name()}." not in TEXT:
        said = replace(said, bits=found.bits)
    assert found == said
