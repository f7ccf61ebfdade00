"""Runs with constraints: what is parsed, columns of its fields, OpenAI's bodies, workers, a store, Python."""

from __future__ import annotations

import csv
import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as parquet
import pydantic
import pytest

import batchgen
from batchgen.formats.json_values import parse_answer
from batchgen.formats.reading import ReadOptions
from batchgen.model import Checkpoint
from batchgen.records import SamplingParams
from batchgen.runs.job import FilePrompts, Job
from batchgen.runs.observer import Observer
from batchgen.runs.ray.cluster import Size
from batchgen.runs.ray.execute import OnRay, RayRun
from batchgen.runs.ray.folder import OutputFolder
from batchgen.runs.ray.inputs import find_files
from batchgen.runs.store import Store
from tests.support.command import invoke, records, run
from tests.support.one_machine import OneMachine
from tests.support.results import result_of

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "good": {"type": "boolean"},
    },
    "required": ["name", "age", "good"],
    "additionalProperties": False,
}
ASKED = ("--json-schema", json.dumps(SCHEMA), "--max-new-tokens", 40)
# Rows of every kind, under the run's constraint; one is bad, one has two samples.
MIXED: tuple[dict[str, Any], ...] = (
    {"prompt": "My dog is", "sampling": {"json_schema": SCHEMA}},
    {"prompt": "My dog is", "sampling": {"regex": "[a-z]{3}-[0-9]+", "num_samples": 2, "repetition_penalty": 1.2}},
    {"prompt": "My dog is", "sampling": {"choice": ["yes", "yes, but", "no"], "logprobs": 1, "presence_penalty": 1.0}},
    {"prompt": "My dog is", "sampling": {"grammar": 'start: "ab" /[a-z]+/ "yz"', "stop": "b", "temperature": 0}},
    {"prompt": "My dog is", "sampling": {"regex": "(a"}},
    {"prompt": "It will rain"},
    {"prompt": "It will rain", "sampling": {"response_format": {"type": "json_object"}, "max_new_tokens": 5}},
)
MIXED_FLAGS = ("--regex", "[a-z]{1,4}", "--temperature", 1, "--max-new-tokens", 40)
RAIN = "It will rain in the\nI want to eat a big bowl of\nMy dog is\n"


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_what_the_text_says_stands_beside_it() -> None:
    [row] = records(run("-p", "My dog is", *ASKED))
    assert row["parsed"] == json.loads(row["text"])
    assert list(row["parsed"]) == ["name", "age", "good"]
    assert list(row)[4:6] == ["text", "parsed"]


def test_a_row_that_is_cut_short_has_nothing_parsed() -> None:
    [row] = records(run("-p", "My dog is", *ASKED, "--max-new-tokens", 3))
    assert (row["finish_reason"], row["parsed"]) == ("length", None)


def test_a_row_without_a_schema_has_no_such_field() -> None:
    rows = records(run("-p", "My dog is", "--regex", r"\{\}")) + records(run("-p", "My dog is"))
    assert not any("parsed" in row for row in rows)


@pytest.mark.parametrize("text", ["{", '{"a": 1e999}', "[" * 200 + "]" * 200, "1" * 5000, "NaN"])
def test_what_cannot_be_written_again_is_not_parsed(text: str) -> None:
    assert parse_answer(text) is None


def test_fields_are_columns_of_csv(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    run(
        *ASKED, "--columns", "-o", output, "--input-format", "jsonl", stdin=lines({"prompt": "My dog is", "age": "old"})
    )
    header, cells = csv.reader(output.read_text().splitlines())
    assert header[-5:-1] == ["age", "name", "parsed.age", "good"]
    assert "parsed" not in header
    assert cells[header.index("age")] == "old"


def test_fields_are_typed_columns_of_parquet(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    assert run(*ASKED, "--columns", "-o", output, stdin=RAIN).exit_code == 0
    table = parquet.read_table(output)
    types = {name: table.schema.field(name).type for name in SCHEMA["properties"]}
    assert types == {"name": pa.string(), "age": pa.int64(), "good": pa.bool_()}


def test_fields_are_a_view_of_a_database(tmp_path: Path) -> None:
    output = tmp_path / "out.db"
    assert run(*ASKED, "--columns", "-o", output, stdin=RAIN).exit_code == 0
    connection = sqlite3.connect(output)
    rows = connection.execute("SELECT text, name, age, good FROM answers").fetchall()
    connection.close()
    assert [[name, age, bool(good)] for _, name, age, good in rows] == [
        list(json.loads(text).values()) for text, *_ in rows
    ]


def test_columns_need_a_table() -> None:
    refused = run("-p", "a", *ASKED, "--columns", "--format", "jsonl")
    assert refused.exit_code == 2
    assert "--columns only works with CSV" in refused.stderr


def test_a_stored_result_comes_back_with_what_was_parsed(tmp_path: Path) -> None:
    result = result_of(parsed={"a": [1, None]}, is_json=True)
    store = Store(tmp_path / "x.db")
    store.add(result)
    store.add(replace(result, sample_index=1, parsed=None, is_json=False))
    assert list(store.results()) == [result, replace(result, sample_index=1, parsed=None, is_json=False)]
    store.discard()


def test_choices_come_from_a_column() -> None:
    rows = [
        {"prompt": "My dog is", "options": ["big", "small"]},
        {"prompt": "My dog is", "options": '["red"]'},
        {"prompt": "My dog is", "options": "red"},
        {"prompt": "My dog is", "options": ["red"], "sampling": {"regex": "[0-9]"}},
        {"prompt": "My dog is", "options": ["red"], "sampling": {"structured_outputs": {"regex": "[0-9]"}}},
        {"prompt": "My dog is"},
    ]
    big, red, bad, number, digit, missing = records(run("--choices-field", "options", stdin=lines(*rows)))
    assert big["text"] in ("big", "small")
    assert red["text"] == "red"
    assert "the field options is not a list of choices" in bad["error"]
    assert number["text"].isdigit()
    assert digit["text"].isdigit()
    assert "no field options" in missing["error"]


def body(**more: Any) -> dict[str, Any]:
    return {"prompt": "My dog is", "max_tokens": 40, **more}


BODIES = [
    ({"response_format": {"type": "json_object"}, "max_tokens": 8}, None),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}}}, "{"),
    ({"structured_outputs": {"json": SCHEMA, "regex": None}}, "{"),
    ({"structured_outputs": {"choice": ["yes"]}}, "yes"),
    ({"structured_outputs": {"grammar": 'start: "yes"', "disable_any_whitespace": True}}, "yes"),
    ({"guided_regex": "yes"}, "yes"),
    ({"response_format": {"type": "text"}, "max_tokens": 4}, None),
]


def test_openai_bodies_say_what_the_text_must_be() -> None:
    requests = [{"custom_id": str(place), "body": body(**more)} for place, (more, _) in enumerate(BODIES)]
    answers = records(run(stdin=lines(*requests)))
    for answer, (_, begins) in zip(answers, BODIES, strict=True):
        [choice] = answer["response"]["body"]["choices"]
        if begins:
            assert choice["finish_reason"] == "stop"
            assert choice["text"].startswith(begins)
    assert answers[0]["response"]["body"]["choices"][0]["text"].startswith("{")


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"response_format": {"type": "xml"}}, "body.response_format is not one of"),
        ({"response_format": {"type": "json_schema"}}, "body.response_format.json_schema.schema is missing"),
        ({"structured_outputs": {"structural_tag": "a"}}, "body.structured_outputs.structural_tag is not supported"),
        (
            {"structured_outputs": {"regex": "a", "choice": ["b"]}},
            "outputs and body.structured_outputs",
        ),
        ({"structured_outputs": {"regex": "(a"}}, "unclosed group"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}, "guided_json": {"const": 1}},
            "body.response_format and body.guided_json cannot be used together",
        ),
    ],
)
def test_what_openai_bodies_ask_in_vain_is_named(more: dict[str, Any], problem: str) -> None:
    [answer] = records(run(stdin=lines({"custom_id": "a", "body": body(**more)})))
    assert problem in answer["error"]["message"]


class Person:
    """Like pydantic's classes."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        return SCHEMA


@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA), Person])
def test_python_takes_a_schema_in_any_form(schema: Any) -> None:
    [result] = batchgen.generate("My dog is", model="bundled", max_new_tokens=40, json_schema=schema)
    assert result.parsed == json.loads(result.text)
    assert set(result.parsed) == {"name", "age", "good"}


def test_python_takes_a_pydantic_class_and_writes_its_fields_as_columns(tmp_path: Path) -> None:
    class Review(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")
        good: bool
        stars: Literal[1, 2, 3]

    output, rows = tmp_path / "table.csv", tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "My dog is"}')
    batchgen.run(rows, output=output, model="bundled", json_schema=Review, columns=True)
    [row] = csv.DictReader(output.read_text().splitlines())
    assert row["good"] in ("true", "false")
    assert row["stars"] in "123"
    assert "parsed" not in row


def test_files_have_schemas_and_grammars(tmp_path: Path) -> None:
    schema, grammar = tmp_path / "a.json", tmp_path / "a.lark"
    schema.write_text("\ufeff" + json.dumps(SCHEMA), encoding="utf-8")
    grammar.write_text('start: "yes"')
    [row] = records(run("-p", "a", "--json-schema", schema, "--max-new-tokens", 40))
    assert set(row["parsed"]) == {"name", "age", "good"}
    [row] = records(run("-p", "a", "--grammar", grammar))
    assert row["text"] == "yes"
    refused = run("-p", "a", "--grammar", tmp_path / "none.lark")
    assert refused.exit_code == 2
    assert "none.lark cannot be read: No such file" in refused.stderr


def test_spaces_are_allowed_where_they_are_asked_for() -> None:
    schema = '{"const": {"a": 1}}'
    compact, loose = (
        records(run("-p", "a", "--json-schema", schema, "--json-whitespace", spaces, "--logit-bias", "220=100"))
        for spaces in ("compact", "any")
    )
    assert compact[0]["text"] == '{"a":1}'
    assert " " in loose[0]["text"]


def test_a_bad_one_of_the_whole_run_is_refused_before_the_model_is_looked_for() -> None:
    refused = run(
        "--model", "no/such/model", "-p", "a", "--json-schema", '{"type": "integer", "minimum": 5, "maximum": 3}'
    )
    assert refused.exit_code == 2
    assert "--json-schema: the JSON schema cannot be used: Unsatisfiable" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_plan_checks_it_too() -> None:
    refused = invoke("plan", "--model", "bundled", "-p", "a", "--regex", "(a")
    assert refused.exit_code == 2
    assert "--regex: the regular expression cannot be used: unclosed group" in refused.stderr


BAD = ({"prompt": "a", "id": "x", "sampling": {"regex": "(a"}}, {"prompt": "b", "sampling": {"regex": "b"}})


def test_plan_names_each_row_whose_constraint_cannot_be_used() -> None:
    planned = invoke("plan", "--model", "bundled", "--json", stdin=lines(*BAD))
    assert planned.exit_code == 0
    facts = json.loads(planned.stdout)
    assert (facts["rows"], facts["num_bad_rows"], facts["bad_rows"][0]["id"]) == (2, 1, "x")
    assert "unclosed group" in facts["bad_rows"][0]["error"]


def test_inspect_names_each_row_whose_constraint_cannot_be_used() -> None:
    seen = invoke("inspect", "--model", "bundled", "--json", stdin=lines(*BAD))
    assert seen.exit_code == 3
    assert len(json.loads(seen.stdout)["rows"]) == 1
    assert "row x is not in the batch: -:1: the regular expression cannot be used: unclosed group" in seen.stderr


def test_without_the_library_it_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchgen.engines.sampling.trying.is_installed", lambda: False)
    refused = run("--model", "no/such/model", "-p", "a", "--regex", "a")
    assert refused.exit_code == 2
    assert "pip install llguidance" in refused.stderr
    [row] = records(run(stdin=lines({"prompt": "a", "sampling": {"regex": "a"}})))
    assert "pip install llguidance" in row["error"]


def written(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_a_resumed_run_writes_the_same(tmp_path: Path) -> None:
    plain, part = tmp_path / "plain.jsonl", tmp_path / "part.jsonl"
    run("-o", plain, *MIXED_FLAGS, stdin=lines(*MIXED))
    run("-o", part, *MIXED_FLAGS, "--keep-store", stdin=lines(*MIXED[:3]))
    assert run("-o", part, "--resume", *MIXED_FLAGS, stdin=lines(*MIXED)).exit_code == 3
    assert written(part) == written(plain)
    assert [row["error"] is None for row in written(part)] == [True] * 5 + [False] + [True] * 2


@pytest.mark.slow
def test_workers_write_the_same(tmp_path: Path) -> None:
    plain, workers = tmp_path / "plain.jsonl", tmp_path / "workers.jsonl"
    run("-o", plain, *MIXED_FLAGS, stdin=lines(*MIXED))
    run("-o", workers, "--workers", 2, *MIXED_FLAGS, stdin=lines(*MIXED))
    assert written(workers) == written(plain)


def test_a_cluster_writes_the_same_also_when_it_goes_on(tmp_path: Path, checkpoint: Checkpoint) -> None:
    plain, rows = tmp_path / "plain.jsonl", tmp_path / "rows.jsonl"
    rows.write_text(lines(*MIXED))
    run(rows, "-o", plain, *MIXED_FLAGS)
    for lost in (None, "part-00001.jsonl"):
        if lost:
            (tmp_path / "out" / lost).unlink()
        run_on_this_machine(rows, tmp_path / "out", checkpoint)
        parts = sorted((tmp_path / "out").glob("part-*"))
        assert [row for part in parts for row in written(part)] == written(plain)


def run_on_this_machine(rows: Path, output: Path, checkpoint: Checkpoint) -> None:
    """Run in this process instead of on Ray."""
    folder = OutputFolder(str(output))
    folder.make()
    job = Job(FilePrompts((), ReadOptions()), SamplingParams(regex="[a-z]{1,4}", temperature=1.0, max_new_tokens=40))
    on = OnRay("local", (str(rows),), str(output), part_rows=3)
    size = Size(1, 1.0, 0.0)
    ray_run = RayRun(job, on, Observer(), checkpoint, OneMachine(), size, folder)  # type: ignore[arg-type]
    ray_run.prepare(find_files(on.inputs))
    ray_run.generate(ray_run.find_missing())


def test_a_run_that_was_begun_with_another_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    run("-o", output, "--keep-store", "--regex", "a", stdin=RAIN)
    refused = run("-o", output, "--resume", "--regex", "b", stdin=RAIN)
    assert refused.exit_code == 1
    assert 'was started with --regex "a", but now it is "b"' in refused.stderr
