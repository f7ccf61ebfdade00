"""`doctor --model`: how a model would run, without its weights."""

from __future__ import annotations

import json
import shutil
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from batchgen.cli import app
from batchgen.doctor.facts import Machine, ModelFacts, Processor
from batchgen.doctor.network import Unloaded, examine_model
from batchgen.engines.continuous.linear import KERNELS
from batchgen.engines.trial.verdicts import keep_verdict
from batchgen.model import Checkpoint, open_checkpoint
from batchgen.model.find import BUNDLED_FOLDER
from batchgen.records import BATCH_INVARIANT
from batchgen.render.doctor import print_model
from tests.support.families import config_of

PROCESSOR = Processor("Some CPU", 8, 16, 8, None, "AVX2", ())
MACHINE = Machine(PROCESSOR, (), "cpu", "cpu", speeds=(), ram_bytes=None, held_bytes=None, bounds=())


def folder_of(family: str, folder: Path) -> Checkpoint:
    """A model folder without weights."""
    for path in BUNDLED_FOLDER.glob("tokenizer*"):
        shutil.copy(path, folder)
    config_of(family).save_pretrained(folder)
    return open_checkpoint(str(folder), weights=False)


def drawn(facts: ModelFacts) -> str:
    console = Console(file=StringIO(), width=120)
    print_model(console, facts)
    return console.file.getvalue()


def test_a_model_with_slots_is_described(tmp_path: Path) -> None:
    facts = examine_model(folder_of("gemma3", tmp_path), "cpu")
    assert (facts.family, facts.engine, facts.why_no_slots) == ("gemma3_text", "continuous", None)
    assert facts.cache_bytes_per_token == 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, width, float32
    assert facts.windows == ((40, 1), (None, 1))
    assert "1 of 2 layers see at most 40 tokens" in drawn(facts)
    assert "KV cache      256 B per token in float32" in drawn(facts)


def test_a_model_with_long_rope_has_slots(tmp_path: Path) -> None:
    facts = examine_model(folder_of("phi3_longrope", tmp_path), "cpu")
    assert (facts.engine, facts.why_no_slots) == ("continuous", None)


def test_a_model_without_slots_says_why(tmp_path: Path) -> None:
    facts = examine_model(folder_of("bloom", tmp_path), "cpu")
    assert facts.engine == "reference"
    assert "engine        reference: its attention cannot be replaced" in drawn(facts)


def test_states_are_counted_per_row(tmp_path: Path) -> None:
    facts = examine_model(folder_of("mamba", tmp_path), "cpu")
    assert (facts.cache_bytes_per_token, facts.context_length, facts.windows) == (0, None, ())
    assert facts.state_bytes_per_row == 2 * 64 * (8 + 4) * 4  # layers, inner width, states and convolution, float32
    assert "state         6 KiB per row" in drawn(facts)


@pytest.mark.parametrize("kernels", KERNELS)
def test_it_knows_what_an_earlier_run_found_with_any_kernels(tmp_path: Path, kernels: str) -> None:
    checkpoint = folder_of("llama", tmp_path)
    model = Unloaded(checkpoint, torch.device("cpu"), "float32")
    facts = examine_model(checkpoint, "cpu")
    assert (facts.rows_of_a_batch, facts.bits) == (None, None)
    assert "bits          not tried yet" in drawn(facts)
    keep_verdict(model, f"continuous, {kernels}", "right")
    keep_verdict(model, f"bits, {kernels}", BATCH_INVARIANT)
    facts = examine_model(checkpoint, "cpu")
    assert (facts.rows_of_a_batch, facts.bits) == ("any lengths", BATCH_INVARIANT)
    assert "bits          batch-invariant" in drawn(facts)


@pytest.mark.parametrize(
    ("kept", "rows"), [("only rows of the same length together", "equal lengths only"), ("unknown", None)]
)
def test_it_knows_that_slots_were_wrong(tmp_path: Path, kept: str, rows: str | None) -> None:
    model = Unloaded(folder_of("llama", tmp_path), torch.device("cpu"), "float32")
    keep_verdict(model, "continuous, fused", "in a trial, slots gave other logits")
    keep_verdict(model, "continuous, packed", reason := "in a trial, slots failed: TypeError: no cache like this")
    keep_verdict(model, "reference", kept)
    facts = examine_model(model.checkpoint, "cpu")
    assert (facts.engine, facts.why_no_slots, facts.rows_of_a_batch) == ("reference", reason, rows)


def test_the_command_says_it_of_a_folder_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of("llama", tmp_path)
    monkeypatch.setattr("batchgen.doctor.examine_machine", lambda *_: MACHINE)
    result = CliRunner().invoke(app, ["doctor", "--device", "cpu", "--model", str(tmp_path), "--json"])
    facts = json.loads(result.stdout)
    assert (facts["model"]["family"], facts["model"]["engine"], facts["chat"]["templates"]) == (
        "llama",
        "continuous",
        [],
    )
