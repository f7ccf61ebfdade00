"""Shell completion: commands, options, models, columns."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from batchgen.cli import app


def offered(line: str) -> list[str]:
    """Return what bash offers for the last word of the line."""
    words = line.split(" ")
    environment = {
        "_BATCHGEN_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    return CliRunner().invoke(app, prog_name="batchgen", env=environment).stdout.split()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "questions.csv"
    path.write_text("question,answer,number\nWhy?,x,1\n")
    return path


def test_commands_and_options_are_offered() -> None:
    assert offered("batchgen ru") == ["run"]
    assert offered("batchgen run --max-new") == ["--max-new-tokens"]


def test_models_are_offered_by_name_and_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models--owner--name").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert offered("batchgen run --model ")[:3] == ["bundled", "gpt2", "owner/name"]
    assert offered("batchgen verify --model own") == ["owner/name"]


def test_folders_on_the_way_to_a_model_are_offered(tmp_path: Path) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "config.json").write_text("{}")
    assert offered(f"batchgen run --model {tmp_path}/mod") == [f"{tmp_path}/models/"]
    assert offered(f"batchgen run --model {tmp_path}/models/") == [f"{tmp_path}/models/mine"]


@pytest.mark.parametrize("option", ["--field", "--id-field", "--choices-field"])
def test_the_columns_of_the_input_are_offered(option: str, table: Path) -> None:
    assert offered(f"batchgen run {table} {option} ") == ["question", "answer", "number"]
    assert offered(f"batchgen run {table} {option} n") == ["number"]


def test_columns_are_not_offered_where_no_input_is_known(tmp_path: Path) -> None:
    broken = tmp_path / "rows.jsonl"
    broken.write_bytes(b"\xff\xfe{")
    assert offered("batchgen run --field ") == []
    assert offered(f"batchgen run {broken} --field ") == []
