"""Suggestions for a model name that does not exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchgen.model.nearby import near_model


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    for name in ("models--HuggingFaceTB--SmolLM2-135M-Instruct", "models--openai-community--gpt2", "version.txt"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("Bundled", "bundled"),
        ("bundeld", "bundled"),
        ("gpt-2", "gpt2"),
        ("GPT2", "gpt2"),
        ("SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("HuggingFaceTB/SmolLM2-135M-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("HuggingFaceTB/SmolLM-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("zzqx", None),
        ("meta-llama/Llama-3.1-8B", None),
        ("x" * 5000, None),
    ],
)
def test_a_model_is_suggested_by_spelling_or_by_its_last_part(cache: Path, given: str, meant: str | None) -> None:
    assert near_model(given, cache) == meant


def test_without_a_cache_there_is_the_bundled_one(tmp_path: Path) -> None:
    assert near_model("bundle", tmp_path / "none") == "bundled"


def test_a_folder_near_by_is_suggested_where_it_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert near_model(str(tmp_path / "model" / "mine")) is None
    (tmp_path / "models" / "mine" / "config.json").write_text("{}")
    assert near_model(str(tmp_path / "model" / "mine")) == str(tmp_path / "models" / "mine")
