"""Compressed files, in and out."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from batchgen.errors import InputError, OutputError
from batchgen.formats.compression import ZSTD_MODULES, packed, unpack
from batchgen.formats.reading import Source, count_rows, find_sources, read_requests
from tests.support.reading import read, read_to_the_damage

LINES = b"".join(b"line %d\n" % number for number in range(5000))


def pack(content: bytes, packing: str) -> bytes:
    stream = io.BytesIO()
    with packed(stream, packing) as packing_stream:
        packing_stream.write(content)
    return stream.getvalue()


@pytest.mark.parametrize("packing", [".gz", ".zst"])
@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", b"a\nb\n"), ("a.csv", b"prompt\na\nb\n"), ("a.jsonl", b'{"text":"a"}\n{"text":"b"}')],
)
def test_packed_files_are_read(tmp_path: Path, packing: str, name: str, content: bytes) -> None:
    assert [request.prompt for request in read(tmp_path / (name + packing), pack(content, packing))] == ["a", "b"]


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_the_first_bytes_show_it_whatever_the_name(
    tmp_path: Path, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pack(b"a\nb\n", packing)
    assert [request.prompt for request in read(tmp_path / "a", content)] == ["a", "b"]
    assert [request.prompt for request in read(tmp_path / "a.txt", content)] == ["a", "b"]
    assert count_rows(find_sources([str(tmp_path / "a.txt")])) is None
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert [request.prompt for request in read_requests([Source("-")])] == ["a", "b"]


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_members_follow_each_other(tmp_path: Path, packing: str) -> None:
    content = pack(b"a\n", packing) + pack(b"b\n", packing)
    assert [request.prompt for request in read(tmp_path / f"a.txt{packing}", content)] == ["a", "b"]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.csv.zst"])
@pytest.mark.parametrize("content", [b"", b"prompt\na\n"])
def test_what_is_not_packed_is_refused_where_its_name_says_so(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(InputError, match=rf"{name} is not a {Path(name).suffix} file, despite its name"):
        read(tmp_path / name, content)


@pytest.mark.parametrize("packing", [".gz", ".zst"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_rows_before_the_cut_are_read(tmp_path: Path, packing: str, share: float) -> None:
    whole = pack(LINES * 20, packing)
    (tmp_path / f"a.txt{packing}").write_bytes(whole[: int(len(whole) * share)])
    seen, error = read_to_the_damage(tmp_path / f"a.txt{packing}")
    assert re.fullmatch(
        rf".* is damaged after line {len(seen)}: it ends too early; download or compress it again", error
    )
    assert seen == [line.decode() for line in (LINES * 20).splitlines()[: len(seen)]]


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_altered_bytes_are_one_line(tmp_path: Path, packing: str) -> None:
    content = bytearray(pack(LINES, packing))
    content[len(content) // 2 : len(content) // 2 + 8] = b"\xff" * 8
    with pytest.raises(InputError, match=r"is damaged after line \d+: .*; download or compress it again$"):
        read(tmp_path / f"a.txt{packing}", bytes(content))


def test_without_zstandard_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = pack(b"a\n", ".zst")
    for name in ZSTD_MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"a\.txt\.zst: .* pip install backports\.zstd"):
        read(tmp_path / "a.txt.zst", content)
    with pytest.raises(OutputError, match=r"pip install backports\.zstd"), packed(io.BytesIO(), ".zst"):
        pass


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_what_is_packed_unpacks_to_the_same(packing: str) -> None:
    stream = io.BytesIO()
    with packed(stream, packing) as packing_stream:
        for line in LINES.splitlines(keepends=True):
            packing_stream.write(line)
            packing_stream.flush()
    assert not stream.closed
    content = stream.getvalue()
    assert unpack(io.BufferedReader(io.BytesIO(content)), "a").read() == LINES
    assert not packing or len(content) < len(LINES) / 2


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_the_same_content_is_packed_to_the_same_bytes(packing: str) -> None:
    first, second = io.BytesIO(), io.BytesIO()
    for stream in (first, second):
        with packed(stream, packing) as packing_stream:
            packing_stream.write(LINES)
    assert first.getvalue() == second.getvalue()
