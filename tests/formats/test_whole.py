"""Files that are written atomically, under unpredictable temporary names, and that never replace another program's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from batchgen.errors import OutputError
from batchgen.formats.whole import FileState, temporary_name, write_at, write_json, write_whole


def write(file: Path, content: bytes = b"new", *, replaces: FileState | None = None) -> None:
    write_whole(file, lambda stream: stream.write(content), replaces=replaces)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def names(file: Path) -> list[str]:
    return sorted(path.name for path in file.parent.iterdir())


def test_a_new_file_is_all_there_is(file: Path) -> None:
    write(file)
    assert (file.read_bytes(), names(file)) == (b"new", ["out.jsonl"])


def test_a_file_that_was_known_is_replaced(file: Path) -> None:
    file.write_bytes(b"old")
    write(file, replaces=FileState.of(file))
    assert file.read_bytes() == b"new"


def test_a_known_file_that_is_gone_by_now_is_no_hindrance(file: Path) -> None:
    file.write_bytes(b"old")
    state = FileState.of(file)
    file.unlink()
    write(file, replaces=state)
    assert file.read_bytes() == b"new"


@pytest.mark.parametrize("was_there", [True, False])
def test_a_file_that_appeared_meanwhile_is_left_alone(file: Path, was_there: bool) -> None:
    if was_there:
        file.write_bytes(b"old")
    state = FileState.of(file)

    def fill(stream: object) -> None:
        other = file.with_name("other")
        other.write_bytes(b"somebody else's")
        other.replace(file)

    with pytest.raises(FileExistsError):
        write_whole(file, fill, replaces=state)
    assert (file.read_bytes(), names(file)) == (b"somebody else's", ["out.jsonl"])


def test_a_link_that_appeared_is_not_followed(file: Path) -> None:
    file.symlink_to("victim")
    with pytest.raises(FileExistsError):
        write(file)
    assert names(file) == ["out.jsonl"]


def test_a_writer_that_fails_leaves_nothing(file: Path) -> None:
    file.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        write_whole(file, lambda stream: 1 / 0, replaces=FileState.of(file))
    assert (file.read_bytes(), names(file)) == (b"old", ["out.jsonl"])


def test_temporary_names_differ_and_are_hidden_beside_the_file(file: Path) -> None:
    first, second = temporary_name(file), temporary_name(file)
    assert first != second
    assert {first.parent, second.parent} == {file.parent}
    assert first.name.startswith(".")
    assert len(temporary_name(file.with_name("x" * 255)).name) <= 255


def test_a_temporary_name_that_is_taken_is_not_used(file: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (taken := tmp_path / "taken").symlink_to("victim")
    with pytest.raises(FileExistsError):
        write_whole(file, lambda stream: stream.write(b"new"), replaces=None, temporary=taken)
    assert (tmp_path / "victim").read_bytes() == b"precious"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_permissions_of_the_old_file_stay(file: Path, mode: int) -> None:
    file.write_bytes(b"old")
    file.chmod(mode)
    write(file, replaces=FileState.of(file))
    assert file.stat().st_mode & 0o777 == mode


def test_a_private_file_is_private_while_it_is_written(file: Path) -> None:
    file.write_bytes(b"old")
    file.chmod(0o600)
    seen = []
    state = FileState.of(file)
    write_whole(file, lambda _: None, replaces=state, on_whole=lambda path: seen.append(path.stat().st_mode & 0o777))
    assert seen == [0o600]


def test_a_name_that_is_a_link_stays_one(file: Path, tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    file.symlink_to("real")
    write_at(file, b"new")
    assert (file.is_symlink(), (tmp_path / "real").read_bytes()) == (True, b"new")


def test_a_link_that_leads_nowhere_is_refused(file: Path) -> None:
    file.symlink_to("nowhere")
    with pytest.raises(OutputError, match="is a broken link"):
        write_json(file, {})
    assert names(file) == ["out.jsonl"]


def test_a_device_stays_one(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("FIFOs are POSIX")
    os.mkfifo(fifo := tmp_path / "fifo")
    reader = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    write_at(fifo, b"new")
    assert (os.read(reader, 10), fifo.is_fifo()) == (b"new", True)
    os.close(reader)
