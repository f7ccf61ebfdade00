"""`rerun`: repeat a run as its manifest says, and show what differs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from batchgen.cli import rerun
from batchgen.formats.parquet_facts import read_parquet_facts
from tests.support.command import failure, invoke, run


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in this process; another one would take seconds to import torch."""

    def run_again(words: Sequence[str], folder: Path) -> int:
        monkeypatch.chdir(folder)
        return invoke(*words).exit_code

    monkeypatch.setattr(rerun, "run_again", run_again)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where a run was started: its prompts, and a manifest beside them."""
    (tmp_path / "p.txt").write_text("My dog is\nIt will rain\n")
    monkeypatch.chdir(tmp_path)
    assert run("p.txt", "-o", "out.jsonl", "--manifest", "manifest.json").exit_code == 0
    return tmp_path


@pytest.mark.parametrize("name", ["manifest.json", "out.jsonl"])
def test_the_same_run_gives_the_same_rows(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    said = invoke("rerun", folder / name)
    assert said.exit_code == 0
    assert "0 of 2 rows differ" in said.stdout
    assert (folder / "out.rerun.jsonl").read_bytes() == (folder / "out.jsonl").read_bytes()


def test_what_has_changed_since_is_shown(folder: Path) -> None:
    (folder / "p.txt").write_text("My dog is\nIt will rain\nOnce\n")
    said = invoke("rerun", "out.jsonl", "-o", "new.csv")
    assert said.exit_code == 4
    assert "the input has changed since then" in said.stderr
    assert "0 of 2 rows differ (100.0% the same), 0 only in A, 1 only in B" in said.stdout
    assert "new.csv exists" in failure(invoke("rerun", "out.jsonl", "-o", "new.csv"), 1)
    assert invoke("rerun", "out.jsonl", "-o", "new.csv", "--overwrite").exit_code == 4


def test_a_run_that_fails_gives_its_exit_code(folder: Path) -> None:
    (folder / "p.txt").unlink()
    assert invoke("rerun", "out.jsonl").exit_code == 1


def test_a_manifest_that_names_no_command_is_refused(folder: Path) -> None:
    facts = json.loads((folder / "manifest.json").read_text())
    del facts["command"]
    (folder / "manifest.json").write_text(json.dumps(facts))
    assert "does not record its command" in failure(invoke("rerun", "manifest.json"), 1)
    assert "cannot be read" in failure(invoke("rerun", "nothing.json"), 1)


def test_without_its_output_there_is_nothing_to_compare_with(folder: Path) -> None:
    (folder / "out.jsonl").unlink()
    assert "there is nothing to compare with" in failure(invoke("rerun", "manifest.json"), 1)
    run("p.txt", "--manifest", "other.json")
    assert "had no -o" in failure(invoke("rerun", "other.json"), 1)


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("run p.txt -o out.jsonl --overwrite", "run p.txt"),
        ("run -oout.jsonl p.txt --manifest m.json --seed 1", "run p.txt --seed 1"),
        ("run --output=out.jsonl --stats=s.json --keep-store p.txt", "run p.txt"),
    ],
)
def test_a_command_is_left_without_its_files(words: str, left: str) -> None:
    assert rerun._value_of(words.split(), rerun.OUTPUT, Path("m")) == "out.jsonl"
    assert list(rerun._again(words.split())) == left.split()


def test_parquet_and_sqlite_carry_what_they_were_made_of(folder: Path) -> None:
    for name in ("a.parquet", "a.db"):
        run("p.txt", "-o", name)
        (folder / f".{name}.run").unlink(missing_ok=True)
        said = invoke("rerun", name)
        assert said.exit_code == 0
        assert "0 of 2 rows differ" in said.stdout
    facts = read_parquet_facts(folder / "a.parquet")
    assert facts["model"]["model"] == "bundled"
    assert facts["engine"]["engine"] == "continuous"
    assert not facts.keys() & {"stats", "started", "finished"}
    assert facts["command"].keys() == {"words"}  # the same bytes wherever it runs
    assert read_parquet_facts(folder / "p.txt") == {}


def test_a_resumed_parquet_has_the_same_bytes(folder: Path) -> None:
    run("p.txt", "-o", "a.parquet", "--keep-store")
    whole = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").unlink()
    run("p.txt", "-o", "a.parquet", "--keep-store", "--resume")
    assert (folder / "a.parquet").read_bytes() == whole


def test_scores_are_run_again_too(folder: Path) -> None:
    assert invoke("score", "p.txt", "--model", "bundled", "-o", "s.jsonl", "--html", "s.html").exit_code == 0
    said = invoke("rerun", "s.jsonl")
    assert said.exit_code == 0, said.stderr
    assert "0 of 2 rows differ" in said.stdout
    assert invoke("page", "s.jsonl").exit_code == 0
    assert "log-probability" in (folder / "s.jsonl.html").read_text()
