"""Readers beside a writer: who may open a store, and what others see of it meanwhile."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from batchgen.errors import InputError, InUseError, OutputError
from batchgen.machine.file_systems import is_on_network
from batchgen.records import Result
from batchgen.runs import database
from batchgen.runs.database import file_beside, is_in_use
from batchgen.runs.locks import HELD
from batchgen.runs.store import Store
from batchgen.runs.stored import open_stored
from tests.support.rows import requests_of

FINE = Result(0, "a", 0, "My dog", " is", "length", 2, 1, None, {}, "bundled", (3666, 3290), (318,), 0, 2)
FAILED = replace(FINE, index=1, id="b", text="", finish_reason="error", error="p.txt:2: the prompt is empty")

OPEN = """
import sys
from pathlib import Path
from batchgen.errors import InUseError
from batchgen.runs import database
from batchgen.runs.store import Store
database.LOCK_PATIENCE_S = 0.1
try:
    Store(Path(sys.argv[1])).close()
except InUseError:
    sys.exit(7)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl.run.db"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder on which processes share no memory."""
    monkeypatch.setattr(database, "allows_readers", lambda path: False)
    monkeypatch.setattr(database, "LOCK_PATIENCE_S", 0.1)


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store(path)
    yield opened
    if not opened.is_closed:
        opened.close()


def exit_code_of_a_second_run(path: Path) -> int:
    return subprocess.run([sys.executable, "-c", OPEN, str(path)], timeout=600).returncode


def test_what_is_committed_can_be_read_while_the_store_is_written(store: Store, path: Path) -> None:
    store.add(FINE)
    store.commit()
    with open_stored(path) as stored:
        store.add(replace(FINE, index=1))
        assert list(stored.results()) == [FINE]
        store.commit()
        assert [result.index for result in stored.results()] == [0, 1]


def test_any_sqlite_can_read_it_meanwhile(store: Store, path: Path) -> None:
    store.add(FINE)
    store.commit()
    other = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    assert other.execute("SELECT id, text FROM results").fetchall() == [("a", " is")]
    other.close()


def test_two_processes_never_write_one_store(store: Store, path: Path) -> None:
    assert exit_code_of_a_second_run(path) == 7
    store.close()
    assert exit_code_of_a_second_run(path) == 0


def test_a_reader_keeps_no_run_from_its_store(store: Store, path: Path) -> None:
    store.close()
    with open_stored(path):
        again = Store(path)
        again.add(FINE)
        again.commit()
        again.close()


def test_a_reader_that_stays_does_not_keep_a_run_from_its_end(store: Store, path: Path) -> None:
    store.add(FINE)
    store.commit()
    with open_stored(path) as stored:
        assert stored.num_results == 1
        store.add(replace(FINE, index=1))
        store.close(as_single_file=True)
    copy = path.with_name("copy.db")
    copy.write_bytes(path.read_bytes())  # without a journal
    with open_stored(copy) as stored:
        assert stored.num_results == 2


def test_a_reader_of_a_store_that_is_removed_sees_its_last_rows(store: Store, path: Path) -> None:
    store.add(FINE)
    store.commit()
    with open_stored(path) as stored:
        next(stored.results())
        store.discard()
        assert list(path.parent.iterdir()) == []
        assert list(stored.results()) == [FINE]


def test_a_lock_goes_with_its_process(path: Path) -> None:
    killed = OPEN.replace(".close()", "; import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    subprocess.run([sys.executable, "-c", killed, str(path)], timeout=600)
    assert not is_in_use(path)
    Store(path).close()


def test_one_process_does_not_open_a_store_twice(store: Store, path: Path) -> None:
    with pytest.raises(InUseError):
        Store(path)
    assert len(HELD) == 1
    store.close()
    assert not HELD


@pytest.mark.parametrize("content", ["precious " * 1000, ""])
def test_what_is_no_store_is_not_read(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises((InputError, OutputError), match=r"out\.jsonl\.run\.db is "), open_stored(path):
        pass


# Where processes share no memory.


@pytest.mark.usefixtures("alone")
def test_without_shared_memory_the_store_is_locked_and_a_file_beside_it_tells(path: Path) -> None:
    store = Store(path)
    store.put_beside(json.dumps({"rows": 1}))
    assert not store.allows_readers
    assert is_in_use(path)
    assert exit_code_of_a_second_run(path) == 7
    with pytest.raises(InUseError), open_stored(path):
        pass
    assert json.loads(file_beside(path).read_text()) == {"rows": 1}
    assert file_beside(path).stat().st_mode == path.stat().st_mode
    store.close()
    assert not file_beside(path).exists()


def test_a_file_system_without_shared_memory_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execute = database._execute

    def refuse(connection: sqlite3.Connection, *pragmas: str) -> None:
        if pragmas[0] == "journal_mode = WAL":
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMMAP
            raise error
        execute(connection, *pragmas)

    monkeypatch.setattr(database, "_execute", refuse)
    store = Store(path)
    assert not store.allows_readers
    store.close()


@pytest.mark.parametrize(
    ("folder", "expected"),
    [("/home/me", False), ("/data/run", True), ("/data with space/x", True), ("/data/local/x", False)],
)
def test_network_folders_are_known_by_their_mounts(tmp_path: Path, folder: str, expected: bool) -> None:
    mounts = tmp_path / "mounts"
    lines = ["/dev/sda / ext4 rw 0 0", "host:/x /data nfs4 rw 0 0", r"host:/y /data\040with\040space fuse.sshfs rw 0 0"]
    mounts.write_text("\n".join([*lines, "/dev/sdb /data/local xfs rw 0 0"]) + "\n")
    assert is_on_network(Path(folder), mounts) is expected


def test_where_the_system_does_not_say_a_folder_is_local(tmp_path: Path) -> None:
    assert not is_on_network(tmp_path, tmp_path / "nothing")


# Counts.


def test_reasons_are_counted_by_kind_without_their_places(store: Store) -> None:
    for index, error in enumerate(
        ["p.txt:1: 1,031 tokens, 1,024 fit", "p.txt:2: empty", "p.txt:3: 99 tokens, 1,024 fit"]
    ):
        store.add(replace(FAILED, index=index, source=f"p.txt:{index + 1}", error=error))
    assert store.reasons(5) == [("1,031 tokens, 1,024 fit", 2), ("empty", 1)]
    assert store.reasons(1) == [("1,031 tokens, 1,024 fit", 2)]


def test_a_row_is_complete_with_all_its_samples_or_failed(store: Store) -> None:
    list(store.unfinished(requests_of("ab", temperature=1.0, num_samples=2)))
    store.add(FINE)
    assert store.num_complete_rows == 0
    store.add(FAILED)
    assert store.num_complete_rows == 1
    store.add(replace(FINE, sample_index=1))
    assert store.num_complete_rows == 2
