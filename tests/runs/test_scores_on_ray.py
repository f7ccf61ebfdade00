"""Scores on a cluster, which is this process; `test_ray.py` has a real one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from batchgen.formats.reading import ReadOptions
from batchgen.model import Checkpoint
from batchgen.records import SamplingParams, ScoringOptions
from batchgen.runs.job import FilePrompts, Job
from batchgen.runs.observer import Observer
from batchgen.runs.ray.cluster import Size
from batchgen.runs.ray.execute import OnRay, RayRun
from batchgen.runs.ray.folder import OutputFolder
from batchgen.runs.ray.inputs import find_files
from batchgen.runs.sums import ScoreSums
from tests.support.command import failure, invoke
from tests.support.one_machine import OneMachine

SUMS = ("token_perplexity", "word_perplexity", "accuracy", "num_answered", "unknown_answers", "scored_tokens")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    asked = {"prompt": "My dog is", "choices": [" a very nice dog", " Tuesday"]}
    values = [
        *({**asked, "answer": answer, "topic": topic} for answer, topic in [(0, "pets"), (1, "days"), ("B", "days")]),
        {"text": "It will rain in the morning.", "topic": "days"},
        {"prompt": "My dog is", "continuation": "", "topic": "pets"},
        {"text": "Once upon a time"},
    ]
    (path := tmp_path / "rows.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def run_on(rows: Path, checkpoint: Checkpoint) -> RayRun:
    output = rows.parent / "out"
    folder = OutputFolder(str(output))
    folder.make()
    job = Job(
        FilePrompts((), ReadOptions(scores=True)), SamplingParams(max_new_tokens=1), scoring=ScoringOptions(by="topic")
    )
    on = OnRay("local", (str(rows),), str(output), part_rows=2)
    ray_run = RayRun(job, on, Observer(), checkpoint, OneMachine(), Size(1, 1.0, 0.0), folder)  # type: ignore[arg-type]
    ray_run.prepare(find_files(on.inputs))
    ray_run.generate(ray_run.find_missing())
    return ray_run


def lines_of(ray_run: RayRun) -> list[str]:
    parts = sorted(Path(ray_run.on.output).glob("part-*"))
    return [line for part in parts for line in part.read_text().splitlines()]


def test_rows_and_sums_are_those_of_the_plain_run_also_when_it_goes_on(rows: Path, checkpoint: Checkpoint) -> None:
    stats = rows.parent / "stats.json"
    plain = invoke("score", rows, "--model", "bundled", "--by", "topic", "--stats", stats)
    expected = json.loads(stats.read_text())
    first = run_on(rows, checkpoint)
    assert lines_of(first) == plain.stdout.splitlines()
    (Path(first.on.output) / "part-00001.jsonl").unlink()
    again = run_on(rows, checkpoint)
    assert lines_of(again) == plain.stdout.splitlines()
    for ray_run in (first, again):
        assert ray_run.sums is not None
        facts = ray_run.sums.facts
        assert {name: facts[name] for name in SUMS} == pytest.approx({name: expected[name] for name in SUMS})
        assert list(facts["by"]) == list(expected["by"]) == ["pets", "days", "(none)"]
        assert facts["by"]["days"]["accuracy"] == expected["by"]["days"]["accuracy"] == 0.0
        assert ray_run.sums.unknown_at.endswith("rows.jsonl:3")


def test_a_run_that_starts_over_leaves_no_sums_behind(rows: Path, checkpoint: Checkpoint) -> None:
    folder = run_on(rows, checkpoint).folder
    assert "_sums-part-00002.json" in folder.names()
    folder.clean(all_of_ours=True)
    assert folder.names() == []


def test_sums_of_parts_add_up_to_those_of_all_and_no_further_than_the_most_groups() -> None:
    one, other = (
        ScoreSums(2, -3.0, 5, groups={name: ScoreSums(1, -1.5, 2) for name in names}) for names in ("ab", "bc")
    )
    total = ScoreSums(most_groups=2)
    for part in (one, other):
        total.merge(part)
    assert (total.num_rows, total.logprob, total.num_tokens, total.num_ungrouped) == (4, -6.0, 10, 1)
    assert {name: group.num_tokens for name, group in total.groups.items()} == {"a": 2, "b": 4}


def test_a_page_needs_a_run_on_this_machine(rows: Path) -> None:
    refused = invoke("score", rows, "-o", rows.parent / "out", "--ray", "local", "--html", rows.parent / "page.html")
    assert "--html is not supported with --ray" in failure(refused, 2)
