"""A run's engine choice is in its store and manifest, and a resumed run continues with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from batchgen.engines import ready
from batchgen.machine.limits import cpu_name
from batchgen.records import BATCH_INVARIANT
from batchgen.runs.output import open_store
from batchgen.runs.target import Target
from tests.support.command import failure, invoke, run

PROMPTS = "It will rain in the\nMy dog is\nOnce upon a time\nThe old king\n"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text(PROMPTS)
    return path


def begin(prompts: Path, output: Path, *options: object) -> None:
    """Start a run that is interrupted after two rows."""
    assert run(prompts, "-o", output, "--limit", 2, "--keep-store", *options).exit_code == 0
    output.unlink()


def engine_of(prompts: Path, output: Path, *options: object) -> dict[str, Any]:
    """Return the engine in the manifest of a whole or resumed run."""
    manifest = output.with_suffix(".manifest")
    assert run(prompts, "-o", output, "--manifest", manifest, *options).exit_code == 0
    engine: dict[str, Any] = json.loads(manifest.read_text())["engine"]
    return engine


def test_a_manifest_says_what_the_engine_was_made_of(prompts: Path, tmp_path: Path) -> None:
    engine = engine_of(prompts, tmp_path / "out.jsonl", "--batch-size", 3)
    assert engine == {
        "engine": "continuous", "kernels": "fused", "batching": "slots", "rows": 3, "threads": 1,
        "share_prefixes": True, "bits": BATCH_INVARIANT, "processor": cpu_name(),
    }  # fmt: skip


def test_a_run_says_what_its_rows_bits_depend_on(prompts: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    found = {}
    for option in ("--exact", "--no-exact"):
        output = tmp_path / f"{option}.jsonl"
        assert run(prompts, "-o", output, "--stats", stats, option).exit_code == 0
        facts = json.loads(stats.read_text())
        found[option] = (facts["bits"], facts["near_ties_decided_alone"])
    assert found == {
        "--exact": (BATCH_INVARIANT, True),
        "--no-exact": ("may depend on the batch: exactness is off", False),
    }


def test_a_run_that_was_begun_exact_goes_on_so(prompts: Path, tmp_path: Path) -> None:
    begin(prompts, tmp_path / "out.jsonl")
    result = run(prompts, "-o", tmp_path / "out.jsonl", "--resume", "--no-exact")
    assert result.exit_code == 1
    assert "was started with --exact, but now without it" in result.stderr


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_goes_on_with_the_engine_of_its_beginning(prompts: Path, tmp_path: Path, dtype: str) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    own = ("--dtype", dtype)
    run(prompts, "-o", whole, "--engine", "reference", *own)
    begin(prompts, output, "--engine", "reference", *own)
    assert engine_of(prompts, output, "--resume", *own)["engine"] == "reference"
    if dtype == "float32":
        assert output.read_bytes() == whole.read_bytes()


def test_a_resumed_run_follows_what_was_chosen_and_not_what_would_be_chosen_now(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.jsonl"
    monkeypatch.setattr(ready, "kept_rows", lambda *words: 3)
    begin(prompts, output)
    monkeypatch.setattr(ready, "kept_rows", lambda *words: 2)
    limits: list[int] = []
    make = ready._limits

    def watch(*arguments: Any) -> Any:
        made = make(*arguments)
        limits.append(made.most_rows)
        return made

    monkeypatch.setattr(ready, "_limits", watch)
    assert engine_of(prompts, output, "--resume")["rows"] == 3
    assert limits == [3]


def test_memory_that_is_short_now_does_not_change_the_engine(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.jsonl"
    begin(prompts, output)
    monkeypatch.setattr(ready, "room_bytes", lambda model, options: 100 * 2**20)
    assert engine_of(prompts, tmp_path / "other.jsonl")["engine"] == "reference"
    assert engine_of(prompts, output, "--resume")["engine"] == "continuous"


def test_another_engine_is_said_in_float32_and_refused_in_16_bits(prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    begin(prompts, output)
    resumed = run(prompts, "-o", output, "--resume", "--engine", "reference")
    assert resumed.exit_code == 0
    assert "the run was started with engine continuous, now reference: in float32" in resumed.stderr
    output.unlink()
    begin(prompts, output, "--dtype", "bfloat16", "--overwrite")
    line = failure(run(prompts, "-o", output, "--resume", "--dtype", "bfloat16", "--engine", "reference"), 1)
    assert "started with engine continuous" in line
    assert "remove --engine, or start over with --overwrite" in line


def test_a_change_of_rows_is_said_where_bits_depend_on_it(prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    for exact, is_said in (("--no-exact", True), ("--exact", False)):
        own = ("--dtype", "bfloat16", exact)
        begin(prompts, output, *own, "--batch-size", 4, "--overwrite")
        resumed = run(prompts, "-o", output, "--resume", *own, "--batch-size", 2)
        assert (
            "was started with rows 4, now 2: in bfloat16 the remaining rows may differ" in resumed.stderr
        ) == is_said
        output.unlink()


def test_a_run_that_scores_goes_on_with_what_it_was_made_of(prompts: Path, tmp_path: Path) -> None:
    output, manifest = tmp_path / "out.jsonl", tmp_path / "out.manifest"
    words = ("score", prompts, "--model", "bundled", "-o", output)
    assert invoke(*words, "--limit", 2, "--keep-store", "--batch-size", 3).exit_code == 0
    output.unlink()
    assert invoke(*words, "--resume", "--manifest", manifest).exit_code == 0
    engine = json.loads(manifest.read_text())["engine"]
    assert (engine["engine"], engine["kernels"], engine["rows"]) == ("scoring", "packed", 3)


def test_a_run_that_starts_anew_chooses_anew(prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    begin(prompts, output, "--engine", "reference")
    assert engine_of(prompts, output, "--overwrite")["engine"] == "continuous"


def test_a_store_without_the_choice_takes_the_first_that_is_made(prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    begin(prompts, output)
    with open_store(Target(output, "jsonl", resume=True)) as store:
        store.note("engine", {"engine": "of another version"})
    assert engine_of(prompts, output, "--resume")["engine"] == "continuous"
