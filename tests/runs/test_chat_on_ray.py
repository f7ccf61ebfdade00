"""Conversations on a cluster: what workers are sent, and what a continued run must have been started with.

The cluster is this process; `test_ray.py` has a real one.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from batchgen.errors import OutputError
from batchgen.formats.reading import ReadOptions
from batchgen.model import Checkpoint
from batchgen.records import ChatOptions, SamplingParams
from batchgen.runs.job import FilePrompts, Job, OutputForm
from batchgen.runs.observer import Observer
from batchgen.runs.ray.cluster import Size
from batchgen.runs.ray.execute import OnRay, RayRun
from batchgen.runs.ray.folder import MANIFEST, OutputFolder
from batchgen.runs.ray.inputs import find_files
from batchgen.runs.ray.model_files import model_paths
from tests.support.command import records, run
from tests.support.one_machine import OneMachine

TEMPLATE = (
    "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
)
ROWS = [{"messages": [{"role": "user", "content": f"My {pet} is"}]} for pet in ("dog", "cat", "king")]
SAMPLED = SamplingParams(max_new_tokens=4, temperature=1.0, num_samples=2)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    (path := tmp_path / "chat.jinja").write_text(TEMPLATE)
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    (path := tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def prepared(rows: Path, template: Path, checkpoint: Checkpoint, *, in_kind: bool = False) -> RayRun:
    output = rows.parent / "out"
    folder = OutputFolder(str(output))
    folder.make()
    job = Job(
        FilePrompts((), ReadOptions()),
        SAMPLED,
        chat=ChatOptions(template=str(template), system="Be brief."),
        output_form=OutputForm(in_kind=in_kind),
    )
    on = OnRay("local", (str(rows),), str(output), part_rows=2)
    ray_run = RayRun(job, on, Observer(), checkpoint, OneMachine(), Size(1, 1.0, 0.0), folder)  # type: ignore[arg-type]
    ray_run.prepare(find_files(on.inputs))
    return ray_run


def lines_of(ray_run: RayRun) -> list[str]:
    ray_run.generate(ray_run.find_missing())
    parts = sorted(Path(ray_run.on.output).glob("part-*"))
    return [line for part in parts for line in part.read_text().splitlines()]


def test_a_cluster_gives_the_rows_of_the_plain_run(rows: Path, template: Path, checkpoint: Checkpoint) -> None:
    flags = ["--chat-template", template, "--system", "Be brief.", "--temperature", 1, "--num-samples", 2]
    plain = run(rows, *flags, "--max-new-tokens", 4)
    assert [json.loads(line) for line in lines_of(prepared(rows, template, checkpoint))] == records(plain)


def test_a_template_that_has_changed_is_refused_and_one_that_has_moved_is_not(
    rows: Path, template: Path, checkpoint: Checkpoint
) -> None:
    digest = prepared(rows, template, checkpoint).manifest.facts["options"]["chat_template_sha256"]
    moved = template.rename(template.with_name("moved.jinja"))
    assert prepared(rows, moved, checkpoint).manifest.facts["options"]["chat_template_sha256"] == digest
    moved.write_text(TEMPLATE + "!")
    with pytest.raises(OutputError, match=f"{MANIFEST} was started with chat_template {digest[:12]}"):
        prepared(rows, moved, checkpoint)


def test_a_run_that_goes_on_another_day_shows_the_day_that_it_was_begun(
    rows: Path, template: Path, checkpoint: Checkpoint
) -> None:
    note = Path(prepared(rows, template, checkpoint).on.output) / MANIFEST
    note.write_text(json.dumps(json.loads(note.read_text()) | {"started": "2001-02-03T12:00:00+00:00"}))
    prompts = {json.loads(line)["prompt"][:10] for line in lines_of(prepared(rows, template, checkpoint))}
    assert prompts == {"2001-02-03"}


def test_openais_requests_are_answered_in_kind(rows: Path, template: Path, checkpoint: Checkpoint) -> None:
    bodies = [{"custom_id": f"r{place}", "body": {"model": "m", **row}} for place, row in enumerate(ROWS)]
    bodies[1]["body"]["messages"] = []
    rows.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    answers = [json.loads(line) for line in lines_of(prepared(rows, template, checkpoint, in_kind=True))]
    assert [(answer["custom_id"], answer["error"] is None) for answer in answers] == [
        ("r0", True), ("r1", False), ("r2", True)
    ]  # fmt: skip
    assert len(answers[0]["response"]["body"]["choices"]) == 2


def test_all_chat_templates_of_a_model_are_sent_to_workers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for folder in ("additional_chat_templates", "onnx"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tool_use.jinja").write_text("tools")
    assert list(model_paths(tmp_path)) == ["additional_chat_templates/tool_use.jinja", "config.json"]
