"""Rows with the same id have samples of their own, the same however they run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from batchgen import generate
from tests.support.command import records, run

ROW = {"id": "same", "prompt": "My dog is"}
SAMPLED = ("--temperature", 1, "--seed", 3)


@pytest.fixture
def equal(tmp_path: Path) -> Path:
    """Two files with six rows in total, five of which are equal."""
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "a.jsonl").write_text(f"{json.dumps(ROW)}\n" * 3)
    (folder / "b.jsonl").write_text(f'{{"prompt": "My dog is"}}\n{json.dumps(ROW)}\n{json.dumps(ROW)}\n')
    return folder


def texts(*arguments: object) -> list[str]:
    return [row["text"] for row in records(run(*arguments, *SAMPLED))]


def test_rows_with_one_id_have_samples_of_their_own(equal: Path) -> None:
    assert len(set(texts(equal))) == 6


def test_the_first_row_of_an_id_has_the_sample_that_it_has_alone(equal: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.jsonl"
    alone.write_text(json.dumps(ROW))
    assert texts(equal)[:1] == texts(alone)


@pytest.mark.parametrize("options", [("--batch-size", 1), ("--engine", "reference"), ("--no-share-prefixes",)], ids=str)
def test_their_samples_do_not_depend_on_the_batch(equal: Path, options: tuple[object, ...]) -> None:
    assert texts(equal, *options) == texts(equal)


@pytest.mark.parametrize("num_rows", [2, 4])
def test_they_are_the_same_after_a_resume(equal: Path, tmp_path: Path, num_rows: int) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run(equal, "-o", whole, *SAMPLED)
    run(equal, "-o", output, "--limit", num_rows, "--keep-store", *SAMPLED)
    output.unlink()
    assert run(equal, "-o", output, "--resume", *SAMPLED).exit_code == 0
    assert output.read_bytes() == whole.read_bytes()


def test_python_counts_ids_as_the_command_does(equal: Path) -> None:
    results = generate([ROW] * 3, "bundled", max_new_tokens=5, temperature=1, seed=3)
    assert [result.text for result in results] == texts(equal)[:3]


def test_greedy_rows_with_one_id_have_one_text(equal: Path) -> None:
    assert len({row["text"] for row in records(run(equal))}) == 1
