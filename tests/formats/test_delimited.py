"""CSV and TSV in and out."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.errors import InputError
from batchgen.formats.reading import UTF8_BOM, Source, count_rows, read_requests
from batchgen.formats.templates import Template
from batchgen.formats.writing import WRITERS, WriteOptions
from tests.support.reading import read
from tests.support.results import result_of

CELL = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('",\t\r\n;=+-@ '))
HEADER = "id,index,sample_index,prompt,text,finish_reason,num_prompt_tokens,num_output_tokens,error,model,source"


def write(*results: Any, form: str = "csv", **options: Any) -> str:
    stream = io.BytesIO()
    WRITERS[form](results, stream, WriteOptions(**options))
    return stream.getvalue().decode()


def table(text: str, delimiter: str = ",") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))


# In.


@pytest.mark.parametrize(("name", "sign"), [("a.csv", ","), ("a.TSV", "\t")])
def test_columns_are_prompt_id_and_metadata(tmp_path: Path, name: str, sign: str) -> None:
    content = f"id{sign}topic{sign}prompt\nx{sign}dogs{sign}My dog is\n{sign}{sign}It\n".encode()
    first, second = read(tmp_path / name, content)
    assert (first.id, first.prompt, first.metadata) == ("x", "My dog is", {"topic": "dogs"})
    assert (second.id, second.prompt, second.metadata) == ("1", "It", {"topic": ""})


def test_quoted_cells_hold_anything(tmp_path: Path) -> None:
    [request] = read(tmp_path / "a.csv", b'prompt,b\r\n"a, ""b""\r\nc\n d","\0"\r\n')
    assert (request.prompt, request.metadata) == ('a, "b"\r\nc\n d', {"b": "\0"})


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", UTF8_BOM + b"prompt\na\n")[0].prompt == "a"


def test_utf_16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.csv is UTF-16"):
        read(tmp_path / "a.csv", "prompt\na\n".encode("utf-16"))


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\nprompt,b\n\n"a\n\nb",1\n  \nc,2\n\n')
    blank: list[None] = []
    requests = list(read_requests([Source("a", path)], on_blank=lambda: blank.append(None)))
    assert [request.prompt for request in requests] == ["a\n\nb", "c"]
    assert len(blank) == 4


def test_a_cell_may_hold_the_row_s_own_sampling(tmp_path: Path) -> None:
    content = b'prompt,sampling\na,"{""max_new_tokens"": 3}"\nb,\nc,{\n'
    own, without, bad = read(tmp_path / "a.csv", content)
    assert (own.sampling.max_new_tokens, own.metadata, without.error) == (3, {}, None)
    assert (bad.error or "").startswith("a.csv:4: the sampling is not valid JSON")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"a", "1 cells where the header has 2 columns"),
        (b"a,b,c", "3 cells where the header has 2 columns"),
        (b'"a"b,c', "text after a closing quote"),
        (b"a,\xff", "not UTF-8 at byte 2 of line 3"),
        (b"a\rb,c", "a carriage return outside quotes"),
    ],
)
def test_a_bad_record_fails_alone(tmp_path: Path, line: bytes, problem: str) -> None:
    before, bad, after = read(tmp_path / "a.csv", b"prompt,b\na,1\n" + line + b"\nc,3\n")
    assert (bad.error or "").startswith(f"a.csv:3: {problem}")
    assert (before.error, after.error, after.prompt) == (None, None, "c")


def test_an_open_quote_does_not_swallow_the_rows_below(tmp_path: Path) -> None:
    bad, *good = read(tmp_path / "a.csv", b'prompt,b\n"open,1\nIt,2\nI,3\n"a\nb",4\n')
    assert bad.error == 'a.csv:2: text after a closing quote (a quote inside a quoted cell is written "")'
    assert [(request.prompt, request.source) for request in good] == [
        ("It", "a.csv:3"), ("I", "a.csv:4"), ("a\nb", "a.csv:5"),
    ]  # fmt: skip


def test_a_quote_that_is_open_to_the_end_costs_one_row(tmp_path: Path) -> None:
    bad, *good = read(tmp_path / "a.csv", b'prompt\n"open\n' + b"It\n" * 1000)
    assert bad.error == "a.csv:2: a quoted cell is never closed"
    assert [request.prompt for request in good] == ["It"] * 1000


def test_a_record_of_too_many_lines_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchgen.formats.delimited.MOST_LINES", 10)
    bad, *good = read(tmp_path / "a.csv", b'prompt\n"open\n' + b"It\n" * 100)
    assert "is a quote never closed?" in (bad.error or "")
    assert len(good) == 100


def test_a_file_made_to_be_read_again_and_again_comes_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchgen.formats.delimited.MOST_READ_AGAIN", 10_000)
    requests = read(tmp_path / "a.csv", b"prompt,b\n" + b'x","y\n' * 5000)
    assert len(requests) < 10
    assert "; skipped up to line 5001" in (requests[-1].error or "")


@pytest.mark.parametrize(
    ("content", "options", "problem"),
    [
        (b"a,b\n1,2\n", {}, r"no column prompt or text, but a, b: name one with --field"),
        (b"a,b\n1,2\n", {"field": "c"}, r"no column c, but a, b"),
        (b"prompt,b\n1,2\n", {"id_field": "key"}, r"no column key, but prompt, b \(see --id-field\)"),
        (b"prompt,a,a\n", {}, r"two columns named 'a'"),
        (b'"prompt\n', {}, r"a\.csv:1: the header cannot be read: a quoted cell is never closed"),
        (b"prompt\xff\n", {}, r"a\.csv:1: the header cannot be read: not UTF-8 at byte 6"),
    ],
)
def test_a_header_that_no_row_can_use_is_an_input_error(
    tmp_path: Path, content: bytes, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        read(tmp_path / "a.csv", content, **options)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"prompt\n", UTF8_BOM])
def test_a_file_without_rows_has_none(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path / "a.csv", content) == []


def test_a_template_sees_columns_by_any_name(tmp_path: Path) -> None:
    [request] = read(tmp_path / "a.csv", b"short name\nRex\n", template=Template("{{ row['short name'] }} is"))
    assert (request.prompt, request.metadata) == ("Rex is", {"short name": "Rex"})


def test_records_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'prompt\n"a\nb"\n\nc\n"d')
    assert count_rows([Source("a", path)]) == 3
    assert count_rows([Source("a", path)], limit=2) == 2
    path.write_bytes(b"a,b\n1,2\n")
    assert count_rows([Source("a", path)]) is None  # the reader says why


# Out.


def test_a_table_has_a_column_for_each_field_and_each_of_the_first_row_s_columns() -> None:
    text = write(result_of(metadata={"topic": "dogs", "n": 1.5}))
    assert text == (f"{HEADER},topic,n,metadata\nd1,4,0,My dog is, very kind,length,3,2,,gpt2,rows.jsonl:5,dogs,1.5,\n")


def test_tabs_separate_a_tsv() -> None:
    [row] = table(write(result_of("a\tb"), form="tsv"), "\t")
    assert (row["text"], row["topic"]) == (r"a\tb", "dogs")


def test_a_column_called_source_keeps_its_name() -> None:
    [row] = table(write(result_of(metadata={"source": "a book", "batchgen.source": "x"})))
    assert (row["source"], row["batchgen.source"]) == ("a book", "x")
    assert row["batchgen.batchgen.source"] == "rows.jsonl:5"


def test_what_later_rows_have_besides_is_json() -> None:
    first, second = table(write(result_of(), result_of(metadata={"other": [1], "topic": None})))
    assert (first["topic"], first["metadata"]) == ("dogs", "")
    assert (second["topic"], second["metadata"]) == ("", '{"other": [1]}')


def test_the_first_row_that_did_not_fail_has_the_columns() -> None:
    failed = result_of("", finish_reason="error", error="rows.jsonl:1: bad", metadata={})
    first, second = table(write(failed, result_of()))
    assert (first["error"], first["topic"], second["topic"]) == ("rows.jsonl:1: bad", "", "dogs")


def test_a_column_that_is_also_a_field_gets_a_prefix() -> None:
    [row] = table(write(result_of(metadata={"id": "x", "metadata": {"a": 1}, "metadata.id": "y", "model": 3})))
    assert (row["id"], row["metadata.id"], row["metadata.metadata.id"]) == ("d1", "x", "y")
    assert (row["metadata.metadata"], row["metadata.model"], row["metadata"]) == ('{"a": 1}', "3", "")


@pytest.mark.parametrize(
    ("value", "cell"),
    [("07", "07"), (7, "7"), (7.0, "7.0"), (1e-7, "1e-07"), (True, "true"), (None, ""), (["é"], '["é"]'), ({}, "{}")],
)
def test_values_keep_their_looks(value: object, cell: str) -> None:
    assert table(write(result_of(metadata={"x": value})))[0]["x"] == cell


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "-", "=", "--1", "-1e"])
def test_a_formula_is_made_text(text: str) -> None:
    row = table(write(result_of(text, metadata={text: text})))[0]
    assert (row["text"], row[f"'{text}"]) == (f"'{text}", f"'{text}")
    assert table(write(result_of(text), csv_raw=True))[0]["text"] == text


@pytest.mark.parametrize("text", ["-1", "+1.5", "-.5e-7", "a=1", " =1", "1-1"])
def test_a_number_is_no_formula(text: str) -> None:
    assert table(write(result_of(text)))[0]["text"] == text


def test_ids_are_lists_in_cells() -> None:
    [row] = table(write(result_of(), ids=True))
    assert (row["input_ids"], row["padded_length"]) == ("[3666, 3290, 318]", "8")


def test_without_results_there_is_a_header() -> None:
    assert write() == f"{HEADER},metadata\n"


def test_half_a_character_is_replaced() -> None:
    assert table(write(result_of(metadata={"x": "\ud800"})))[0]["x"] == "\ufffd"


def test_cells_are_escaped_for_a_terminal() -> None:
    assert "<\x1b>" in write(result_of("\x1b"), escape=lambda text: text.replace("\x1b", "<\x1b>"))


@given(rows=st.lists(st.tuples(CELL, CELL), min_size=1), sign=st.sampled_from([",", "\t"]))
def test_cells_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], sign: str) -> None:
    form = {",": "csv", "\t": "tsv"}[sign]
    results = [result_of(text, prompt=prompt, index=i, metadata={"q": text}) for i, (prompt, text) in enumerate(rows)]
    path = tmp_path_factory.getbasetemp() / f"cells.{form}"
    requests = read(path, write(*results, form=form, csv_raw=True).encode())
    if form == "tsv":  # TSV cannot represent these
        escaped = str.maketrans({"\t": r"\t", "\n": r"\n", "\r": r"\r"})
        rows = [(prompt.translate(escaped), text.translate(escaped)) for prompt, text in rows]
    assert [(r.prompt, r.metadata["text"], r.metadata["q"]) for r in requests] == [(p, t, t) for p, t in rows]
    assert all(request.error is None for request in requests)


# Names, separators, quotes.


def test_columns_without_a_name_are_named_by_place(tmp_path: Path) -> None:
    [request] = read(tmp_path / "a.csv", b",prompt, ,column_4,\nleft,It,mid,x,right\n")
    assert request.metadata == {"column_1": "left", "column_3": "mid", "column_4": "x", "column_5": "right"}
    [request] = read(tmp_path / "b.csv", b",prompt,column_1\nleft,It,x\n")
    assert request.metadata == {"column_1_": "left", "column_1": "x"}


@pytest.mark.parametrize(
    ("name", "sign"), [("a.csv", ";"), ("a.csv", "|"), ("a.csv", "\t"), ("a.tsv", ","), ("a", ";")]
)
def test_cells_may_be_separated_otherwise(tmp_path: Path, name: str, sign: str) -> None:
    [request] = read(tmp_path / name, f"id{sign}prompt\n7{sign}It is\n".encode(), delimiter=sign)
    assert (request.id, request.prompt) == ("7", "It is")


@pytest.mark.parametrize(
    ("name", "header", "hint"),
    [
        ("a.csv", "a;prompt", "semicolons: add --delimiter ';'"),
        ("a.csv", "a\tprompt", r"tabs: add --delimiter '\t'"),
        ("a.csv", 'a|"prompt"', "vertical bars: add --delimiter '|'"),
        ("a.tsv", "a,prompt", "commas: add --delimiter ','"),
    ],
)
def test_another_separator_is_hinted_at(tmp_path: Path, name: str, header: str, hint: str) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path / name, f"{header}\n1;2\n".encode())
    assert f"it looks separated by {hint}" in str(error.value)


def test_a_quote_in_a_tsv_is_text(tmp_path: Path) -> None:
    content = b'id\tprompt\r\na\t"Come in, he said\r\n\r\nb\tand sit down"\nc\t""\n'
    requests = read(tmp_path / "a.tsv", content)
    assert [(r.id, r.prompt, r.source) for r in requests] == [
        ("a", '"Come in, he said', "a.tsv:2"), ("b", 'and sit down"', "a.tsv:4"), ("c", '""', "a.tsv:5"),
    ]  # fmt: skip


@given(rows=st.lists(st.lists(CELL, min_size=2, max_size=2), min_size=1))
def test_lines_of_a_tsv_are_what_cut_makes_of_them(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    cells = [[cell.translate(dict.fromkeys(map(ord, "\t\n\r"), " ")) for cell in row] for row in rows]
    content = "prompt\tb\n" + "".join("\t".join(row) + "\n" for row in cells)
    requests = read(tmp_path_factory.getbasetemp() / "cut.tsv", content.encode())
    assert [[request.prompt, request.metadata["b"]] for request in requests] == cells


def test_a_quote_is_written_as_it_is_in_a_tsv() -> None:
    text = write(result_of('He said "hi"'), form="tsv")
    assert '\tHe said "hi"\t' in text


@pytest.mark.parametrize("prefix", ["\n", "\r\n", "\t", "\ufeff", "\xa0", "\v", "\f", "\u200b", " \n ", "\ufeff\xa0"])
@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_a_formula_behind_what_a_spreadsheet_drops_is_made_text(prefix: str, sign: str, form: str) -> None:
    text = f"{prefix}{sign}1+A1"
    header, line, *_ = write(result_of("x", prompt=text, metadata={text: text}), form=form).split("\nd1", 1)
    assert f"'{prefix}{sign}".translate(ESCAPES if form == "tsv" else {}) in line
    assert f"'{prefix}{sign}".translate(ESCAPES if form == "tsv" else {}) in header


ESCAPES = str.maketrans({"\t": r"\t", "\n": r"\n", "\r": r"\r"})
