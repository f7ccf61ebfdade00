from __future__ import annotations

import io
import json
import os
import re
import socket
import tracemalloc
from itertools import chain
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.errors import InputError
from batchgen.formats.reading import UTF8_BOM, ReadOptions, Source, count_rows, find_sources, read_requests
from batchgen.formats.templates import Template
from batchgen.formats.writing import to_json
from batchgen.planning.windows import Windows
from batchgen.records import Request, SamplingParams

# Each of these ends a line for str.splitlines(), but not here.
NOT_NEWLINES = ["\u2028", "\u2029", "\x85", "\v", "\f", "\x1c", "\x1d", "\x1e", "\r"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\n\r\ufeff")).filter(
    lambda text: text.encode() and not text.encode().isspace()
)
JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
JSON_OBJECT = st.builds(
    lambda columns, prompt: {**columns, "prompt": prompt},
    st.dictionaries(TEXT.filter(lambda name: name not in ("id", "sampling")), JSON_VALUE, max_size=4),
    TEXT,
)


def read_file(path: Path, content: bytes, field: str | None = None) -> list[Request]:
    path.write_bytes(content)
    return list(read_requests([Source(str(path), path)], options=ReadOptions(field)))


def prompts_of(requests: list[Request]) -> list[str]:
    return [request.prompt for request in requests]


def read_line(folder: Path, line: str, field: str | None = None) -> Request:
    [request] = read_file(folder / "rows.jsonl", line.encode() + b"\n", field)
    return request


def nested(depth: int) -> str:
    return '{"prompt": "a", "deep": ' + "[" * depth + "]" * depth + "}"


def test_a_line_is_a_prompt(tmp_path: Path) -> None:
    assert prompts_of(read_file(tmp_path / "a.txt", b"My dog is\nIt will rain\n")) == ["My dog is", "It will rain"]


def test_the_last_line_needs_no_newline(tmp_path: Path) -> None:
    assert prompts_of(read_file(tmp_path / "a.txt", b"a\nb")) == ["a", "b"]


def test_spaces_around_a_prompt_stay(tmp_path: Path) -> None:
    assert prompts_of(read_file(tmp_path / "a.txt", b"  a \t\n")) == ["  a \t"]


@pytest.mark.parametrize("sign", NOT_NEWLINES, ids=ascii)
def test_only_a_newline_ends_a_line(tmp_path: Path, sign: str) -> None:
    assert prompts_of(read_file(tmp_path / "a.txt", f"a{sign}b\n".encode())) == [f"a{sign}b"]


def test_carriage_returns_inside_lines_are_said_once(tmp_path: Path) -> None:
    path = tmp_path / "mac.txt"
    path.write_bytes(b"one\r\ntwo\rthree\rfour\nfive\rsix\n")
    said: list[str] = []
    assert len(list(read_requests([Source("mac.txt", path)], say=said.append))) == 3
    assert [line.partition(",")[0] for line in said] == ["mac.txt:2 has carriage returns inside"]


def test_crlf_loses_one_carriage_return(tmp_path: Path) -> None:
    assert prompts_of(read_file(tmp_path / "a.txt", b"a\r\nb\r\r\nc\r")) == ["a", "b\r", "c"]


def test_a_byte_order_mark_is_dropped_from_the_first_line_alone(tmp_path: Path) -> None:
    content = UTF8_BOM + b"a\n" + UTF8_BOM + b"b\n"
    assert prompts_of(read_file(tmp_path / "a.txt", content)) == ["a", "\ufeffb"]


def test_a_byte_order_mark_before_json_is_dropped(tmp_path: Path) -> None:
    assert prompts_of(read_file(tmp_path / "a.jsonl", UTF8_BOM + b'{"prompt": "a"}\n')) == ["a"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_refused(tmp_path: Path, name: str, encoding: str) -> None:
    with pytest.raises(InputError, match=rf"{name} is UTF-16.*iconv"):
        read_file(tmp_path / name, "\ufeffMy dog is\n".encode(encoding))


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\na\n \t \n\r\nb\n\x0b\x0c\n")
    blank: list[None] = []
    requests = list(read_requests([Source("a", path)], on_blank=lambda: blank.append(None)))
    assert [(r.index, r.prompt) for r in requests] == [(0, "a"), (1, "b")]
    assert len(blank) == 4


@pytest.mark.parametrize("sign", ["\xa0", "\u3000", "\x85"], ids=ascii)
def test_a_line_of_unicode_space_is_a_prompt(tmp_path: Path, sign: str) -> None:
    assert prompts_of(read_file(tmp_path / "a.txt", f"{sign}\n".encode())) == [sign]


@pytest.mark.parametrize("content", [b"", b"\n \n", UTF8_BOM], ids=["empty", "blank", "bom"])
def test_a_file_without_prompts_has_no_rows(tmp_path: Path, content: bytes) -> None:
    assert read_file(tmp_path / "a.txt", content) == []


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_line_that_is_not_utf_8_fails_alone(tmp_path: Path, name: str) -> None:
    good = b'{"prompt": "a"}' if name.endswith("jsonl") else b"a"
    before, bad, after = read_file(tmp_path / name, good + b"\n\nab\xff\n" + good + b"\n")
    assert bad.error == f"{tmp_path / name}:3: not UTF-8 at byte 2 of the line"
    assert (before.error, after.error) == (None, None)
    assert (before.prompt, after.prompt, after.index) == ("a", "a", 2)


@given(lines=st.lists(LINE))
def test_lines_come_back_as_prompts(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    content = "".join(line + "\n" for line in lines).encode()
    requests = read_file(tmp_path_factory.getbasetemp() / "lines.txt", content)
    assert prompts_of(requests) == lines
    assert all(request.error is None and request.metadata == {} for request in requests)


@pytest.mark.parametrize("line", ['{"prompt": "a"}', '{"text": "a"}', '{"text": "b", "prompt": "a"}'])
def test_the_prompt_is_in_prompt_else_in_text(tmp_path: Path, line: str) -> None:
    assert read_line(tmp_path, line).prompt == "a"


def test_field_names_the_prompt(tmp_path: Path) -> None:
    request = read_line(tmp_path, '{"question": "a", "prompt": "b"}', field="question")
    assert (request.prompt, request.metadata) == ("a", {"prompt": "b"})


@pytest.mark.parametrize(
    ("written", "row_id"), [('"x"', "x"), ('""', ""), ("7", 7), ("0", 0), ("-1.5", -1.5), ("7.0", 7.0)]
)
def test_the_id_is_kept(tmp_path: Path, written: str, row_id: object) -> None:
    request = read_line(tmp_path, f'{{"prompt": "a", "id": {written}}}')
    assert (request.id, type(request.id)) == (row_id, type(row_id))


def test_a_row_without_id_has_its_index(tmp_path: Path) -> None:
    requests = read_file(
        tmp_path / "a.jsonl", b'{"prompt": "a", "id": "x"}\n{"prompt": "b"}\n{"text": "c", "id": null}'
    )
    assert [request.id for request in requests] == ["x", "1", "2"]


def test_other_columns_are_metadata(tmp_path: Path) -> None:
    request = read_line(tmp_path, '{"id": 1, "topic": "dogs", "prompt": "a", "text": "b", "n": [1, null, {"x": 0.5}]}')
    assert request.metadata == {"topic": "dogs", "text": "b", "n": [1, None, {"x": 0.5}]}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"prompt": "a"', "not valid JSON: Expecting ',' delimiter at column 15"),
        ("My dog is", "not valid JSON"),
        ('{"prompt": "a"} {"prompt": "b"}', "not valid JSON: Extra data"),
        ('["a"]', "not a JSON object"),
        ('"a"', "not a JSON object"),
        ("null", "not a JSON object"),
        ('{"question": "a"}', "no field prompt or text"),
        ("{}", "no field prompt or text"),
        ('{"prompt": 7}', "the field prompt is not a string"),
        ('{"prompt": null, "text": "a"}', "the field prompt is not a string"),
        ('{"text": ["a"]}', "the field text is not a string"),
        ('{"prompt": "a", "x": NaN}', "not valid JSON: NaN"),
        ('{"prompt": "a", "x": -Infinity}', "not valid JSON: -Infinity"),
        ('{"prompt": "a", "x": 1e999}', "the number 1e999 is too large"),
        ('{"prompt": "a", "id": -1e999}', "the number -1e999 is too large"),
        ('{"prompt": "a", "id": true}', "the id is neither a string nor a number"),
        ('{"prompt": "a", "id": [1]}', "the id is neither a string nor a number"),
        ('{"prompt": "a", "x": ' + "9" * 5000 + "}", "not valid JSON"),
        (nested(100_000), ""),
    ],
    ids=lambda value: value[:36],
)
def test_a_bad_json_row_fails_alone(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "a.jsonl"
    before, bad, after = read_file(path, f'{{"prompt": "a"}}\n{line}\n{{"prompt": "b"}}\n'.encode())
    assert (bad.error or "").startswith(f"{path}:2: ")
    assert problem in (bad.error or "")
    assert (before.error, after.error, after.prompt) == (None, None, "b")


def test_a_row_without_the_field_names_it(tmp_path: Path) -> None:
    request = read_line(tmp_path, '{"prompt": "a"}', field="question")
    assert "no field question (see --field); the row has prompt" in (request.error or "")


def test_a_bad_row_keeps_its_id_and_columns(tmp_path: Path) -> None:
    request = read_line(tmp_path, '{"id": "x", "topic": "dogs"}')
    assert (request.id, request.metadata) == ("x", {"topic": "dogs"})


def test_a_lone_surrogate_fails_alone(tmp_path: Path) -> None:
    bad, good = read_file(tmp_path / "a.jsonl", rb'{"prompt": "ab\ud83d"}' + b"\n" + rb'{"prompt": "\ud83d\ude00"}')
    assert "surrogate (half a character) at character 2" in (bad.error or "")
    assert (good.error, good.prompt) == (None, "😀")


def test_the_error_of_a_lone_surrogate_names_file_and_line(tmp_path: Path) -> None:
    request = read_line(tmp_path, r'{"prompt": "\ud83d"}')
    assert f"{tmp_path / 'rows.jsonl'}:1" in (request.error or "")


def test_a_row_is_too_deep_to_read_or_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(nested(depth) + "\n" for depth in range(900, 1000)))
    in_a_thread = Windows(read_requests([Source("rows", path)]), first=100)
    for request in chain.from_iterable(iter(in_a_thread.take, None)):
        assert request.error or to_json({"metadata": request.metadata})


@pytest.mark.parametrize("row", ['{"deep": DEEP}', '{"custom_id": "a", "body": {}, "deep": DEEP}', '{"id": [DEEP]}'])
def test_a_bad_row_that_is_deep_can_be_written(tmp_path: Path, row: str) -> None:
    request = read_line(tmp_path, row.replace("DEEP", "[" * 900 + "]" * 900))
    assert request.error
    assert to_json({"metadata": request.metadata})


@given(rows=st.lists(JSON_OBJECT), ascii_only=st.booleans())
def test_json_objects_come_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], ascii_only: bool
) -> None:
    content = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows).encode()
    requests = read_file(tmp_path_factory.getbasetemp() / "objects.jsonl", content)
    assert [{**request.metadata, "prompt": request.prompt} for request in requests] == rows
    assert all(request.error is None for request in requests)


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.JSONL", "a"])
@pytest.mark.parametrize("line", ['{"prompt": "x"}', '{"text": "x", "id": 1}'])
def test_json_lines_are_read_as_such(tmp_path: Path, name: str, line: str) -> None:
    assert prompts_of(read_file(tmp_path / name, f"\n{line}\n".encode())) == ["x"]


@pytest.mark.parametrize("name", ["a.txt", "a.TXT"])
def test_json_in_a_text_file_is_a_prompt(tmp_path: Path, name: str) -> None:
    assert prompts_of(read_file(tmp_path / name, b'{"prompt": "x"}\n')) == ['{"prompt": "x"}']


@pytest.mark.parametrize(
    "line", ["My dog is", "7", "[INST] Hi [/INST]", "[1] is a note", '"prompt"', '{"prompt": ', "{x}", "[", "{"]
)
def test_other_lines_without_a_suffix_are_text(tmp_path: Path, line: str) -> None:
    assert prompts_of(read_file(tmp_path / "a", f"{line}\n".encode())) == [line]


def test_the_first_line_decides_for_a_file_without_suffix(tmp_path: Path) -> None:
    assert read_file(tmp_path / "a", b'{"prompt": "x"}\nMy dog is\n')[1].error
    assert prompts_of(read_file(tmp_path / "a", b'My dog is\n{"prompt": "x"}\n'))[1] == '{"prompt": "x"}'


def test_field_means_json_lines(tmp_path: Path) -> None:
    assert prompts_of(read_file(tmp_path / "a", b'{"question": "x"}\n', field="question")) == ["x"]


@pytest.mark.parametrize("first", ["[" * 100_000, nested(100_000)], ids=["array", "object"])
def test_a_first_line_too_deep_to_parse_is_one_row(tmp_path: Path, first: str) -> None:
    assert len(read_file(tmp_path / "a", f"{first}\nMy dog is\n".encode())) == 2


@pytest.mark.parametrize("content", [b'{"prompt": "x"}\n', b"x\n", UTF8_BOM + b"x\r\n"])
def test_a_fifo_is_read(tmp_path: Path, content: bytes) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = Thread(target=fifo.write_bytes, args=(content,), daemon=True)
    writer.start()
    assert prompts_of(list(read_requests(find_sources([str(fifo)])))) == ["x"]
    writer.join()


@pytest.mark.parametrize("content", [b'{"prompt": "x"}\n', b"x\n"])
def test_standard_input_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    (tmp_path / "stdin").write_bytes(content)
    with (tmp_path / "stdin").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert prompts_of(list(read_requests(find_sources(["-"])))) == ["x"]


def test_standard_input_in_memory_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\n\xff\n")))
    requests = list(read_requests([Source("-")]))
    assert [request.error for request in requests] == [None, "-:2: not UTF-8 at byte 0 of the line"]


def test_standard_input_that_is_closed_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(InputError):
        list(read_requests([Source("-")]))


def test_indices_run_on_over_all_sources(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n\nb\n")
    (tmp_path / "b.jsonl").write_text('{"prompt": "c"}\nbad\n{"prompt": "d", "id": "x"}\n')
    requests = list(read_requests(find_sources([str(tmp_path)], ["e"])))
    assert [(r.index, r.id, r.prompt) for r in requests] == [
        (0, "0", "a"),
        (1, "1", "b"),
        (2, "2", "c"),
        (3, None, ""),
        (4, "x", "d"),
        (5, "5", "e"),
    ]


def test_line_numbers_begin_again_in_each_file(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"prompt": "c"}\nbad\n')
    errors = [request.error or "" for request in read_requests(find_sources([str(tmp_path)])) if request.error]
    assert [error.split(": ")[0] for error in errors] == [f"{tmp_path / name}:2" for name in ("a.jsonl", "b.jsonl")]


def test_given_texts_are_prompts_as_they_stand() -> None:
    assert prompts_of(list(read_requests(find_sources([], ["a\nb", "", '{"prompt": "x"}'])))) == [
        "a\nb",
        "",
        '{"prompt": "x"}',
    ]


def test_every_request_has_the_sampling() -> None:
    params = SamplingParams(max_new_tokens=3)
    assert [request.sampling for request in read_requests(find_sources([], ["a", "b"]), params)] == [params, params]


def test_reading_is_streaming() -> None:
    read_end, write_end = os.pipe()
    path = Path(f"/dev/fd/{read_end}")
    try:
        os.write(write_end, b"first\nsecond, not yet whole")
        requests = read_requests([Source("pipe", path)])
        assert next(requests).prompt == "first"
    finally:
        os.close(write_end)
        os.close(read_end)
    assert prompts_of(list(requests)) == ["second, not yet whole"]


def test_a_file_that_vanished_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.txt cannot be read: No such file"):
        list(read_requests([Source("gone.txt", tmp_path / "gone.txt")]))


def names_of(sources: list[Source]) -> list[str]:
    return [source.path.name if source.path else source.name for source in sources]


def make_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name}\n")


def test_sources_come_in_the_order_given(tmp_path: Path) -> None:
    make_files(tmp_path, "b.txt", "a.txt")
    sources = find_sources([str(tmp_path / "b.txt"), "-", str(tmp_path / "a.txt")], ["My dog is"])
    assert names_of(sources) == ["b.txt", "-", "a.txt", "--prompt"]


def test_a_directory_gives_its_prompt_files_by_name(tmp_path: Path) -> None:
    prompts = ["a.txt", "b.jsonl", "c.ndjson", "d.csv", "e.tsv.gz", "f.txt.zst", "g.parquet"]
    make_files(tmp_path, *reversed(prompts), ".hidden.txt", "notes.md", "table.xlsx", "notes.gz", "deeper/d.txt")
    assert names_of(find_sources([str(tmp_path)])) == prompts


def test_a_directory_gives_no_directories(tmp_path: Path) -> None:
    make_files(tmp_path, "a.txt", "folder.txt/b.txt")
    assert names_of(find_sources([str(tmp_path)])) == ["a.txt"]


def test_a_suffix_in_capitals_is_known_in_a_directory_too(tmp_path: Path) -> None:
    make_files(tmp_path, "A.TXT", "b.txt")
    assert names_of(find_sources([str(tmp_path)])) == ["A.TXT", "b.txt"]


@pytest.mark.parametrize("names", [[], ["notes.md", ".hidden.txt"]])
def test_a_directory_without_prompt_files_is_an_error(tmp_path: Path, names: list[str]) -> None:
    make_files(tmp_path, *names)
    with pytest.raises(InputError, match=r"has no prompt files \(\.txt, \.jsonl, "):
        find_sources([str(tmp_path)])


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.txt", ["a.txt", "b.txt"]),
        ("[bc].*", ["b.txt", "c.jsonl"]),
        ("?.jsonl", ["c.jsonl"]),
        ("**/*.txt", ["a.txt", "b.txt", "d.txt"]),
    ],
)
def test_a_glob_gives_what_it_matches_by_name(tmp_path: Path, pattern: str, names: list[str]) -> None:
    make_files(tmp_path, "b.txt", "a.txt", "c.jsonl", "deeper/d.txt", "folder.txt/readme")
    assert names_of(find_sources([str(tmp_path / pattern)])) == names


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    make_files(tmp_path, "a[1].txt", "a1.txt")
    assert names_of(find_sources([str(tmp_path / "a[1].txt")])) == ["a[1].txt"]


def test_a_glob_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file matches .*\*\.txt"):
        find_sources([str(tmp_path / "*.txt")])


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file .*gone\.txt"):
        find_sources([str(tmp_path / "gone.txt")])


def test_a_name_longer_than_any_file_s_is_an_input_error() -> None:
    with pytest.raises(InputError, match=f"^{'a' * 60}… cannot be read"):
        find_sources(["a" * 256])


def test_a_long_path_is_named_whole(tmp_path: Path) -> None:
    path = tmp_path / ("deep" * 30) / "gone.txt"
    path.parent.mkdir()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"^{re.escape(str(path))} is a broken link"):
        find_sources([str(path.parent)])


def test_an_empty_name_is_not_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path, "a.txt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        find_sources([""])


@pytest.mark.parametrize(("name", "suffix"), [("a.XLSX", ".xlsx"), ("a.docx.gz", ".docx")])
def test_a_format_that_cannot_be_read_is_refused_unless_it_is_said(tmp_path: Path, name: str, suffix: str) -> None:
    make_files(tmp_path, name)
    with pytest.raises(InputError, match=rf"{name}: cannot read {suffix} files; give .*, or set --input-format"):
        find_sources([str(tmp_path / name)])
    assert names_of(find_sources([str(tmp_path / name)], options=ReadOptions(input_format="text"))) == [name]


def test_a_glob_with_an_unreadable_format_is_refused(tmp_path: Path) -> None:
    make_files(tmp_path, "a.txt", "b.zip")
    with pytest.raises(InputError, match=r"b\.zip: cannot read \.zip files"):
        find_sources([str(tmp_path / "*")])


def test_standard_input_is_read_only_where_nothing_else_is_given(tmp_path: Path) -> None:
    assert find_sources([], use_stdin=True) == [Source("-")]
    assert names_of(find_sources([], ["a"], use_stdin=True)) == ["--prompt"]
    assert find_sources([]) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"a", b"a\nb\n", b"a\n\n \r\n\x0b\nb\r\n\n", b"\xc2\xa0\n", UTF8_BOM + b"a\n", UTF8_BOM + b"\na\n"],
    ids=ascii,
)
def test_as_many_rows_are_counted_as_are_read(tmp_path: Path, content: bytes) -> None:
    requests = read_file(tmp_path / "a.txt", content)
    assert count_rows(find_sources([str(tmp_path / "a.txt")])) == len(requests)


def test_rows_are_counted_over_all_sources(tmp_path: Path) -> None:
    make_files(tmp_path, "a.txt", "b.txt")
    assert count_rows(find_sources([str(tmp_path)], ["a", "", "c"])) == 5


@pytest.mark.parametrize(("limit", "rows"), [(1, 1), (3, 3), (4, 4), (9, 4), (None, 4)])
def test_no_more_rows_than_the_limit_are_counted(tmp_path: Path, limit: int | None, rows: int) -> None:
    (tmp_path / "a.txt").write_text("a\nb\nc\n")
    assert count_rows(find_sources([str(tmp_path)], ["d"]), limit) == rows


def test_what_can_be_read_only_once_is_not_counted(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert count_rows([Source("-")]) is None
    assert count_rows(find_sources([str(tmp_path / "fifo")])) is None


def test_a_linked_directory_that_goes_round_is_walked_once(tmp_path: Path) -> None:
    make_files(tmp_path, "in/a.txt", "in/deeper/b.txt")
    for name in ("up", "again"):
        (tmp_path / "in" / "deeper" / name).symlink_to(tmp_path / "in")
    assert names_of(find_sources([str(tmp_path / "**" / "*.txt")])) == ["a.txt", "b.txt"]


def test_a_glob_finds_hidden_files_only_by_their_names(tmp_path: Path) -> None:
    make_files(tmp_path, ".a.txt", "b.txt", ".git/c.txt")
    assert names_of(find_sources([str(tmp_path / "**" / "*.txt")])) == ["b.txt"]
    assert names_of(find_sources([str(tmp_path / ".git" / "**" / "*.txt")])) == ["c.txt"]


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match=r"loop is a broken link"):
        find_sources([str(tmp_path / "loop")])
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"gone\.txt is a broken link"):
        find_sources([str(tmp_path)])


@pytest.mark.parametrize("name", ["zero", "random", "full"])
def test_a_device_without_an_end_is_refused(name: str) -> None:
    if not Path(f"/dev/{name}").exists():
        pytest.skip("needs its device")
    with pytest.raises(InputError, match=f"/dev/{name} is a device, which may be endless"):
        find_sources([f"/dev/{name}"])


def test_a_socket_is_refused_unless_it_is_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as named:
        named.bind("it.txt")
        with pytest.raises(InputError, match=r"it\.txt is a socket: give a file or a pipe"):
            find_sources(["it.txt"])
    ours, theirs = socket.socketpair()
    with ours, theirs, theirs.makefile() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert [source.name for source in find_sources(["-"])] == ["-"]


def test_standard_input_that_is_a_device_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/zero").exists():
        pytest.skip("needs /dev/zero")
    with Path("/dev/zero").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        with pytest.raises(InputError, match="- is a device, which may be endless"):
            find_sources([], use_stdin=True)


def test_the_null_device_is_an_empty_file() -> None:
    assert list(read_requests(find_sources([os.devnull]))) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_an_error(tmp_path: Path) -> None:
    make_files(tmp_path, "a.txt")
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(InputError, match=r"a\.txt cannot be read: permission denied"):
        find_sources([str(tmp_path / "a.txt")])


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_a_line_longer_than_a_row_fails_alone(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchgen.formats.content.LONGEST_ROW", 100)
    good = b'{"prompt": "a"}\n' if name.endswith("jsonl") else b"a\n"
    header = b"prompt\n" if name.endswith("csv") else b""
    *before, bad, after = read_file(tmp_path / name, header + good * 2 + b"x" * 1000 + b"\n" + good)
    assert (bad.prompt, bad.source) == ("", f"{tmp_path / name}:{4 if header else 3}")
    assert f"{bad.source}: " in (bad.error or "")
    assert "longer than" in (bad.error or "")
    assert [request.error for request in (*before, after)] == [None] * 3


def test_a_row_may_be_as_long_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchgen.formats.content.LONGEST_ROW", 100)
    lengths = [98, 99, 100, 101, 250]
    content = b"\n".join(b"x" * length for length in lengths)
    assert [bool(r.error) for r in read_file(tmp_path / "a.txt", content)] == [False, False, True, True, True]


def test_a_long_line_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with path.open("wb") as stream:
        stream.truncate(2**28)  # a hole, all NUL
        stream.seek(0, os.SEEK_END)
        stream.write(b"\nMy dog is\n")
    tracemalloc.start()
    bad, good = read_requests([Source("a", path)], options=ReadOptions(input_format="text"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (bad.error, good.prompt) == ("a:1: the line is longer than 8 MiB", "My dog is")
    assert peak < 2**25


def test_a_prompt_longer_than_a_row_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchgen.formats.rows.LONGEST_PROMPT", 3)
    bad, good = read_requests(find_sources([], ["four", "has"]))
    assert (bad.prompt, bad.error) == ("", "prompt 0: the prompt has 4 characters, more than 3")
    assert good.error is None


def test_nul_is_ordinary_text_where_text_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\0b\n")
    requests = read_requests([Source("a", path)], options=ReadOptions(input_format="text"))
    assert prompts_of(list(requests)) == ["a\0b"]
    assert read_line(tmp_path, r'{"prompt": "a\u0000b"}').prompt == "a\0b"


def test_the_input_format_overrides_name_and_looks(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text('{"prompt": "x"}\n')
    sources = [Source("a", path)]
    assert prompts_of(list(read_requests(sources, options=ReadOptions(input_format="jsonl")))) == ["x"]
    assert prompts_of(list(read_requests(sources, options=ReadOptions(input_format="text")))) == ['{"prompt": "x"}']


def test_given_texts_are_texts_whatever_the_input_format() -> None:
    requests = read_requests(find_sources([], ["a,b"]), options=ReadOptions(input_format="csv"))
    assert prompts_of(list(requests)) == ["a,b"]


def test_the_id_field_names_the_id(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"key": "k", "id": 1, "prompt": "a"}\n{"key": null, "prompt": "b"}\n{"id": 3, "prompt": "c"}\n')
    named, without, bad = read_requests([Source("a", path)], options=ReadOptions(id_field="key"))
    assert (named.id, named.metadata, without.id) == ("k", {"id": 1}, "1")
    assert (bad.id, bad.error) == (None, "a:3: no field key (see --id-field)")


TEMPLATE = Template("Q: {{ question }}\nA:")


def read_with_template(path: Path, content: str, template: Template = TEMPLATE) -> list[Request]:
    path.write_text(content)
    return list(read_requests([Source(path.name, path)], options=ReadOptions(template=template)))


def test_a_template_makes_the_prompt_and_all_columns_stay_metadata(tmp_path: Path) -> None:
    [request] = read_with_template(tmp_path / "a.jsonl", '{"id": 7, "question": "why?", "prompt": "x"}\n')
    assert (request.prompt, request.id) == ("Q: why?\nA:", 7)
    assert request.metadata == {"question": "why?", "prompt": "x"}


def test_a_column_that_a_template_misses_fails_its_row_alone(tmp_path: Path) -> None:
    bad, good = read_with_template(tmp_path / "a.jsonl", '{"id": 7, "answer": 42}\n{"question": "why?"}\n')
    assert (bad.id, bad.metadata) == (7, {"answer": 42})
    assert bad.error == "a.jsonl:1: --template: 'question' is undefined; the row has id, answer"
    assert good.error is None


@pytest.mark.parametrize("name", ["text", "prompt"])
def test_a_template_sees_a_line_of_text(tmp_path: Path, name: str) -> None:
    [request] = read_with_template(tmp_path / "a.txt", "My dog\n", Template(f"{{{{ {name} }}}}!"))
    assert (request.prompt, request.metadata) == ("My dog!", {})


def test_a_template_makes_objects_json_lines(tmp_path: Path) -> None:
    assert prompts_of(read_with_template(tmp_path / "a", '{"question": "why?"}\n')) == ["Q: why?\nA:"]


def test_what_is_not_a_row_is_an_error_whatever_the_field_says(tmp_path: Path) -> None:
    rows = ['{"sampling": {"top_p": 7}, "prompt": "a"}', '{"sampling": {"heat": 1}, "prompt": "a"}', "7"]
    errors = [request.error or "" for request in read_file(tmp_path / "a.jsonl", "\n".join(rows).encode())]
    assert ["sampling.top_p 7.0 is not in" in errors[0], 'no key "heat"' in errors[1], "not a JSON" in errors[2]] == [
        True
    ] * 3
