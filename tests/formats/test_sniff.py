"""The detected format of a source without a telling name; sources that are not text are refused."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.errors import InputError
from batchgen.formats.content import Content
from batchgen.formats.reading import ReadOptions, Source, find_sources, read_requests
from batchgen.formats.sniff import choose_format, look_at_json
from batchgen.formats.templates import Template
from batchgen.records import Request
from tests.support.reading import read


class Pipe(io.RawIOBase):
    """A stream that yields a few bytes at a time and cannot be read twice."""

    def __init__(self, content: bytes, at_once: int = 5) -> None:
        self._rest = content
        self._at_once = at_once

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._rest[: min(len(buffer), self._at_once)]
        self._rest = self._rest[len(piece) :]
        buffer[: len(piece)] = piece
        return len(piece)


def piped(content: bytes) -> Content:
    return Content("-", io.BufferedReader(Pipe(content)))


def form_of(content: bytes, **options: Any) -> str:
    return choose_format(piped(content), None, ReadOptions(**options))


def prompts(path: Path, content: bytes, **options: Any) -> list[str]:
    return [request.prompt for request in read(path, content, **options)]


# JSON.


@pytest.mark.parametrize(
    ("content", "form"),
    [
        ('{"prompt": "a"}\n', "jsonl"),
        ('{"input": "a"}\n{"input": "b"}', "jsonl"),
        ('\n  {"prompt": "a", "loss": NaN}\nnonsense', "jsonl"),
        ('{"prompt": "a"} {"prompt": "b"}\n', "jsonl"),
        ('{"custom_id": "a", "body": {}}\n', "openai-batch"),
        ('{\n  "prompt": "a"\n}\n{\n  "prompt": "b"\n}\n', "json"),
        ('{\n"prompt": "a"}', "json"),
        ('[{"prompt": "a"}]', "json"),
        ('[\n  {"prompt": "a", "x": -Infinity},\n  {"prompt": "b"}\n]\n', "json"),
        ('[{\n "a": ""\n },\n {\n "a": "b"}]\n', "json"),
        ("[]\n", "json"),
        ("[1, 2]", "json"),
        ("[INST] Hi [/INST]\n", "text"),
        ("[1] a note\n", "text"),
        ("[1]a\n", "text"),
        ('{"a": 1} is an object\n', "text"),
        ('{"prompt": "a",\n', "text"),
        ('{"name": "Anna", "age":\n{"name": "Bo", "age":\n', "text"),
        ("{\n}\nfoo\n", "text"),
        ("{x}\n", "text"),
        ("[\n", "text"),
        ('"a"\n', "text"),
        ("7\n", "text"),
        ("true\n", "text"),
        ("", "text"),
        ("\n \n", "text"),
    ],
)
def test_json_is_known_by_its_first_line_or_as_a_whole(content: str, form: str) -> None:
    assert form_of(content.encode()) == form
    assert form_of(b"\xef\xbb\xbf" + content.encode()) == form


def test_an_array_with_more_behind_it_is_refused() -> None:
    with pytest.raises(InputError, match="- begins with a JSON array and continues after it: set --input-format"):
        form_of(b'["a"]\n["b"]\n')


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff")), min_size=1))
def test_what_was_looked_at_is_read_again(lines: list[str]) -> None:
    content = "\n".join(lines).encode()
    source = piped(content)
    look_at_json(source)
    assert source.read(len(content) + 1) == content


@given(st.dictionaries(st.text(), st.lists(st.text())), st.sampled_from([None, 1, 4]))
def test_an_object_is_json_however_it_is_printed(value: dict[str, Any], indent: int | None) -> None:
    form = form_of(json.dumps(value, indent=indent).encode())
    assert form == ("json" if indent is not None and value else "jsonl")


def test_a_slow_pipe_of_text_is_read_line_by_line() -> None:
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, b"[INST] Hi\n")
        requests = read_requests([Source("pipe", Path(f"/dev/fd/{read_end}"))])
        assert next(requests).prompt == "[INST] Hi"
    finally:
        os.close(write_end)
        os.close(read_end)


def test_a_json_line_longer_than_a_row_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("content", "sniff"):
        monkeypatch.setattr(f"batchgen.formats.{module}.LONGEST_ROW", 100)
    long, good = read(tmp_path / "a", b'{"prompt": "' + b"a" * 200 + b'"}\n{"prompt": "b"}\n')
    assert "longer than" in (long.error or "")
    assert good.prompt == "b"


@pytest.mark.parametrize(
    "content",
    [
        '{"prompt": "a",}\n', "{'prompt': 'a'}\n", "{prompt: 'a'}\n", '[{"text": "a"},\n', '{\n  "messages": [],\n}\n',
        '[\n  {"prompt": "a",}\n]\n', '\x1e{"prompt": "a"}\n',
    ],
)  # fmt: skip
def test_broken_json_is_text_and_that_is_said(content: str) -> None:
    said: list[str] = []
    source = Content("-", io.BufferedReader(Pipe(content.encode())), say=said.append)
    assert choose_format(source, None, ReadOptions()) == "text"
    assert source.read(len(content) + 1) == content.encode()
    [line] = said
    assert line.startswith("- is read as text, although it begins like JSON")
    assert "--input-format json" in line


@pytest.mark.parametrize(
    "content", ['{"name": "Anna", "age":\n', "[INST] {prompt: x}\n", "{\n  prompt\n", '"prompt":\n']
)
def test_nothing_is_said_of_other_text(content: str) -> None:
    said: list[str] = []
    source = Content("-", io.BufferedReader(Pipe(content.encode())), say=said.append)
    assert choose_format(source, None, ReadOptions()) == "text"
    assert not said


# Documents.


def rows_of(path: Path, content: str, **options: Any) -> list[Request]:
    return read(path, content.encode(), **options)


@pytest.mark.parametrize("name", ["a.json", "a"])
def test_rows_of_an_array_have_the_line_they_begin_on(tmp_path: Path, name: str) -> None:
    requests = rows_of(tmp_path / name, '[\n\n  {"prompt": "a",\n "id": 7},\n{"text": "b"}, "c"\n]\n')
    assert [(r.prompt, r.id, r.source, r.error) for r in requests] == [
        ("a", 7, f"{name}:3", None), ("b", "1", f"{name}:5", None), ("c", "2", f"{name}:5", None),
    ]  # fmt: skip


def test_objects_over_several_lines_are_rows(tmp_path: Path) -> None:
    requests = rows_of(tmp_path / "a", '{\n "prompt": "a"\n}\n\n{\n "prompt": "b",\n "n": 1}\n')
    assert [(r.prompt, r.metadata, r.source) for r in requests] == [("a", {}, "a:1"), ("b", {"n": 1}, "a:5")]


def test_a_json_file_may_have_a_row_a_line(tmp_path: Path) -> None:
    good, bad, last = rows_of(tmp_path / "a.json", '{"prompt": "a"}\nnonsense\n{"prompt": "b"}\n')
    assert (good.prompt, last.prompt) == ("a", "b")
    assert (bad.error or "").startswith("a.json:2: not valid JSON")


def test_a_bad_row_of_an_array_fails_alone(tmp_path: Path) -> None:
    nan, number, digits, good = rows_of(
        tmp_path / "a.json",
        f'[{{"id": 1, "prompt": "a", "x": NaN}}, 7, {{"id": 2, "x": {"9" * 5000}}}, {{"prompt": "b"}}]',
    )
    assert (nan.id, nan.error) == (1, "a.json:1: not valid JSON: NaN is not a JSON value")
    assert "not a JSON object" in (number.error or "")
    assert (digits.id, good.prompt, good.error) == (2, "b", None)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[{"prompt": "a"}\n{"prompt": "b"}]', "a.json:2: not valid JSON: expecting ','"),
        ('[{"prompt": "a"},\n{"prompt": "b"', "a.json:2: not valid JSON: Expecting ',' delimiter"),
        ('[{"prompt": "a"}]\n\nmore', "a.json:3: text after the end of the JSON array"),
        ("nonsense", "a.json:1: not valid JSON: Expecting value"),
        ('[{"prompt": "a"},\n', "a.json:2: not valid JSON"),
        ("[\n{,}]", "a.json:2: not valid JSON"),
    ],
)
def test_a_broken_document_ends_the_run_in_one_line(tmp_path: Path, content: str, problem: str) -> None:
    with pytest.raises(InputError) as error:
        rows_of(tmp_path / "a.json", content)
    assert str(error.value).startswith(problem)


def test_rows_before_the_break_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"prompt": "a"},\n{"prompt": "b"},\n{"prompt" "c"}]')
    requests = read_requests([Source("a.json", path)])
    assert [next(requests).prompt for _ in range(2)] == ["a", "b"]


@given(
    rows=st.lists(st.dictionaries(st.sampled_from(["prompt", "n", "é"]), st.text() | st.integers() | st.none())),
    indent=st.sampled_from([None, 0, 3]),
    at_once=st.integers(1, 50),
)
def test_an_array_has_the_rows_of_the_same_json_lines(
    monkeypatch_chunk: None, rows: list[dict[str, Any]], indent: int | None, at_once: int
) -> None:
    from batchgen.formats.json_document import read_json
    from batchgen.formats.jsonl import read_jsonl

    array = Content("-", io.BufferedReader(Pipe(json.dumps(rows, indent=indent).encode(), at_once)))
    lines = Content("-", io.BufferedReader(Pipe("".join(json.dumps(row) + "\n" for row in rows).encode())))
    found, wanted = (
        [(row.prompt, row.metadata, row.error) for row in reader(content, ReadOptions())]
        for reader, content in ((read_json, array), (read_jsonl, lines))
    )
    assert found == wanted


@pytest.fixture(scope="module")
def monkeypatch_chunk() -> Iterator[None]:
    """Read documents a few bytes at a time, so that values are cut everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("batchgen.formats.json_document.CHUNK", 7)
        yield


# Tables.


@pytest.mark.parametrize(
    ("content", "form"),
    [
        ("id,prompt\n7,My dog is\n8,The sun\n", "csv"),
        ("id\tprompt\n7\tMy dog is\n", "tsv"),
        ('prompt,n\n"a, b",1\n"two\nlines",2\n', "csv"),
        (",prompt,\na,b,c\n", "csv"),
        ("text,n\na,1\n", "csv"),
        ("n,messages\n1,[]\n", "csv"),
        ("prompt\nMy dog is\n", "csv"),
        ("prompt\n", "text"),
        ("prompt\nMy dog, a cat\n", "text"),
        ("a prompt, please\nand, another, one\n", "text"),
        ("id,prompt\n7,One, two\n", "text"),
        ("id,question\n7,My dog is\n", "text"),
        ("My dog, he\nMy cat, she\n", "text"),
    ],
)
def test_a_table_is_known_by_its_header_and_its_rows(content: str, form: str) -> None:
    assert form_of(content.encode()) == form


def test_the_column_of_field_or_template_makes_a_table() -> None:
    table = b"kind,who\npets,My dog\n"
    assert form_of(table, field="who") == "csv"
    assert form_of(table, template=Template("{{ who }} of {{ kind }}")) == "csv"
    assert form_of(table, template=Template("{{ text }}!")) == "text"


def test_a_guessed_table_is_said(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("id,prompt\n7,My dog is\n")
    said: list[str] = []
    [request] = read_requests([Source("rows", path)], say=said.append)
    assert (request.id, request.prompt, request.source) == ("7", "My dog is", "rows:2")
    assert said == ["rows is read as CSV, with the columns id, prompt (to change that, use --input-format)"]


def test_a_table_with_odd_rows_is_text_and_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("id,prompt\n7,One, two\n")
    said: list[str] = []
    assert len(list(read_requests([Source("rows", path)], say=said.append))) == 2
    assert "CSV" in said[0]
    assert "--input-format csv" in said[0]


def test_semicolons_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"- looks like CSV separated by semicolons: add --delimiter ';'"):
        form_of(b"id;prompt\n7;My dog is\n")
    assert form_of(b"id;prompt\n7;My dog is\n", delimiter=";") == "csv"


def test_vertical_bars_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"- looks like CSV separated by vertical bars: add --delimiter '\|'"):
        form_of(b"id|prompt\n7|My dog is\n")


def test_a_header_in_other_case_is_text_and_that_is_said() -> None:
    said: list[str] = []
    source = Content("-", io.BufferedReader(Pipe(b"Id, Prompt\n7,My dog is\n")), say=said.append)
    assert choose_format(source, None, ReadOptions()) == "text"
    assert said == [
        "- is read as text, although it begins like CSV: to read it as such, add --input-format csv --field ' Prompt'"
    ]


def test_lines_that_end_with_a_carriage_return_alone_are_refused() -> None:
    with pytest.raises(InputError, match=r"- ends lines with a carriage return alone: convert it with `tr"):
        form_of(b"id,prompt\r7,My dog is\r8,The sun\r")
    assert form_of(b"My dog\ris\n") == "text"


# Binary files and other compression formats.


@pytest.mark.parametrize("name", ["m.gguf.txt", "m", "m.jsonl", "m.csv", "m.json"])
def test_a_model_is_refused_whatever_its_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"{name} is a GGUF model, not text"):
        read(tmp_path / name, b"GGUF\x03\0\0\0" + bytes(range(256)))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 9, "a PNG image"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 9, "a JPEG image"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF document"),
        (b"SQLite format 3\0" + b"\0" * 99, "an SQLite database"),
        (b"My dog\0is\n", "binary"),
        (bytes(range(1, 32)) + b"\xff" * 40, "binary"),
        ("My dog is\n".encode("utf-16-le"), "binary, or UTF-16 without a byte order mark"),
        ("My dog is\n".encode("utf-16-be"), "binary, or UTF-16 without a byte order mark"),
    ],
    ids=["png", "jpeg", "pdf", "sqlite", "nul", "controls", "utf-16-le", "utf-16-be"],
)
@pytest.mark.parametrize("name", ["a", "a.txt", "a.md"])
def test_what_is_no_text_is_named(tmp_path: Path, content: bytes, kind: str, name: str) -> None:
    with pytest.raises(InputError, match=f"^{name} is {kind}"):
        read(tmp_path / name, content)


@pytest.mark.parametrize("text", ["GGUF is a format", "BM 25", "RIFF raff", "PK", "MZ", "ID3", "\x1b[31mred", "BZh9"])
def test_text_that_begins_like_a_binary_file_is_text(tmp_path: Path, text: str) -> None:
    assert prompts(tmp_path / "a", text.encode() + b"\n") == [text]


def test_a_line_with_nul_fails_alone_in_json_lines(tmp_path: Path) -> None:
    bad, good = read(tmp_path / "a.jsonl", b"\0" * 20 + b'\n{"prompt": "a"}\n')
    assert bad.error
    assert good.prompt == "a"


def test_other_packings_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rows is compressed with xz, which is not supported"):
        read(tmp_path / "rows", lzma.compress(b"My dog is\n"))
    with pytest.raises(InputError, match="rows is compressed with bzip2"):
        read(tmp_path / "rows", b"BZh91AY&SY\x11\x22")


@pytest.mark.parametrize("name", ["rows.jsonl.bz2", "rows.txt.xz", "rows.zip", "rows.csv.7z", "rows.tar", "rows.tgz"])
def test_the_suffix_of_another_packing_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=rf"{name}: cannot read {Path(name).suffix} files \(.*\): unpack it"):
        find_sources([str(tmp_path / name)])


def test_packed_json_without_a_suffix_is_json(tmp_path: Path) -> None:
    packed = gzip.compress(b'[\n{"text": "a"}]')
    assert prompts(tmp_path / "rows.gz", packed) == ["a"]
