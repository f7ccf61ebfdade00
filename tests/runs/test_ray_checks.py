"""What a run on Ray refuses before it needs Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import failure, run


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    (path := tmp_path / "prompts.txt").write_text("My dog is\n")
    return path


@pytest.mark.parametrize("flag", ["--stats", "--manifest"])
@pytest.mark.parametrize(
    ("place", "why"), [("prompts.txt", "is also an input"), ("out/x", "is in the output's folder")]
)
def test_notes_replace_neither_inputs_nor_parts(prompts: Path, tmp_path: Path, flag: str, place: str, why: str) -> None:
    (tmp_path / "out").mkdir()
    options = ["-o", tmp_path / "out", "--ray", "local", flag, tmp_path / place]
    assert f"{flag} {tmp_path / place} {why}" in failure(run(prompts, *options), 1)
    assert prompts.read_text() == "My dog is\n"


def test_notes_differ(prompts: Path, tmp_path: Path) -> None:
    note = tmp_path / "note.json"
    line = failure(run(prompts, "-o", tmp_path / "out", "--ray", "local", "--stats", note, "--manifest", note), 1)
    assert f"--stats {note} is also --manifest {note}" in line
    assert not note.exists()
