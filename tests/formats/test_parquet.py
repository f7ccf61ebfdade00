"""Parquet in and out."""

from __future__ import annotations

import gzip
import io
import os
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.errors import InputError, OutputError
from batchgen.formats.reading import count_rows, find_sources, read_requests
from batchgen.formats.writing import WRITERS, WriteOptions
from tests.support.reading import read, read_to_the_damage
from tests.support.results import TEXT, result_of

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def packed(**columns: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def write(*results: Any, **options: Any) -> Any:
    stream = io.BytesIO()
    WRITERS["parquet"](results, stream, WriteOptions(**options))
    return pq.read_table(io.BytesIO(stream.getvalue()))


def test_columns_are_prompt_id_and_metadata(tmp_path: Path) -> None:
    first, second = read(tmp_path / "a.parquet", packed(prompt=["a", "b"], id=[7, None], topic=["x", None]))
    assert (first.prompt, first.id, first.metadata) == ("a", 7, {"topic": "x"})
    assert (second.prompt, second.id, second.metadata) == ("b", "1", {"topic": None})


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (date(2026, 11, 23), "2026-11-23"),
        (datetime(2026, 11, 23, 1, 2, 3, tzinfo=UTC), "2026-11-23T01:02:03+00:00"),
        (Decimal("1.50"), "1.50"),
        (b"caf\xc3\xa9", "café"),
        (b"\xff", r"\xff"),
        (float("nan"), None),
        (float("inf"), "inf"),
        ([1, None], [1, None]),
        ({"a": [0.5]}, {"a": [0.5]}),
    ],
    ids=repr,
)
def test_what_json_has_not_becomes_text(tmp_path: Path, value: object, plain: object) -> None:
    [request] = read(tmp_path / "a.parquet", packed(prompt=["a"], x=[value]))
    assert request.metadata == {"x": plain}


def test_times_are_read_to_the_microsecond(tmp_path: Path) -> None:
    times = pa.array([1, None], pa.timestamp("ns", "UTC"))
    first, second = read(tmp_path / "a.parquet", packed(prompt=["a", "b"], t=times))
    assert (first.metadata, second.metadata) == ({"t": "1970-01-01T00:00:00+00:00"}, {"t": None})


def test_rows_that_have_no_prompt_fail_alone(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"\xff", None, b"d"]).view(pa.string())
    good, not_text, missing, last = read(tmp_path / "a.parquet", packed(prompt=texts))
    assert not_text.error == "a.parquet:2: a text is not UTF-8 at byte 0"
    assert missing.error == "a.parquet:3: the field prompt is not a string"
    assert (good.error, last.prompt) == (None, "d")


def test_bytes_that_are_no_text_are_no_prompt_and_no_id(tmp_path: Path) -> None:
    prompts, ids = pa.array([b"a", b"\xffb", b"c"]), pa.array([b"x", b"y", b"\xff"])
    good, bad, nameless = read(tmp_path / "a.parquet", packed(prompt=prompts, id=ids))
    assert (good.prompt, good.id, good.error) == ("a", "x", None)
    assert (bad.id, bad.error) == ("y", "a.parquet:2: the field prompt is not UTF-8 at byte 0")
    assert (nameless.id, nameless.error) == (None, "a.parquet:3: the field id is not UTF-8 at byte 0")


def test_a_column_may_hold_the_row_s_own_sampling(tmp_path: Path) -> None:
    given_sampling = [{"max_new_tokens": 3, "seed": None}, None]
    own, none = read(tmp_path / "a.parquet", packed(prompt=["a", "b"], sampling=given_sampling))
    assert (own.sampling.max_new_tokens, own.sampling.seed, none.sampling.max_new_tokens) == (3, 0, 50)


def test_a_file_without_the_column_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.parquet has no column prompt or text, but question"):
        read(tmp_path / "a.parquet", packed(question=["a"]))


@pytest.mark.parametrize("cut", [0, 3, 20, 100, -1, -30])
def test_a_damaged_file_is_one_line(tmp_path: Path, cut: int) -> None:
    with pytest.raises(InputError, match=r"a\.parquet is not Parquet, or is damaged after row 0: .") as caught:
        read(tmp_path / "a.parquet", packed(prompt=["a"] * 100)[:cut])
    assert "\n" not in str(caught.value)


def test_rows_before_the_damage_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    prompts = [os.urandom(8).hex() for _ in range(4000)]
    pq.write_table(pa.table({"prompt": prompts}), path, row_group_size=1000, use_dictionary=False, compression="none")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = b"\xff" * 40
    path.write_bytes(bytes(content))
    seen, error = read_to_the_damage(path)
    assert f"damaged after row {len(seen)}: " in error
    assert 1000 <= len(seen) < 4000
    assert seen == prompts[: len(seen)]


@pytest.mark.parametrize("name", ["a", "a.parquet", "a.parquet.gz"])
def test_it_is_read_from_anywhere(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = packed(prompt=["a", "b"])
    content = gzip.compress(content) if name.endswith("gz") else content
    assert [request.prompt for request in read(tmp_path / name, content)] == ["a", "b"]
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = Thread(target=fifo.write_bytes, args=(content,), daemon=True)
    writer.start()
    assert [request.prompt for request in read_requests(find_sources([str(fifo)]))] == ["a", "b"]
    writer.join()


def test_rows_are_counted_without_being_read(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(packed(prompt=["a"] * 70))
    assert count_rows(find_sources([str(tmp_path / "a.parquet")])) == 70


@pytest.mark.parametrize("module", ["pyarrow", "pyarrow.parquet"])
def test_without_pyarrow_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    content = packed(prompt=["a"])
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"pip install pyarrow"):
        read(tmp_path / "a.parquet", content)
    with pytest.raises(OutputError, match=r"pip install pyarrow"):
        WRITERS["parquet"]([], io.BytesIO(), WriteOptions())


# Out.


def test_a_table_of_results_has_a_column_for_each_field() -> None:
    [row] = write(result_of(metadata={"topic": "dogs"}), ids=True).to_pylist()
    assert row == {
        "id": "d1", "index": 4, "sample_index": 0, "prompt": "My dog is", "text": " very kind",
        "finish_reason": "length", "num_prompt_tokens": 3, "num_output_tokens": 2, "error": None, "model": "gpt2",
        "input_ids": [3666, 3290, 318], "output_ids": [845, 1611], "batch_index": 1, "padded_length": 8,
        "source": "rows.jsonl:5", "topic": "dogs", "metadata": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "kind", "cells"),
    [
        ([1, None, 2], "int64", [1, None, 2]),
        ([1, 0.5], "double", [1.0, 0.5]),
        ([True, None], "bool", [True, None]),
        (["a", None], "string", ["a", None]),
        ([1, "a"], "string", ["1", "a"]),
        ([True, 1], "string", ["true", "1"]),
        ([2**70, 1], "string", [str(2**70), "1"]),
        ([2**60, 0.5], "string", [str(2**60), "0.5"]),
        ([[1], {"a": "é"}], "string", ["[1]", '{"a": "é"}']),
        ([None, None], "string", [None, None]),
        (["\ud800", "a"], "string", ["\ufffd", "a"]),
    ],
)
def test_a_column_has_the_type_of_its_values(values: list[Any], kind: str, cells: list[Any]) -> None:
    table = write(*(result_of(metadata={"x": value}) for value in values))
    assert str(table.schema.field("x").type) == kind
    assert table.column("x").to_pylist() == cells


def test_a_later_value_of_another_type_is_json_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchgen.formats.parquet.GROUP_ROWS", 2)
    values = [1, 2, "three", 4, None, 0.5]
    table = write(*(result_of(index=i, metadata={"x": value}) for i, value in enumerate(values)))
    assert table.column("x").to_pylist() == [1, 2, None, 4, None, None]
    assert table.column("metadata").to_pylist() == [None, None, '{"x": "three"}', None, None, '{"x": 0.5}']


def test_row_groups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchgen.formats.parquet.GROUP_ROWS", 3)
    stream = io.BytesIO()
    WRITERS["parquet"]([result_of(index=i) for i in range(7)], stream, WriteOptions())
    file = pq.ParquetFile(stream)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [3, 3, 1]


def test_without_results_there_is_a_table_of_no_rows() -> None:
    assert write().num_rows == 0


def test_it_goes_into_a_pipe() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as stream:
        WRITERS["parquet"]([result_of()], stream, WriteOptions())
    with os.fdopen(read_end, "rb") as stream:
        assert pq.read_table(io.BytesIO(stream.read())).num_rows == 1


@given(rows=st.lists(st.tuples(TEXT.filter(lambda t: t.isprintable()), st.integers() | st.none()), min_size=1))
def test_rows_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int | None]]) -> None:
    stream = io.BytesIO()
    results = [result_of(prompt=prompt, metadata={"n": n}) for prompt, n in rows]
    WRITERS["parquet"](results, stream, WriteOptions())
    requests = read(tmp_path_factory.getbasetemp() / "rows.parquet", stream.getvalue())
    assert [request.prompt for request in requests] == [prompt for prompt, _ in rows]
