"""Runs of conversations that are stopped or killed and then continued: the bytes are those of an undisturbed run."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from batchgen.formats.reading import find_sources
from batchgen.records import ChatOptions, EngineOptions, Result, SamplingParams
from batchgen.runs.execute import execute
from batchgen.runs.job import FilePrompts, Job, ModelChoice, OutputForm
from batchgen.runs.observer import Observer
from batchgen.runs.target import Target
from tests.support.command import failure, run
from tests.support.forked import run_forked
from tests.support.killed import die_after

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{{ eos_token }}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
FORMS = ["jsonl", "parquet", "openai"]
NUM_RESULTS = 13


class StopsAfter(Observer):
    """Stops a run after a number of results."""

    def __init__(self, num_results: int) -> None:
        self.num_left = num_results

    def track(self, results: Iterable[Result], stream: IO[Any] | None = None) -> Iterator[Result]:
        for result in results:
            self.num_left -= 1
            yield result

    def should_stop(self) -> bool:
        return self.num_left <= 0


def told(*contents: str) -> list[dict[str, Any]]:
    roles = ("system", "user", "assistant")
    return [{"role": roles[place % 3], "content": text} for place, text in enumerate(contents)]


BODIES = [
    {"messages": told("Be brief.", "My dog is")},
    {"messages": told("Be brief.", "The king <|endoftext|>"), "n": 3, "temperature": 1.0},
    {"messages": []},
    {"messages": told("", "Once upon", "a time"), "n": 2, "temperature": 0.7, "seed": 3},
    {"messages": told("Be brief.", "My dog is"), "tools": [{"type": "function", "function": {"name": "f"}}]},
    {"messages": told("Be brief.", "My cat"), "n": 4, "temperature": 1.3},
    {"messages": told("", "The rain")},
]  # fmt: skip


def write_input(path: Path, form: str) -> Path:
    """Write seven rows: some with samples, one that fails, one with a tool."""
    lines = []
    for place, body in enumerate(BODIES):
        if form == "openai":
            lines.append({"custom_id": f"r{place}", "url": "/v1/chat/completions", "body": body})
        else:
            names = {"n": "num_samples", "temperature": "temperature", "seed": "seed"}
            sampling = {names[key]: value for key, value in body.items() if key in names}
            lines.append({key: value for key, value in body.items() if key not in names} | {"sampling": sampling})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def template(tmp_path: Path) -> Path:
    (path := tmp_path / "chat.jinja").write_text(TEMPLATE)
    return path


def output_of(folder: Path, form: str) -> Path:
    folder.mkdir(exist_ok=True)
    return folder / ("out.parquet" if form == "parquet" else "out.jsonl")


def contents(output: Path) -> dict[str, bytes]:
    """Return the contents of the finished files of a run."""
    return {path.name: path.read_bytes() for path in output.parent.iterdir() if not path.name.startswith(".")}


def job(source: Path, output: Path, template: Path, form: str, *, resume: bool = False) -> Job:
    file_form = "parquet" if form == "parquet" else "jsonl"
    return Job(
        FilePrompts(tuple(find_sources([str(source)]))),
        SamplingParams(max_new_tokens=5),
        ModelChoice("bundled"),
        EngineOptions(batch_size=3),
        ChatOptions(template=str(template)),
        OutputForm(file_form, in_kind=form == "openai"),
        Target(output, file_form, resume=resume, in_kind=form == "openai"),
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_run_that_is_stopped_anywhere_ends_with_the_same_bytes(tmp_path: Path, template: Path, form: str) -> None:
    source = write_input(tmp_path / "rows.jsonl", form)
    whole = output_of(tmp_path / "whole", form)
    assert execute(job(source, whole, template, form), Observer()).stats.rows == len(BODIES)
    for num_results in (4, 11):  # after a row, and among the samples of one
        output = output_of(tmp_path / f"stopped{num_results}", form)
        stopped = execute(job(source, output, template, form), StopsAfter(num_results))
        assert num_results <= stopped.kept < NUM_RESULTS
        assert not output.exists()
        execute(job(source, output, template, form, resume=True), Observer())
        assert contents(output) == contents(whole)
    assert len(contents(whole)) == (2 if form == "openai" else 1)


@pytest.mark.parametrize("form", FORMS)
def test_a_run_that_is_killed_ends_with_the_same_bytes(tmp_path: Path, template: Path, form: str) -> None:
    source = write_input(tmp_path / "rows.jsonl", form)
    options = ["--chat-template", template, "--batch-size", 3]
    whole, output = output_of(tmp_path / "whole", form), output_of(tmp_path / "killed", form)
    run(source, "-o", whole, *options)
    words = ["run", source, "-o", output, "--model", "bundled", "--max-new-tokens", 5, *options]
    assert run_forked(die_after, 7, words) == -signal.SIGKILL
    assert not output.exists()
    resumed = run(source, "-o", output, *options, "--resume")
    assert "7 results kept" in resumed.stderr
    assert contents(output) == contents(whole)


@pytest.mark.parametrize(
    ("begun", "now", "difference"),
    [
        ([], ["--system", "Hi"], 'without --system, but now it is "Hi"'),
        (["--system", "Hi"], [], 'with --system "Hi", but now without it'),
        (["--system", "Hi"], ["--chat"], 'with --system "Hi", but now without it'),
        (["--chat"], [], "with --chat, but now without it"),
        ([], ["--chat-template-arg", "a=1"], "without --chat-template-arg, but now it is a=1"),
        ([], ["--json-schema", '{"a":1}'], """without --json-schema, but now it is '{"a":1}'"""),
        ([], ["--no-split-reasoning"], "with --split-reasoning, but now without it"),
        ([], ["--logit-bias", "13=-5", "--logit-bias", "9=2"], "without --logit-bias, but now it is 9=2.0, 13=-5.0"),
    ],
    ids=str,
)
def test_a_difference_is_named_by_what_the_user_changed(
    tmp_path: Path, template: Path, begun: list[str], now: list[str], difference: str
) -> None:
    common = ["-o", tmp_path / "out.jsonl", "--chat-template", template, "--max-new-tokens", 1]
    run(*common, *begun, stdin="My dog is\n")
    assert f"was started {difference}: " in failure(run(*common, "--resume", *now, stdin="My dog is\n"), 1)
