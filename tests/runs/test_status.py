"""`status` and `results`: what they show about a run that is alive, was interrupted, or has finished."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchgen.cli.typed import again
from batchgen.records import Result
from batchgen.render.screen import OutputConsole
from batchgen.render.status import print_status, status_lines
from batchgen.runs import database
from batchgen.runs.progress import GENERATING, ProgressNote, Reporter
from batchgen.runs.ray.file_parts import FilePart
from batchgen.runs.ray.folder import OutputFolder, Piece
from batchgen.runs.ray.inputs import InputFile
from batchgen.runs.ray.status import FolderStatus
from batchgen.runs.results import follow_results
from batchgen.runs.status import RunStatus, read_status
from batchgen.runs.store import Store
from tests.support.command import failure, invoke, records, run
from tests.support.rows import requests_of

FINE = Result(0, "0", 0, "My dog", " is", "length", 2, 1, None, {}, "bundled", (3666, 3290), (318,), 0, 2)
NOW = 1_000_000.0


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def store_of(output: Path) -> Path:
    return output.with_name(output.name + ".run.db")


def fine(index: int) -> Result:
    return replace(FINE, index=index, id=str(index))


@pytest.fixture
def alive(output: Path) -> Iterator[Store]:
    """A run of four rows that is alive; the first and the last are finished, the last one has failed."""
    store = Store(store_of(output))
    reporter = Reporter(store, clock=lambda: NOW)
    reporter.measure = lambda progress: replace(progress, rows_total=4, new_tokens=5, seconds_left=75.0)
    list(store.unfinished(requests_of("abcd")))
    store.add(FINE)
    store.add(replace(fine(3), text="", finish_reason="error", error="the prompt is empty"))
    store.note("command", {"words": ["batchgen", "run", "p.txt", "-o", "out.jsonl"], "folder": "/data"})
    reporter.begin(GENERATING)
    store.commit()
    yield store
    if not store.is_closed:
        store.close()


def lines_of(status: RunStatus, now: float = NOW) -> str:
    return "\n".join(f"{label} {text}" for label, text in status_lines(status, "", now))


# A run that is alive, or was interrupted.


@pytest.mark.usefixtures("alive")
def test_a_live_run_says_how_far_it_is(output: Path) -> None:
    said = invoke("status", output)
    assert said.exit_code == 0
    assert f"{output}: running, 2 of 4 rows (50.0%), 1 failed" in said.stdout
    assert "failed  1 row: the prompt is empty" in said.stdout
    assert f"next    batchgen results {output} --follow" in said.stdout


@pytest.mark.usefixtures("alive")
def test_json_has_the_counts_and_what_to_type_next(output: Path) -> None:
    facts = json.loads(invoke("status", output, "--json").stdout)
    names = ("state", "rows_done", "rows_total", "rows_failed", "next")
    assert [facts[name] for name in names] == ["running", 2, 4, 1, f"batchgen results {output} --follow"]
    assert facts["reasons"] == [{"error": "the prompt is empty", "rows": 1}]


def test_time_left_shrinks_between_notes_and_silence_is_told(output: Path, alive: Store) -> None:
    assert "about 0:01:05 left" in lines_of(read_status(output), NOW + 10)
    assert "no progress for 1:23:20" in lines_of(read_status(output), NOW + 5000)
    alive.close()
    assert "no progress" not in lines_of(read_status(output), NOW + 5000)


def test_an_interrupted_run_is_told_how_to_go_on(output: Path, alive: Store) -> None:
    alive.close()
    status = read_status(output)
    assert (status.state, status.rows_done, status.rows_failed, status.has_failed) == ("interrupted", 2, 1, False)
    said = json.loads(invoke("status", output, "--json").stdout)
    assert said["next"] == "cd /data && batchgen run p.txt -o out.jsonl --resume"


def test_the_stores_name_does_too(output: Path, alive: Store) -> None:
    assert read_status(store_of(output)).rows_done == 2
    alive.close()
    assert read_status(store_of(output)).state == "interrupted"


def test_what_no_run_has_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine\n")
    for name in ("notes.txt", "nothing.jsonl"):
        assert "there is no run with this output" in failure(invoke("status", tmp_path / name), 1)
    assert "this is not the output of a run" in failure(invoke("status", tmp_path), 1)


def test_a_run_that_keeps_its_store_to_itself_is_told_from_the_file_beside(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "allows_readers", lambda path: False)
    monkeypatch.setattr(database, "LOCK_PATIENCE_S", 0.1)
    store = Store(store_of(output))
    reporter = Reporter(store, clock=lambda: NOW)
    assert (read_status(output).state, read_status(output).rows_done) == ("running", 0)
    list(store.unfinished(requests_of("ab")))
    store.add(FINE)
    reporter.measure = lambda progress: replace(progress, rows_total=2, new_tokens=1)
    reporter.begin(GENERATING)
    status = read_status(output)
    assert (status.state, status.rows_done, status.rows_total) == ("running", 1, 2)
    assert "is in use by another run" in failure(invoke("results", output), 1)
    store.close()


def test_what_did_not_move_is_not_noted_again(output: Path) -> None:
    store = Store(store_of(output))
    times = iter([1.0, 1.0, 2.0, 3.0, 4.0])
    reporter = Reporter(store, clock=lambda: next(times))
    reporter.note()
    reporter.note()
    assert store.manifest()["progress"]["noted_s"] == 2.0
    reporter.begin(GENERATING)
    assert store.manifest()["progress"]["noted_s"] == 3.0
    store.close()


# A finished run.


def test_a_finished_run_is_complete_with_or_without_its_store(tmp_path: Path) -> None:
    for name, options in (("a.jsonl", []), ("b.jsonl", ["--keep-store"]), ("c.db", [])):
        assert run("-p", "My dog is", "-o", tmp_path / name, *options).exit_code == 0
        status = read_status(tmp_path / name)
        assert (status.state, status.rows_done, status.rows_total, status.output_tokens) == ("complete", 1, 1, 5)
        assert invoke("status", tmp_path / name, "--watch").exit_code == 0


def test_failed_rows_of_a_complete_run_are_exit_code_3(tmp_path: Path) -> None:
    run("-p", "My dog is", "-p", "", "-o", tmp_path / "a.jsonl")
    run("-p", "My dog is", "-p", "", "-o", tmp_path / "b.jsonl", "--keep-store")
    first, second = (invoke("status", tmp_path / name, "--json") for name in ("a.jsonl", "b.jsonl"))
    assert (first.exit_code, second.exit_code) == (3, 3)
    assert "jq" in json.loads(first.stdout)["next"]
    assert json.loads(second.stdout)["next"].endswith("--keep-store --retry-errors")
    assert json.loads(first.stdout)["reasons"] == json.loads(second.stdout)["reasons"] != []


def test_a_store_whose_file_was_never_written_is_of_an_interrupted_run(tmp_path: Path) -> None:
    run("-p", "My dog is", "-o", tmp_path / "a.jsonl", "--keep-store")
    (tmp_path / "a.jsonl").unlink()
    assert read_status(tmp_path / "a.jsonl").state == "interrupted"


def test_a_run_notes_how_far_it_is(tmp_path: Path) -> None:
    run("-p", "My dog is", "-p", "It will", "-o", tmp_path / "a.db", "--num-samples", 2, "--temperature", 1)
    status = read_status(tmp_path / "a.db")
    progress = status.progress
    assert progress
    assert (progress.rows_total, progress.prompt_tokens, progress.output_tokens, progress.new_tokens) == (2, 10, 20, 20)
    assert (progress.pid, progress.engine, progress.dtype) == (os.getpid(), "continuous", "float32")
    assert status.command[:2] == ("batchgen", "run")


def test_a_run_that_goes_on_counts_what_was_there(tmp_path: Path) -> None:
    output = tmp_path / "a.db"
    (tmp_path / "p.txt").write_text("My dog is\nIt will\n")
    run(tmp_path / "p.txt", "-o", output, "--limit", 1)
    run(tmp_path / "p.txt", "-o", output, "--resume")
    status = read_status(output)
    assert (status.state, status.rows_done, status.output_tokens) == ("complete", 2, 10)


# What to type next.


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("batchgen run p.txt -o a.jsonl", "batchgen run p.txt -o a.jsonl --resume"),
        ("batchgen run p.txt -o a.jsonl --overwrite", "batchgen run p.txt -o a.jsonl --resume"),
        ("batchgen run -o a.jsonl -- -p.txt", "batchgen run --resume -o a.jsonl -- -p.txt"),
    ],
)
def test_a_command_goes_on_with_a_flag(words: str, expected: str) -> None:
    assert again(words.split(), "--resume", None) == expected


# Results.


@pytest.mark.usefixtures("alive")
def test_finished_rows_of_a_live_run_come_in_input_order(output: Path) -> None:
    assert [row["index"] for row in records(invoke("results", output))] == [0, 3]
    assert invoke("results", output, "--format", "csv", "--ids").stdout.count("\n") == 3
    assert "--follow" in failure(invoke("results", output, "--follow", "--format", "parquet"), 2)


def test_following_gives_rows_in_order_as_those_before_are_done(output: Path, alive: Store) -> None:
    steps = iter([lambda: alive.add(fine(2)), lambda: alive.add(fine(1)), lambda: alive.discard()])

    def wait() -> None:
        next(steps)()
        if not alive.is_closed:
            alive.commit()

    seen = []
    for result in follow_results(output, wait):
        seen.append((result.index, alive.num_results if not alive.is_closed else None))
    assert seen == [(0, 2), (1, 4), (2, 4), (3, 4)]


def test_following_a_run_that_is_interrupted_ends_with_what_there_is(output: Path, alive: Store) -> None:
    assert [result.index for result in follow_results(output, alive.close)] == [0, 3]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz", "a.db", "a.parquet"])
def test_results_of_a_finished_file_are_its_rows(tmp_path: Path, name: str) -> None:
    arguments: list[Any] = ["-p", "My dog is", "-p", "", "-p", "It will rain"]
    run(*arguments, "-o", tmp_path / name)
    expected = records(run(*arguments))
    assert records(invoke("results", tmp_path / name)) == expected


def test_what_has_no_rows_says_so(tmp_path: Path) -> None:
    run("-p", "My dog is", "-o", tmp_path / "a.txt")
    assert "has only the answers" in failure(invoke("results", tmp_path / "a.txt"), 1)
    assert "there is no run with this output" in failure(invoke("results", tmp_path / "b.jsonl"), 1)
    (tmp_path / "c.jsonl").write_text('{"prompt": "My dog is"}\n')
    assert "c.jsonl:1 is not a batchgen result" in failure(invoke("results", tmp_path / "c.jsonl"), 1)


# The folder of a run on Ray.


@pytest.fixture
def folder(tmp_path: Path) -> OutputFolder:
    made = OutputFolder(str(tmp_path / "out"))
    made.make()
    made.write_manifest({"inputs": {"part_rows": {"0": 3, "1": 3}}, "started": "2026-01-01T00:00:00+00:00"})
    return made


def part(number: int, *results: Result) -> tuple[Piece, tuple[Result, ...]]:
    whole = FilePart(number, InputFile("a", "/a"), "text", number * 3, 3)
    return Piece(whole, 0, len(results)), results


def test_a_folder_says_how_many_rows_its_files_have(folder: OutputFolder) -> None:
    failed = replace(fine(2), finish_reason="error", error="a:3: empty", source="a:3")
    folder.write(*part(0, fine(0), fine(1), failed))
    folder.write(*part(1, fine(3)))
    folder.write_progress(ProgressNote(GENERATING, NOW, NOW, "another", 1, output_tokens=7))
    status = FolderStatus(folder.place, clock=lambda: NOW + 10).read()
    assert (status.state, status.rows_done, status.rows_total, status.rows_failed) == ("running", 4, 6, 1)
    assert (status.reasons, status.output_tokens) == ((("empty", 1),), 7)
    assert FolderStatus(folder.place, clock=lambda: NOW + 5000).read().state == "interrupted"
    assert invoke("status", folder.place).exit_code == 0


def test_a_folder_whose_run_has_ended_is_complete(folder: OutputFolder) -> None:
    folder.write_manifest({**folder.read_manifest(), "finished": "2026-01-01T00:01:00+00:00"})
    assert FolderStatus(folder.place).read().state == "complete"


def test_a_run_on_this_machine_lives_as_long_as_its_process(folder: OutputFolder) -> None:
    import socket

    for pid, state in ((os.getpid(), "running"), (2**22 + 1, "interrupted")):
        folder.write_progress(ProgressNote(GENERATING, NOW, NOW, socket.gethostname(), pid))
        assert FolderStatus(folder.place).read().state == state


def test_lines_show_memory_against_what_was_predicted() -> None:
    status = RunStatus("a", "running", 1, None, 0, predicted_bytes=2 << 20, measured_bytes=1 << 20, peak_bytes=3 << 20)
    assert "peak 3 MiB, largest batch 1 MiB of 2 MiB predicted" in lines_of(status)
    assert "the number of input rows is not known yet" in lines_of(status)


def test_nothing_of_a_path_reaches_a_terminal_raw(tmp_path: Path) -> None:
    from io import StringIO

    stream = StringIO()
    print_status(OutputConsole(file=stream), status_lines(RunStatus("a\x1b[31m", "running", 1, 2, 0), "", NOW))
    assert "\x1b" not in stream.getvalue()
