"""Scores do not depend on when or in which order rows run: killed and resumed, shuffled."""

from __future__ import annotations

import csv
import json
import random
import signal
from pathlib import Path
from typing import Any

from tests.support.command import invoke, records
from tests.support.forked import run_forked
from tests.support.killed import die_after

STORY = "My dog is a very nice dog, and the old king went to the river in the rain"


def rows() -> list[dict[str, str]]:
    """Return choices of one and of several tokens after prompts of many lengths."""
    words = STORY.split()
    choices = ([" and", " the"], [" and a cat", " of the river", " dog"])
    return [
        {"id": f"r{place}", "story": " ".join(words[: 3 + place]), "choices": json.dumps(choices[place % 2])}
        for place in range(13)
    ]


def write(path: Path, table: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return path


def test_a_run_that_is_killed_ends_with_the_same_bytes(tmp_path: Path) -> None:
    source, whole, output = write(tmp_path / "rows.csv", rows()), tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    options = [source, "--template", "Once: {{ story }}", "--model", "bundled", "--batch-size", 3, "--logprobs", 2]

    def to(path: Path) -> list[object]:
        return [*options, "-o", path, "--manifest", path.with_suffix(".manifest")]

    assert invoke("score", *to(whole)).exit_code == 0
    assert run_forked(die_after, 5, ["score", *to(output)]) == -signal.SIGKILL
    assert not output.exists()
    resumed = invoke("score", *to(output), "--resume")
    assert "results kept" in resumed.stderr
    assert output.read_bytes() == whole.read_bytes()
    noted = [json.loads(path.with_suffix(".manifest").read_text()) for path in (whole, output)]
    assert noted[0]["input"] == noted[1]["input"]
    assert noted[1]["stats"]["rows"] == 13


def test_rows_in_another_order_have_the_same_scores() -> None:
    def scores(table: list[dict[str, Any]]) -> dict[str, Any]:
        stdin = "".join(json.dumps({**row, "prompt": row["story"]}) + "\n" for row in table)
        found = records(invoke("score", "--model", "bundled", "--logprobs", 1, stdin=stdin))
        return {row["id"]: {name: row[name] for name in ("choices", "best", "is_tie")} for row in found}

    shuffled = random.Random(3).sample(rows(), 13)
    assert scores(shuffled) == scores(rows())
