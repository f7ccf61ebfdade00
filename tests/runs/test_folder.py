"""The output folder of a run on Ray: files are written atomically, and what is still missing is known."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

from batchgen.errors import OutputError
from batchgen.records import Result
from batchgen.runs.ray.file_parts import FilePart
from batchgen.runs.ray.folder import OutputFolder, Piece
from batchgen.runs.ray.inputs import InputFile

PARTS = [FilePart(number, InputFile("a", "/a"), "text", number * 10, 10) for number in range(3)]


@pytest.fixture(params=["path", "url"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> OutputFolder:
    made = OutputFolder(str(tmp_path / "out") if request.param == "path" else f"memory://{tmp_path.name}/out")
    made.make()
    return made


def result(index: int) -> Result:
    return Result(index, str(index), 0, "p", "t", "length", 1, 1, None, {}, "m")


def write(folder: OutputFolder, *pieces: Piece) -> None:
    for piece in pieces:
        folder.write(piece, [result(index) for index in range(piece.start, piece.stop)])


def left(folder: OutputFolder) -> list[tuple[int, int, int]]:
    return [(piece.part.number, piece.start, piece.stop) for piece in folder.missing(PARTS)]


def test_a_new_folder_lacks_everything(folder: OutputFolder) -> None:
    assert left(folder) == [(0, 0, 10), (1, 0, 10), (2, 0, 10)]


def test_a_piece_is_there_when_its_file_is(folder: OutputFolder) -> None:
    piece = Piece(PARTS[0], 0, 5)
    assert not folder.has(piece)
    write(folder, piece)
    assert folder.has(piece)


def test_what_is_there_is_not_missing(folder: OutputFolder) -> None:
    write(folder, Piece(PARTS[0], 0, 10), Piece(PARTS[2], 0, 2), Piece(PARTS[2], 4, 7))
    assert folder.names() == ["part-00000.jsonl", "part-00002.000000-000002.jsonl", "part-00002.000004-000007.jsonl"]
    assert left(folder) == [(1, 0, 10), (2, 2, 4), (2, 7, 10)]


def test_by_name_files_are_in_input_order(folder: OutputFolder) -> None:
    pieces = [Piece(PARTS[1], 9, 10), Piece(PARTS[1], 0, 9), Piece(PARTS[0], 0, 10)]
    write(folder, *pieces)
    lines = b"".join(folder.filesystem.cat_file(f"{folder.path}/{name}") for name in folder.names()).splitlines()
    assert [json.loads(line)["index"] for line in lines] == [*range(10), *range(10)]


def test_a_file_that_fails_half_way_is_not_there(folder: OutputFolder) -> None:
    def results() -> object:
        yield result(0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        folder.write(Piece(PARTS[0], 0, 10), results())  # type: ignore[arg-type]
    assert left(folder)[0] == (0, 0, 10)
    folder.clean()
    assert folder.names() == []


def test_starting_anew_leaves_other_files_alone(folder: OutputFolder) -> None:
    write(folder, Piece(PARTS[0], 0, 10))
    folder.write_manifest({"a": 1})
    folder.filesystem.pipe(f"{folder.path}/notes.txt", b"mine")
    assert folder.read_manifest() == {"a": 1}
    folder.clean(all_of_ours=True)
    assert folder.names() == ["notes.txt"]


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="is a file: with --ray, name a folder"):
        OutputFolder(str(tmp_path / "out")).names()
    assert fsspec.filesystem("file").exists(str(tmp_path / "out"))


def test_a_piece_is_split_to_single_rows() -> None:
    piece = Piece(PARTS[0], 2, 7)
    assert [(one.start, one.stop) for one in piece.split(2)] == [(2, 5), (5, 7)]
    assert [one.num_rows for one in piece.split(16)] == [1] * 5
