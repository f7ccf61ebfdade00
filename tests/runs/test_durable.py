"""Runs into a file: what is kept, resumed, refused, and left over."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import Result

from batchgen.runs.output import open_store
from batchgen.runs.store import Store
from batchgen.runs.target import Target
from tests.support.command import failure, invoke, records, run

PROMPTS = ["It will rain in the", "My dog is", "Once upon a time", "The old king", "I want to eat", "She said"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "prompts.txt", PROMPTS)


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """Turn off the garbage collector: code that opens a file must close it."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def store_of(output: Path) -> Path:
    return output.with_name(output.name + ".run.db")


def visible(folder: Path) -> list[str]:
    """Return the files that a user sees in a folder."""
    return sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))


def begin(prompts: Path, output: Path, *options: object, num_rows: int = 3) -> None:
    """Run until some rows are finished, then remove the output and keep the store, as if interrupted."""
    assert run(prompts, "-o", output, "--limit", num_rows, "--keep-store", *options).exit_code in (0, 3)
    if output.suffix != ".db":
        output.unlink()


def rows(result: Result) -> int:
    """Return how many rows a run says it ran, besides those that were kept."""
    [(number, kept)] = re.findall(
        r"^batchgen: (\d+) rows?(?: \((\d+) kept\))?, .*prompt \+", result.stderr, re.MULTILINE
    )
    return int(number) - int(kept or 0)


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run with the first three prompts."""
    folder = tmp_path_factory.mktemp("begun")
    begin(write_lines(folder / "prompts.txt", PROMPTS), folder / "out.jsonl")
    return store_of(folder / "out.jsonl")


@pytest.fixture
def begun_output(begun: Path, output: Path) -> Path:
    """An output whose run was interrupted after three prompts."""
    shutil.copy(begun, store_of(output))
    return output


# Resuming.


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--engine", "reference"],
        ["--temperature", 1, "--seed", 7],
        ["--temperature", 0.8, "--top-k", 20, "--num-samples", 3],
    ],
    ids=str,
)
def test_a_resumed_run_ends_with_the_same_bytes(
    prompts: Path, output: Path, tmp_path: Path, options: list[object]
) -> None:
    whole = tmp_path / "whole.jsonl"
    run(prompts, "-o", whole, *options)
    begin(prompts, output, *options)
    result = run(prompts, "-o", output, "--resume", *options)
    assert result.exit_code == 0
    assert f"continuing {store_of(output)}" in result.stderr
    assert output.read_bytes() == whole.read_bytes()
    assert visible(tmp_path) == ["out.jsonl", "prompts.txt", "whole.jsonl"]


def test_only_what_is_missing_is_run(prompts: Path, begun_output: Path) -> None:
    assert rows(run(prompts, "-o", begun_output, "--resume")) == 3


def test_single_samples_that_are_missing_are_run(prompts: Path, output: Path, tmp_path: Path) -> None:
    options = ["--temperature", 1, "--num-samples", 3]
    run(prompts, "-o", tmp_path / "whole.jsonl", *options)
    begin(prompts, output, *options, num_rows=6)
    connection = sqlite3.connect(store_of(output))
    connection.execute("DELETE FROM results WHERE sample_index = 1 OR row_index = 4")
    connection.commit()
    connection.close()
    assert "10 results kept" in run(prompts, "-o", output, "--resume", *options).stderr
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_with_nothing_to_resume_a_run_simply_starts(prompts: Path, output: Path) -> None:
    assert rows(run(prompts, "-o", output, "--resume")) == 6


def test_a_finished_run_stays_as_it_is(prompts: Path, output: Path) -> None:
    run(prompts, "-o", output)
    before = output.read_bytes()
    result = run(prompts, "-o", output, "--resume")
    assert (result.exit_code, output.read_bytes()) == (0, before)
    assert "is complete" in result.stderr


def test_a_finished_file_is_not_taken_for_the_answer_to_more_rows(prompts: Path, output: Path) -> None:
    run(prompts, "-o", output)
    write_lines(prompts, [*PROMPTS, "One more"])
    assert "answers 6 rows, but the input has 7, and the store is missing" in failure(
        run(prompts, "-o", output, "--resume"), 1
    )


def test_a_file_of_others_is_not_taken_for_an_answer(prompts: Path, output: Path) -> None:
    output.write_text("precious\n")
    assert "was not written by batchgen" in failure(run(prompts, "-o", output, "--resume"), 1)
    assert output.read_text() == "precious\n"


def test_rows_appended_to_the_input_are_new_work(prompts: Path, output: Path) -> None:
    run(prompts, "-o", output, "--keep-store")
    write_lines(prompts, [*PROMPTS, "One more"])
    assert rows(run(prompts, "-o", output, "--resume")) == 1
    assert [json.loads(line)["prompt"] for line in output.read_text().splitlines()] == [*PROMPTS, "One more"]
    assert not store_of(output).exists()


def test_a_pipe_can_be_resumed(output: Path) -> None:
    text = "".join(f"{prompt}\n" for prompt in PROMPTS)
    run("-o", output, "--keep-store", "--limit", 2, stdin=text)
    assert rows(run("-o", output, "--resume", stdin=text)) == 4


def test_a_run_that_failed_half_way_goes_on(prompts: Path, output: Path, tmp_path: Path) -> None:
    bad = tmp_path / "second.txt"
    bad.write_bytes("text".encode("utf-16"))
    assert "UTF-16" in run(prompts, bad, "-o", output).stderr
    assert not output.exists()
    bad.write_text("One more\n")
    assert run(prompts, bad, "-o", output, "--resume").exit_code == 0
    assert len(output.read_text().splitlines()) == 7


# Failed rows.


def test_failed_rows_count_as_done(tmp_path: Path, output: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", ['{"prompt": "My dog is"}', "nonsense", '{"prompt": "x"}'])
    begin(source, output, num_rows=2)
    result = run(source, "-o", output, "--resume")
    assert (result.exit_code, rows(result)) == (3, 1)
    assert f"1 of 3 rows failed, the first: {source}:2: not valid JSON" in result.stderr


def test_failed_rows_are_run_again_when_asked(tmp_path: Path, output: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", ['{"prompt": "My dog is"}', "nonsense", '{"prompt": "x"}'])
    run(source, "-o", output, "--keep-store")
    write_lines(source, ['{"prompt": "My dog is"}', '{"prompt": "My cat is"}', '{"prompt": "x"}'])
    result = run(source, "-o", output, "--retry-errors")
    assert (result.exit_code, rows(result)) == (0, 1)
    assert [json.loads(line)["error"] for line in output.read_text().splitlines()] == [None] * 3


def test_strict_stops_at_the_first_row_that_fails(tmp_path: Path, output: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", ['{"prompt": "My dog is"}', "nonsense", '{"prompt": "x"}'])
    assert f"{source}:2: not valid JSON" in failure(run(source, "-q", "--strict", "-o", output), 1)
    assert not output.exists()
    write_lines(source, ['{"prompt": "My dog is"}', '{"prompt": "My cat is"}', '{"prompt": "x"}'])
    assert run(source, "--strict", "-o", output, "--resume").exit_code == 0


def test_strict_without_a_file_is_one_line() -> None:
    assert "--strict stops the run: the prompt is empty" in failure(run("-p", "", "-p", "x", "--strict"), 1)


# What is refused.


@pytest.mark.parametrize("option", [["--resume", "--overwrite"], ["--retry-errors", "--overwrite"]], ids=str)
def test_going_on_and_starting_anew_contradict_each_other(output: Path, option: list[str]) -> None:
    assert "choose one" in failure(run("-p", "x", "-o", output, *option), 2)


@pytest.mark.parametrize("option", ["--resume", "--retry-errors", "--keep-store"])
def test_what_needs_a_file_says_so(option: str) -> None:
    assert f"{option} needs a file" in failure(run("-p", "x", option), 2)


def test_an_interrupted_run_is_not_overwritten(prompts: Path, begun_output: Path) -> None:
    assert "continue it with --resume, or start over with --overwrite" in failure(run(prompts, "-o", begun_output), 1)
    assert rows(run(prompts, "-o", begun_output, "--overwrite")) == 6
    assert not store_of(begun_output).exists()


def test_a_store_in_use_is_refused(prompts: Path, begun_output: Path) -> None:
    other = Store(store_of(begun_output))
    for option in ("--resume", "--overwrite"):
        assert "is in use by another run" in failure(run(prompts, "-o", begun_output, option), 1)
    assert other.num_results == 3
    other.close()


def test_what_is_overwritten_is_forgotten_at_once(prompts: Path, output: Path, tmp_path: Path) -> None:
    begin(prompts, output)
    with open_store(Target(output, "jsonl", overwrite=True)) as store:
        for file in (store.path, store.path.with_name(store.path.name + "-wal")):  # as a kill would leave them
            shutil.copy(file, tmp_path / file.name.replace("out", "killed"))
    killed = Store(tmp_path / "killed.jsonl.run.db")
    assert killed.is_empty
    killed.discard()


def test_a_damaged_store_gives_way_to_overwrite(prompts: Path, output: Path) -> None:
    store_of(output).write_text("nonsense " * 1000)
    assert "is not a batchgen store" in failure(run(prompts, "-o", output, "--resume"), 1)
    assert run(prompts, "-o", output, "--overwrite").exit_code == 0


def test_an_input_in_the_stores_place_is_not_written_over(prompts: Path, output: Path) -> None:
    store_of(output).hardlink_to(prompts)
    assert "is also an input" in failure(run(prompts, "-o", output, "--overwrite"), 1)
    assert prompts.read_text().splitlines() == PROMPTS


def model_folder(tmp_path: Path, folders: dict[str, Path]) -> Path:
    return Path(shutil.copytree(folders["gpt2"], tmp_path / "model"))


STALE: dict[str, tuple[list[object], str]] = {
    "temperature": (["--temperature", 0.5], "--temperature 0.0, but now it is 0.5"),
    "max_new_tokens": (["--max-new-tokens", 6], "--max-new-tokens 5, but now it is 6"),
    "seed": (["--seed", 3], "--seed 0, but now it is 3"),
    "stop": (["--stop", "x"], 'without --stop, but now it is "x"'),
    "beams": (["--num-beams", 2], "--num-beams 1, but now it is 2"),
    "penalty": (["--repetition-penalty", 1.2], "--repetition-penalty 1.0, but now it is 1.2"),
    "dtype": (["--dtype", "bfloat16"], '--dtype "float32", but now it is "bfloat16"'),
    "exact": (["--no-exact"], "with --exact, but now without it"),
    "special": (["--parse-special"], "without --parse-special, but now with it"),
    "too_long": (["--too-long", "truncate"], '--too-long "error", but now it is "truncate"'),
}


@pytest.mark.parametrize("options", STALE.values(), ids=STALE)
def test_options_that_have_changed_are_refused_by_name(
    prompts: Path, begun_output: Path, options: tuple[list[object], str]
) -> None:
    arguments, difference = options
    assert difference in failure(run(prompts, "-q", "-o", begun_output, "--resume", *arguments), 1)


@pytest.mark.parametrize(
    ("lines", "difference"),
    [
        (["Other", *PROMPTS[1:]], "prompts.txt:1 has changed"),
        (PROMPTS[1:], "prompts.txt:1 has changed"),
        ([PROMPTS[1], PROMPTS[0], *PROMPTS[2:]], "prompts.txt:1 has changed"),
        ([*PROMPTS[:2], PROMPTS[2] + " ", *PROMPTS[3:]], "prompts.txt:3 has changed"),
        (PROMPTS[:2], "the input ends after 2 rows"),
    ],
)
def test_an_input_that_has_changed_is_refused(
    tmp_path: Path, begun_output: Path, lines: list[str], difference: str
) -> None:
    prompts = write_lines(tmp_path / "prompts.txt", lines)
    assert difference in failure(run(prompts, "-q", "-o", begun_output, "--resume"), 1)


def test_a_refused_run_goes_on_once_its_input_is_restored(prompts: Path, begun_output: Path) -> None:
    write_lines(prompts, PROMPTS[1:])
    failure(run(prompts, "-q", "-o", begun_output, "--resume"), 1)
    write_lines(prompts, PROMPTS)
    assert rows(run(prompts, "-o", begun_output, "--resume")) == 3


def test_another_model_is_refused(prompts: Path, begun_output: Path, folders: dict[str, Path]) -> None:
    line = failure(invoke("run", prompts, "-q", "--model", folders["gpt2"], "-o", begun_output, "--resume"), 1)
    assert 'was started with model "bundled", but now it is' in line


@pytest.mark.parametrize("what", ["weights", "tokenizer", "config"])
def test_a_model_whose_files_have_changed_is_refused(
    prompts: Path, output: Path, tmp_path: Path, folders: dict[str, Path], what: str
) -> None:
    folder = model_folder(tmp_path, folders)
    arguments = ["run", prompts, "-q", "--model", folder, "--max-new-tokens", 5, "-o", output]
    invoke(*arguments, "--limit", 3, "--keep-store")
    if what == "weights":
        weights = load_file(folder / "model.safetensors")
        weights["transformer.ln_f.bias"][0] += 1
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        file = folder / {"tokenizer": "tokenizer_config.json", "config": "config.json"}[what]
        file.write_text(json.dumps(json.loads(file.read_text()) | {"added": 1}))
    assert f"was started with {what}_sha256" in failure(invoke(*arguments, "--resume"), 1)


# The database as the output.


def test_a_database_is_the_store_itself(prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.db"
    assert run(prompts, "-o", output).exit_code == 0
    connection = sqlite3.connect(output)
    found = connection.execute("SELECT row_index, prompt FROM results ORDER BY row_index").fetchall()
    connection.close()
    assert found == list(enumerate(PROMPTS))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["prompts.txt", "results.db"]


def test_a_database_takes_new_rows(prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.db"
    begin(prompts, output)
    assert "--resume continues it" in failure(run(prompts, "-o", output), 1)
    assert rows(run(prompts, "-o", output, "--resume")) == 3
    assert rows(run(prompts, "-o", output, "--overwrite", "--limit", 2)) == 2


def test_a_database_needs_a_file() -> None:
    assert "needs a file" in failure(run("-p", "x", "--format", "sqlite"), 2)


# Notes.


def test_the_manifest_says_what_a_run_was_made_of(prompts: Path, output: Path, tmp_path: Path) -> None:
    run(prompts, "-o", output, "--manifest", tmp_path / "manifest.json", "--seed", 5)
    manifest: dict[str, Any] = json.loads((tmp_path / "manifest.json").read_text())
    parts = {"model", "options", "engine", "versions", "machine", "input", "stats", "command", "started", "finished"}
    assert set(manifest) == parts
    assert manifest["command"]["words"][:3] == ["batchgen", "run", "--model"]
    assert (manifest["model"]["model"], manifest["options"]["--seed"]) == ("bundled", 5)
    assert len(manifest["model"]["weights_sha256"]) == 64
    assert manifest["input"]["rows"] == manifest["stats"]["rows"] == 6


def test_the_manifest_of_a_resumed_run_is_of_the_whole_input(prompts: Path, output: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    run(prompts, "--manifest", first)
    begin(prompts, output)
    run(prompts, "-o", output, "--resume", "--manifest", second)
    one, other = (json.loads(file.read_text())["input"] for file in (first, second))
    assert one == other


def test_the_store_holds_the_manifest(prompts: Path, tmp_path: Path) -> None:
    run(prompts, "-o", tmp_path / "results.db")
    store = Store(tmp_path / "results.db")
    assert store.manifest()["stats"]["output_tokens"] == 30
    store.close()


def test_stats_are_json(prompts: Path, tmp_path: Path) -> None:
    result = run(prompts, "--stats", tmp_path / "stats.json")
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert (stats["rows"], stats["errors"], stats["output_tokens"]) == (6, 0, 30)
    assert (stats["model"], stats["dtype"], stats["device"]) == ("bundled", "float32", "cpu")
    assert len(records(result)) == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_run_whose_notes_cannot_be_written_can_be_resumed(prompts: Path, output: Path, tmp_path: Path) -> None:
    assert "/dev/full cannot be written" in failure(run(prompts, "-q", "-o", output, "--stats", "/dev/full"), 1)
    notes = tmp_path / "stats.json"
    assert rows(run(prompts, "-o", output, "--stats", notes, "--resume")) == 0
    assert json.loads(notes.read_text())["results_before"] == 6


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs are POSIX")
def test_notes_go_into_a_pipe_that_stays_one(prompts: Path, tmp_path: Path) -> None:
    os.mkfifo(fifo := tmp_path / "fifo")
    descriptor = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    assert run(prompts, "--stats", fifo).exit_code == 0
    assert json.loads(os.read(descriptor, 10_000))["rows"] == 6
    os.close(descriptor)
    assert fifo.is_fifo()


@pytest.mark.parametrize("flag", ["--manifest", "--stats"])
@pytest.mark.parametrize("place", ["prompts.txt", "out.jsonl", "out.jsonl.run.db", "nowhere/notes.json", "."])
def test_notes_replace_neither_input_nor_output(
    prompts: Path, output: Path, tmp_path: Path, flag: str, place: str
) -> None:
    assert f"{flag} {tmp_path / place}" in failure(run(prompts, "-q", "-o", output, flag, tmp_path / place), 1)
    assert prompts.read_text().splitlines() == PROMPTS
