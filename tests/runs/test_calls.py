"""batchgen from Python: generate, stream and run, their options and their errors."""

from __future__ import annotations

from dataclasses import fields
from itertools import count
from pathlib import Path

import pytest

import batchgen
from batchgen.model import Model
from batchgen.records import EngineOptions, SamplingParams
from batchgen.runs.keywords import FileOptions, GenerateOptions, SamplingOptions
from tests.support.command import invoke

PROMPTS = ["My dog is", "The sun", "One day a little girl"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    (path := tmp_path / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    return path


def test_run_writes_what_the_command_writes(prompts: Path, tmp_path: Path) -> None:
    stats = batchgen.run(prompts, output=tmp_path / "a.jsonl", model="bundled", max_new_tokens=4)
    invoke("run", prompts, "-o", tmp_path / "b.jsonl", "--model", "bundled", "--max-new-tokens", 4)
    assert (stats.rows, stats.errors, stats.rows_kept) == (3, 0, 0)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_run_goes_on_with_what_the_command_began(prompts: Path, tmp_path: Path, bundled: Model) -> None:
    output = tmp_path / "out.jsonl"
    options = ["--model", "bundled", "--max-new-tokens", 4, "--keep-store"]
    invoke("run", prompts, "-o", output, *options, "--limit", 2)
    stats = batchgen.run(prompts, output=output, model=bundled, max_new_tokens=4, resume=True)
    assert (stats.rows, stats.rows_kept) == (3, 2)
    again = batchgen.run(prompts, output=output, model=bundled, max_new_tokens=4, resume=True)
    assert (again.rows, again.rows_kept, again.output_tokens) == (3, 3, 0)


def test_run_takes_globs_and_lists(tmp_path: Path, bundled: Model) -> None:
    for name in ("a1.txt", "a2.txt", "b.txt"):
        (tmp_path / name).write_text(f"The {name}\n")
    inputs = [str(tmp_path / "a*.txt"), tmp_path / "b.txt"]
    assert batchgen.run(inputs, output=tmp_path / "out.csv", model=bundled, max_new_tokens=1).rows == 3


def test_an_output_that_exists_is_an_error_in_the_words_of_python(prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("precious\n")
    with pytest.raises(batchgen.OutputError, match="add overwrite=True to replace it") as error:
        batchgen.run(prompts, output=tmp_path / "out.jsonl", model="bundled")
    assert "--" not in str(error.value)
    assert (tmp_path / "out.jsonl").read_text() == "precious\n"


def test_going_on_and_starting_anew_contradict_each_other(prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(batchgen.BatchgenError, match="choose one"):
        batchgen.run(prompts, output=tmp_path / "out.jsonl", resume=True, overwrite=True)


def test_stream_takes_prompts_without_end(bundled: Model) -> None:
    results = batchgen.stream((f"Row {number} says" for number in count()), bundled, max_new_tokens=1, batch_size=4)
    assert next(results).error is None
    results.close()  # type: ignore[attr-defined]


def test_stream_yields_rows_as_they_finish(bundled: Model) -> None:
    prompts = [{"prompt": "My dog is", "sampling": {"max_new_tokens": number}} for number in (40, 1, 20)]
    assert [result.index for result in batchgen.stream(prompts, bundled)] == [1, 2, 0]


def test_generate_is_the_stream_in_input_order(bundled: Model) -> None:
    options = {"max_new_tokens": 3, "temperature": 1.0, "num_samples": 2}
    results = batchgen.generate(PROMPTS, bundled, **options)
    assert [(result.index, result.sample_index) for result in results] == [(i, s) for i in range(3) for s in range(2)]
    streamed = batchgen.stream(PROMPTS, bundled, **options)
    assert {(r.index, r.sample_index): r.text for r in streamed} == {(r.index, r.sample_index): r.text for r in results}


def test_wrong_options_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match="top_p 3"):
        batchgen.stream(["x"], "no-such-model", top_p=3.0)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_tokens", "did you mean max_new_tokens?"),
        ("temprature", "did you mean temperature?"),
        ("n", "did you mean num_samples?"),
        ("api_key", r"has no option 'api_key'$"),
    ],
)
def test_a_wrong_name_says_the_near_one(name: str, hint: str) -> None:
    with pytest.raises(TypeError, match=hint):
        batchgen.generate("x", "bundled", **{name: 5})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"device": "nowhere"}, "^device nowhere is not a device"), ({"dtype": "float7"}, "^dtype float7 is not one of")],
    ids=str,
)
def test_what_is_refused_on_the_way_is_named_as_in_python(options: dict[str, str], words: str) -> None:
    with pytest.raises(batchgen.BatchgenError, match=words):
        batchgen.generate("x", "bundled", **options)


def test_what_only_files_have_is_no_option_of_generate() -> None:
    with pytest.raises(TypeError, match="keep_store"):
        batchgen.generate("x", "bundled", keep_store=True)  # type: ignore[call-arg]


def test_options_of_an_open_model_are_not_taken_again(bundled: Model) -> None:
    with pytest.raises(batchgen.BatchgenError, match="pass dtype to open_model"):
        batchgen.generate("x", bundled, dtype="bfloat16")


def test_workers_take_no_open_model(bundled: Model) -> None:
    with pytest.raises(batchgen.BatchgenError, match="workers load the model themselves"):
        batchgen.generate("x", bundled, workers=2)


def test_editors_are_told_every_option_of_the_records() -> None:
    assert set(SamplingOptions.__annotations__) == {field.name for field in fields(SamplingParams)}
    engine = {field.name for field in fields(EngineOptions)}
    assert engine <= set(GenerateOptions.__annotations__) <= set(FileOptions.__annotations__)


@pytest.mark.parametrize("prompts", [None, 5, b"My dog is"], ids=str)
def test_what_holds_no_prompts_is_named(prompts: object) -> None:
    with pytest.raises(TypeError, match=f"prompts must be a text, .* not {type(prompts).__name__}"):
        batchgen.generate(prompts, "bundled")  # type: ignore[arg-type]
