"""Runs that continue with a finished file, replace one, or find somebody else's file."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from batchgen.runs import equipment, output
from batchgen.runs.manifest import version_facts
from batchgen.runs.store import Store
from tests.support.command import failure, invoke, run

PROMPTS = ["My dog is", "The sun", "She said"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    (path := tmp_path / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished output, its input, and the record beside it."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    assert run(folder / "prompts.txt", "-o", folder / "out.jsonl").exit_code == 0
    return folder


@pytest.fixture
def finished(made: Path, tmp_path: Path) -> Path:
    """A copy of that output."""
    for file in made.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path / "out.jsonl"


def store_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.run.db")


def record_of(file: Path) -> Path:
    return file.with_name(f".{file.name}.run")


# A finished file.


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--temperature", 1], "with --temperature 0.0, but now it is 1.0"),
        (["--stop", "."], 'without --stop, but now it is "."'),
        (["--ids"], "without --ids, but now with it"),
        (["--dtype", "bfloat16"], 'with --dtype "float32", but now it is "bfloat16"'),
    ],
    ids=str,
)
def test_other_options_are_another_job(finished: Path, options: list[object], difference: str) -> None:
    before = finished.read_bytes()
    line = failure(run(finished.parent / "prompts.txt", "-o", finished, "--resume", *options), 1)
    assert f"{finished} was started {difference}" in line
    assert finished.read_bytes() == before


def test_scores_do_not_go_on_with_a_file_of_answers(finished: Path) -> None:
    options = ["-o", finished, "--resume", "--model", "bundled"]
    line = failure(invoke("score", finished.with_name("prompts.txt"), *options), 1)
    assert 'was started with command "run", but now it is "score"' in line


def test_another_model_is_another_job(finished: Path, folders: dict[str, Path]) -> None:
    arguments = [finished.parent / "prompts.txt", "--max-new-tokens", 5, "-o", finished, "--resume"]
    assert "was started with model" in failure(invoke("run", "--model", folders["gpt2"], *arguments), 1)


def test_an_input_with_other_rows_is_another_job(finished: Path) -> None:
    (prompts := finished.parent / "prompts.txt").write_text("My cat is\nThe sun\nShe said\n")
    assert "the input has changed" in failure(run(prompts, "-o", finished, "--resume"), 1)


def test_the_same_job_typed_in_another_way_is_done(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.parent)
    result = run("./prompts.txt", "-o", "out.jsonl", "--resume")
    assert (result.exit_code, "is complete" in result.stderr) == (0, True)


def test_a_file_that_was_changed_is_not_taken_for_finished(finished: Path) -> None:
    finished.write_text(finished.read_text().replace("My dog", "My cat"))
    line = failure(run(finished.parent / "prompts.txt", "-o", finished, "--resume"), 1)
    assert "has changed since its run" in line


def test_a_finished_file_without_its_record_is_anybodys(finished: Path) -> None:
    record_of(finished).unlink()
    assert "was not written by batchgen" in failure(run(finished.parent / "prompts.txt", "-o", finished, "--resume"), 1)


@pytest.mark.parametrize("content", ["", "nonsense", "[]", '{"version": 0}', '{"version": 1, "files": 3}', "[" * 9999])
def test_a_record_that_cannot_be_read_is_none(finished: Path, content: str) -> None:
    record_of(finished).write_text(content)
    assert "was not written by batchgen" in failure(run(finished.parent / "prompts.txt", "-o", finished, "--resume"), 1)


def test_failed_rows_of_a_finished_file_need_its_store(tmp_path: Path) -> None:
    (rows := tmp_path / "rows.jsonl").write_text('{"prompt": "My dog is"}\nnonsense\n')
    assert run(rows, "-o", tmp_path / "out.csv").exit_code == 3
    line = failure(run(rows, "-o", tmp_path / "out.csv", "--retry-errors"), 1)
    assert "--keep-store keeps it" in line


# Starting over.


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Interrupt the run while the model loads."""
    monkeypatch.setattr(equipment, "load_model", lambda *_: signal.raise_signal(signal.SIGTERM))
    yield
    monkeypatch.undo()


def test_an_overwrite_that_is_stopped_never_leaves_the_old_file_as_complete(
    finished: Path, stopped: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [finished.parent / "prompts.txt", "-o", finished, "--temperature", 1]
    assert run(*command, "--overwrite").exit_code == 143
    monkeypatch.undo()
    result = run(*command, "--resume")
    assert (result.exit_code, "is complete" in result.stderr) == (0, False)
    assert "wrote" in result.stderr
    assert not store_of(finished).exists()


def test_what_appeared_while_the_model_loaded_is_not_replaced(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "out.jsonl"
    load = equipment.load_model

    def load_slowly(*arguments: object) -> object:
        file.write_text("somebody else's\n")
        return load(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(equipment, "load_model", load_slowly)
    line = failure(run(prompts, "-q", "-o", file), 1)
    assert f"{file} has appeared or changed since the run began: move it away" in line
    monkeypatch.undo()
    assert "move it away" in failure(run(prompts, "-q", "-o", file, "--resume"), 1)
    assert file.read_text() == "somebody else's\n"
    file.unlink()
    assert "3 results kept" in run(prompts, "-o", file, "--resume").stderr
    assert len(file.read_text().splitlines()) == 3


def test_a_killed_run_removes_what_it_left_half_written(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "out.jsonl"

    def die(path: Path, *_: object, temporary: Path, **__: object) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(output, "write_whole", die)
    with pytest.raises(KeyboardInterrupt):
        invoke_raising(prompts, file)
    monkeypatch.undo()
    assert len(list(tmp_path.glob(".batchgen-*.tmp"))) == 1
    assert run(prompts, "-o", file, "--resume").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.jsonl.run", "out.jsonl", "prompts.txt"]


def invoke_raising(prompts: Path, file: Path) -> None:
    import batchgen

    batchgen.run(prompts, output=file, model="bundled", max_new_tokens=5)


# Permissions, links, names.


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_output_store_and_record_are_as_private_as_the_old_file(
    finished: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    finished.chmod(mode)
    seen = []
    monkeypatch.setattr(equipment, "check_weights", lambda _: seen.append(store_of(finished).stat().st_mode & 0o777))
    assert run(finished.parent / "prompts.txt", "-o", finished, "--overwrite").exit_code == 0
    assert seen == [mode]
    assert {path.stat().st_mode & 0o777 for path in (finished, record_of(finished))} == {mode}


def test_a_new_store_is_private(prompts: Path, tmp_path: Path) -> None:
    run(prompts, "-o", tmp_path / "out.jsonl", "--keep-store")
    assert store_of(tmp_path / "out.jsonl").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.run.db", ".out.jsonl.run"])
def test_no_link_that_leads_nowhere_is_followed(prompts: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("nowhere")
    line = failure(run(prompts, "-q", "-o", tmp_path / "out.jsonl", "--overwrite"), 1)
    assert "is a broken link" in line
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--stats", "same.json", "--manifest", "./same.json"], "--stats same.json is also --manifest same.json"),
        (["--stats", ".out.jsonl.run"], "--stats .out.jsonl.run is also the output"),
        (["--manifest", "out.jsonl"], "--manifest out.jsonl is also the output"),
    ],
    ids=str,
)
def test_files_that_a_run_writes_differ(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert named in failure(run(prompts, "-q", "-o", "out.jsonl", *flags), 1)
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]


def test_pages_and_drawings_differ(tmp_path: Path) -> None:
    page = tmp_path / "page"
    arguments = ["inspect", "-p", "x", "--model", "bundled", "--mask", "--svg", page, "--html", page]
    assert f"--html {page} is also --svg {page}" in failure(invoke(*arguments), 1)
    assert not page.exists()


# Messages.


def test_every_file_that_is_written_is_named(prompts: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("out.csv", "manifest.json", "stats.json")]
    result = run(prompts, "-o", files[0], "--manifest", files[1], "--stats", files[2])
    assert f"batchgen: wrote {', '.join(map(str, files))}\n" in result.stderr
    assert all(file.exists() for file in files)


def test_the_closing_line_counts_what_was_kept(prompts: Path, tmp_path: Path) -> None:
    options = ["-o", tmp_path / "out.jsonl", "--stats", tmp_path / "stats.json"]
    run(prompts, *options, "--limit", 2, "--keep-store")
    assert "batchgen: 3 rows (2 kept), " in run(prompts, *options, "--resume").stderr
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert (stats["rows"], stats["rows_kept"], stats["results_before"]) == (3, 2, 2)


def test_rows_are_rows_however_many_samples_they_have(prompts: Path, tmp_path: Path) -> None:
    options = ["--temperature", 1, "--num-samples", 2]
    assert "batchgen: 3 rows, " in run(prompts, *options).stderr
    assert "batchgen: 3 rows, " in run(prompts, *options, "-o", tmp_path / "out.jsonl").stderr


def test_a_run_that_is_alive_is_not_called_interrupted(prompts: Path, tmp_path: Path) -> None:
    alive = Store(store_of(tmp_path / "out.jsonl"))
    line = failure(run(prompts, "-q", "-o", tmp_path / "out.jsonl"), 1)
    assert "is in use by another run" in line
    assert "interrupted" not in line
    alive.close()


def test_versions_that_have_changed_are_told(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(prompts, "-o", tmp_path / "out.jsonl", "--limit", 2, "--keep-store")
    now = {**version_facts(), "torch": "99.0"}
    monkeypatch.setattr("batchgen.runs.manifest.version_facts", lambda: now)
    result = run(prompts, "-o", tmp_path / "out.jsonl", "--resume")
    assert result.exit_code == 0
    assert f"was started with torch {version_facts()['torch']}, now 99.0" in result.stderr


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl.zst"])
def test_what_a_format_needs_is_asked_for_before_a_model_is_loaded(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("batchgen.formats.extras.MODULES", {"parquet": ("nowhere",), "zstd": ("nowhere",)})
    line = failure(invoke("run", prompts, "-o", tmp_path / name, "--model", "no-such-model"), 1)
    assert "needs another package: pip install" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.txt"]


def test_what_an_input_needs_is_asked_for_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["My dog is"]}), tmp_path / "rows.parquet")
    monkeypatch.setattr("batchgen.formats.extras.MODULES", {"parquet": ("nowhere",), "zstd": ("nowhere",)})
    line = failure(invoke("run", tmp_path / "rows.parquet", "--model", "no-such-model"), 1)
    assert "rows.parquet: Parquet needs another package" in line
