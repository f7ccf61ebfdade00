"""The run store alone: it returns what was stored, has one writer, and knows whether the input is still the same."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.errors import InputError, InUseError, OutputError
from batchgen.records import Request, Result
from batchgen.runs.cells import FIELDS, digest_of
from batchgen.runs.database import is_in_use, remove_store
from batchgen.runs.locks import HELD
from batchgen.runs.store import Store
from tests.support.rows import requests_of

FINE = Result(0, "a", 0, "My dog", " is", "length", 2, 1, None, {}, "bundled", (3666, 3290), (318,), 0, 2)
FAILED = Result(1, "b", 0, "", "", "error", 0, 0, "the prompt is empty", {}, "bundled")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl.run.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store(path)
    yield opened
    if not opened.is_closed:
        with suppress(OutputError):  # a failed store reports its failure again
            opened.close()


def indices(requests: Iterator[Request]) -> list[int]:
    return [request.index for request in requests]


# Stored results come back unchanged.


def test_results_come_back_in_input_order(store: Store) -> None:
    second, first, sample = replace(FINE, index=1), FINE, replace(FINE, sample_index=1)
    for result in (second, sample, first):
        store.add(result)
    assert list(store.results()) == [first, sample, second]
    assert (store.num_results, store.num_failed_rows, store.first_error()) == (3, 0, None)


def test_a_query_that_was_left_ends_quietly_with_the_store(store: Store) -> None:
    for index in range(3):
        store.add(replace(FINE, index=index))
    results = store.results()
    assert next(results) == replace(FINE, index=0)
    store.close()
    results.close()  # type: ignore[attr-defined]


def test_failed_rows_are_counted(store: Store) -> None:
    store.add(FINE)
    store.add(FAILED)
    assert (store.num_results, store.num_failed_rows, store.first_error()) == (2, 1, FAILED)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too


@given(
    id=st.text() | ANY_TEXT | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    prompt=ANY_TEXT,
    text=ANY_TEXT,
    metadata=st.dictionaries(ANY_TEXT, JSON, max_size=3),
    output_ids=st.lists(st.integers(0, 50256)),
)
def test_every_result_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, **values: Any) -> None:
    result = replace(FINE, **{**values, "output_ids": tuple(values["output_ids"])})
    store = Store(tmp_path_factory.mktemp("store") / "x.db")
    store.add(result)
    [found] = store.results()
    store.discard()
    assert found == result
    assert type(found.id) is type(result.id)


def test_columns_are_the_fields_of_a_result(store: Store, path: Path) -> None:
    store.add(FINE)
    store.close(as_single_file=True)
    connection = sqlite3.connect(path)
    columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(results)")]
    assert set(columns) == {"row_index", *FIELDS[1:], "hash"}
    connection.close()


def test_a_closed_store_is_one_file_for_any_reader(store: Store, path: Path) -> None:
    store.add(FINE)
    store.close(as_single_file=True)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    assert connection.execute("SELECT id, text FROM results").fetchall() == [("a", " is")]
    connection.close()


def test_what_is_committed_survives_without_a_close(store: Store, path: Path, tmp_path: Path) -> None:
    store.add(FINE)
    store.commit()
    store.add(FAILED)
    for ending in ("", "-wal"):  # what a kill would leave
        (tmp_path / f"copy.db{ending}").write_bytes(path.with_name(path.name + ending).read_bytes())
    copy = Store(tmp_path / "copy.db")
    assert list(copy.results()) == [FINE]
    copy.close()


def test_notes_are_json(store: Store) -> None:
    store.note("options", {"--seed": 1, "--stop": ["é"]})
    store.note("options", {"--seed": 2})
    assert store.manifest() == {"options": {"--seed": 2}}


# One writer.


def test_a_second_writer_is_refused_by_name(store: Store, path: Path) -> None:
    with pytest.raises(InUseError, match=r"out\.jsonl\.run\.db is in use by another run"):
        Store(path)


def test_a_closed_store_can_be_opened_again(store: Store, path: Path) -> None:
    store.close()
    Store(path).close()


def test_another_programs_database_is_refused(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE precious (x)")
    connection.close()
    with pytest.raises(OutputError, match="another program's database"):
        Store(path)


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_text("precious " * 1000)
    with pytest.raises(OutputError, match="is not a batchgen store"):
        Store(path)
    assert path.read_text().startswith("precious")


def test_a_store_of_another_version_is_refused(store: Store, path: Path) -> None:
    store.close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(OutputError, match="another version of batchgen"):
        Store(path)


def test_discarding_leaves_nothing(store: Store, path: Path) -> None:
    store.add(FINE)
    store.discard()
    assert list(path.parent.iterdir()) == []


def test_removing_what_is_not_there_is_no_error(path: Path) -> None:
    remove_store(path)


# What is left to do.


def test_an_empty_store_leaves_everything_to_do(store: Store) -> None:
    assert store.is_empty
    assert indices(store.unfinished(requests_of("abc"))) == [0, 1, 2]
    assert not store.is_empty


def test_finished_rows_are_left_out_and_new_ones_are_new_work(store: Store) -> None:
    list(store.unfinished(requests_of("abc")))
    for index in (0, 2):
        store.add(replace(FINE, index=index))
    assert indices(store.unfinished(requests_of("abcd"))) == [1, 3]
    assert store.done == set()


def test_samples_that_are_there_are_named(store: Store) -> None:
    requests = requests_of("ab", temperature=1.0, num_samples=3)
    list(store.unfinished(requests))
    store.add(replace(FINE, index=1, sample_index=2))
    assert indices(store.unfinished(requests)) == [0, 1]
    assert store.done == {(1, 2)}


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "other"},
        {"id": "other"},
        {"metadata": {"topic": "pets"}},
        {"error": "not UTF-8"},
        {"sampling": requests_of("x", max_new_tokens=7)[0].sampling},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_row_that_has_changed_is_refused_before_anything_is_done(store: Store, change: dict[str, Any]) -> None:
    requests = requests_of("abc")
    list(store.unfinished(requests))
    changed = replace(requests[2], source="rows.txt:3", **change)
    with pytest.raises(InputError, match=r"^rows\.txt:3 has changed since .* start over with overwrite=True$"):
        next(store.unfinished([*requests[:2], changed]))


def test_an_input_with_fewer_rows_is_refused(store: Store) -> None:
    list(store.unfinished(requests_of("abc")))
    with pytest.raises(InputError, match="ends after 2 rows"):
        next(store.unfinished(requests_of("ab")))


def test_the_place_of_a_row_may_change(store: Store) -> None:
    requests = requests_of("a")
    list(store.unfinished(requests))
    assert indices(store.unfinished([replace(requests[0], source="moved.txt:1")])) == [0]
    assert digest_of(requests[0]) == digest_of(replace(requests[0], source="moved.txt:1"))


def test_failed_rows_can_be_tried_again_as_they_are_now(store: Store) -> None:
    requests = requests_of(["a", "", "c"])
    list(store.unfinished(requests))
    for result in (FINE, FAILED):
        store.add(result)
    assert indices(store.unfinished(requests)) == [2]
    store.forget_errors()
    mended = replace(requests[1], prompt="b")
    assert indices(store.unfinished([requests[0], mended, requests[2]])) == [1, 2]
    assert list(store.results()) == [FINE]
    with pytest.raises(InputError, match="prompt 1 has changed"):
        next(store.unfinished(requests))


def test_clearing_forgets_everything(store: Store) -> None:
    list(store.unfinished(requests_of("a")))
    store.add(FINE)
    store.note("x", 1)
    store.clear()
    assert (store.is_empty, store.num_results, store.manifest()) == (True, 0, {})


# A disk that fails.


def test_a_failed_commit_is_told_by_the_next_write(store: Store) -> None:
    store._failure = sqlite3.OperationalError("database or disk is full")
    store._failure.sqlite_errorcode = sqlite3.SQLITE_FULL
    with pytest.raises(
        OutputError, match="the disk is full: free some space, then run the same command with resume=True"
    ):
        store.add(FINE)


def test_a_store_that_cannot_grow_keeps_what_it_has(store: Store) -> None:
    store.add(FINE)
    store.commit()
    store._connection.execute("PRAGMA max_page_count = 8")
    with pytest.raises(OutputError, match="the disk is full"):
        fill(store)
    assert next(store.results()) == FINE


def fill(store: Store) -> None:
    for index in range(1, 1000):
        store.add(replace(FINE, index=index, text="x" * 1000))


def test_the_file_goes_last(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    monkeypatch.setattr(Path, "unlink", lambda file, missing_ok: removed.append(file.name))
    remove_store(path)
    journal = path.name + "-wal"
    assert removed.index(journal) < removed.index(path.name)
    assert journal in removed[removed.index(path.name) :]  # a reader at that moment may have created it again


def test_nothing_is_kept_behind_a_write_that_failed(store: Store, path: Path) -> None:
    """On a full disk SQLite undoes what was not committed, and rows stored after that would follow a gap."""
    rows = requests_of("abc")
    _, second, third = store.unfinished(rows)
    store.add(FINE)
    store.commit()
    store._connection.execute("CREATE TRIGGER full BEFORE INSERT ON inputs BEGIN SELECT RAISE(ROLLBACK, 'full'); END")
    with pytest.raises(OutputError, match="full"):
        store._note(second)
    store._connection.execute("DROP TRIGGER full")
    for write in (lambda: store._note(third), lambda: store.add(FAILED), store.commit, store.close):
        with pytest.raises(OutputError, match="full"):
            write()
    again = Store(path)
    assert again.num_results == 1
    assert indices(again.unfinished(rows)) == [1, 2]
    again.close()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux tells which files are open")
def test_who_waits_for_a_store_that_is_removed_gets_none_without_a_name(path: Path) -> None:
    def num_open() -> int:
        return sum(os.path.realpath(link) == str(path) for link in Path("/proc/self/fd").iterdir())

    first = Store(path)
    before = num_open()
    HELD.clear()  # as in another process
    with ThreadPoolExecutor() as pool:
        second = pool.submit(Store, path)
        while num_open() == before and not second.done():
            pass
        first.discard()
        with pytest.raises(InUseError):
            second.result()
    assert list(path.parent.iterdir()) == []


def test_asking_whether_a_store_is_in_use_changes_nothing(store: Store, path: Path, tmp_path: Path) -> None:
    assert is_in_use(path)
    store.close()
    (empty := tmp_path / "empty").touch()
    assert (is_in_use(path), is_in_use(empty), is_in_use(tmp_path / "nowhere")) == (False, False, False)
    assert (empty.read_bytes(), (tmp_path / "nowhere").exists()) == (b"", False)


# Damage.


def edit(path: Path, statement: str) -> None:
    """Change a closed store as damage or another program would."""
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE results SET text = ' was' WHERE row_index = 0",
        "UPDATE results SET text = X'FF' WHERE row_index = 0",
        "UPDATE results SET metadata = '{' WHERE row_index = 0",
        "UPDATE results SET output_ids = NULL WHERE row_index = 0",
        "UPDATE results SET hash = X'00' WHERE row_index = 0",
        "UPDATE results SET row_index = 9 WHERE row_index = 1",
        "DELETE FROM results WHERE row_index = 1",
        "DELETE FROM inputs WHERE row_index = 1",
        "UPDATE inputs SET num_samples = 2 WHERE row_index = 0",
        "UPDATE inputs SET num_samples = 'x' WHERE row_index = 0",
    ],
    ids=str,
)
def test_no_damaged_row_is_given_out(store: Store, path: Path, damage: str) -> None:
    list(store.unfinished(requests_of(["My dog", ""])))
    store.add(FINE)
    store.add(FAILED)
    assert list(store.complete_results()) == [FINE, FAILED]
    store.close(as_single_file=True)
    edit(path, damage)
    again = Store(path)
    with pytest.raises(OutputError, match="is damaged: move it away, or start over with overwrite=True"):
        list(again.complete_results())
    again.close()


def test_samples_must_all_be_there(store: Store) -> None:
    list(store.unfinished(requests_of("a", temperature=1.0, num_samples=2)))
    store.add(FINE)
    with pytest.raises(OutputError, match="is damaged"):
        list(store.complete_results())
    store.add(replace(FINE, sample_index=1))
    assert len(list(store.complete_results())) == 2


def test_a_sample_that_failed_does_not_stand_for_the_others(store: Store) -> None:
    list(store.unfinished(requests_of("a", temperature=1.0, num_samples=2)))
    store.add(replace(FINE, finish_reason="error", error="not a number"))
    store.add(replace(FINE, sample_index=1))
    assert len(list(store.complete_results())) == 2


def test_a_damaged_note_is_not_taken_for_what_was_noted(store: Store, path: Path) -> None:
    store.note("options", {"--seed": 1})
    store.close(as_single_file=True)
    edit(path, "UPDATE manifest SET value = replace(value, '1', '2')")
    again = Store(path)
    with pytest.raises(OutputError, match="is damaged"):
        again.manifest()
    again.close()


def test_the_digest_of_a_bad_row_does_not_depend_on_how_its_file_was_named() -> None:
    [request] = requests_of("a")
    here = replace(request, error="rows.jsonl:2: not valid JSON", source="rows.jsonl:2")
    there = replace(request, error="/data/rows.jsonl:2: not valid JSON", source="/data/rows.jsonl:2")
    other = replace(request, error="rows.jsonl:2: not UTF-8", source="rows.jsonl:2")
    assert digest_of(here) == digest_of(there) != digest_of(other)


LIMITED = """
import os, resource, sys
from pathlib import Path
from batchgen.runs.store import Store
name, number = sys.argv[1:3]
number = int(number) or len(os.listdir("/proc/self/fd"))
resource.setrlimit(getattr(resource, name), (number, resource.getrlimit(getattr(resource, name))[1]))
try:
    Store(Path(sys.argv[3]))
except Exception as error:
    print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("name", "number", "says"), [("NOFILE", 0, "ulimit -n"), ("FSIZE", 2048, "ulimit -f")])
def test_a_limit_of_the_process_is_not_called_a_bad_folder(tmp_path: Path, name: str, number: int, says: str) -> None:
    arguments = [sys.executable, "-c", LIMITED, f"RLIMIT_{name}", str(number), str(tmp_path / "out.jsonl.run.db")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert says in done.stdout
