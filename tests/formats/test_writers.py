from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.formats.writing import WRITERS, WriteOptions, to_dict, to_json
from batchgen.records import Result
from tests.support.results import TEXT, UNSAFE, result_of

PLAIN = [
    "id", "index", "sample_index", "prompt", "text", "finish_reason",
    "num_prompt_tokens", "num_output_tokens", "error", "metadata", "model", "source",
]  # fmt: skip
IDS = ["input_ids", "output_ids", "batch_index", "padded_length"]
WITH_IDS = [*PLAIN[:-1], *IDS, "source"]

RAW_UNSAFE = re.compile(f"[{''.join(map(re.escape, UNSAFE))}]")

JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
METADATA = st.dictionaries(TEXT, JSON_VALUE, max_size=4)


FAILED = result_of("", finish_reason="error", error="rows.jsonl:2: not a JSON object")


def written(form: str, *results: Result, **options: Any) -> str:
    stream = io.BytesIO()
    WRITERS[form](results, stream, WriteOptions(**options))
    return stream.getvalue().decode()


def as_jsonl(*results: Result, ids: bool = False) -> str:
    return written("jsonl", *results, ids=ids)


def as_text(*results: Result, **options: Any) -> str:
    return written("text", *results, **options)


class FlushedStream(io.BytesIO):
    """Records what had been written at each flush."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed: list[bytes] = []

    def flush(self) -> None:
        super().flush()
        self.flushed.append(self.getvalue())


def test_a_line_of_json_is_written_like_this() -> None:
    assert as_jsonl(result_of()) == (
        '{"id": "d1", "index": 4, "sample_index": 0, "prompt": "My dog is", "text": " very kind", '
        '"finish_reason": "length", "num_prompt_tokens": 3, "num_output_tokens": 2, "error": null, '
        '"metadata": {"topic": "dogs"}, "model": "gpt2", "source": "rows.jsonl:5"}\n'
    )


@pytest.mark.parametrize(("ids", "names"), [(False, PLAIN), (True, WITH_IDS)])
def test_fields_come_in_this_order(ids: bool, names: list[str]) -> None:
    assert list(json.loads(as_jsonl(result_of(), ids=ids))) == names


def test_ids_are_lists_of_numbers() -> None:
    row = json.loads(as_jsonl(result_of(), ids=True))
    assert {name: row[name] for name in IDS} == {
        "input_ids": [3666, 3290, 318],
        "output_ids": [845, 1611],
        "batch_index": 1,
        "padded_length": 8,
    }


def test_a_failed_row_has_all_fields() -> None:
    row = json.loads(as_jsonl(FAILED))
    assert list(row) == PLAIN
    assert (row["text"], row["finish_reason"], row["error"]) == ("", "error", "rows.jsonl:2: not a JSON object")


@pytest.mark.parametrize("row_id", ["x", "", 7, 7.0])
def test_an_id_keeps_its_type(row_id: object) -> None:
    written = json.loads(as_jsonl(result_of(id=row_id)))["id"]
    assert (written, type(written)) == (row_id, type(row_id))


@given(text=TEXT, prompt=TEXT, row_id=TEXT, error=st.none() | TEXT, metadata=METADATA)
def test_every_line_parses_back(text: str, prompt: str, row_id: str, error: str | None, metadata: Any) -> None:
    result = result_of(text, prompt=prompt, id=row_id, error=error, metadata=metadata)
    assert json.loads(as_jsonl(result)) == to_dict(result)


@given(text=TEXT, metadata=METADATA)
def test_a_row_is_one_line_without_unsafe_characters(text: str, metadata: dict[str, Any]) -> None:
    line = as_jsonl(result_of(text, metadata=metadata)).removesuffix("\n")
    assert not RAW_UNSAFE.search(line)
    assert line.splitlines() == [line]


@pytest.mark.parametrize("sign", UNSAFE, ids=ascii)
def test_an_unsafe_character_is_escaped_not_dropped(sign: str) -> None:
    written = to_json(sign)
    assert sign not in written
    assert json.loads(written) == sign


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\udc00\ud83d"], ids=ascii)
def test_a_lone_surrogate_is_written_as_the_replacement_character(text: str) -> None:
    line = as_jsonl(result_of(text, metadata={text: text}))
    replaced = re.sub("[\ud800-\udfff]", "\ufffd", text)
    assert "\\ud" not in line
    assert (json.loads(line.encode())["text"], json.loads(line)["metadata"]) == (replaced, {replaced: replaced})


@pytest.mark.parametrize("text", ["größer", "雨が降る", "😀", "שלום"])
def test_other_text_is_written_as_it_stands(text: str) -> None:
    assert to_json(text) == f'"{text}"'


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_json_is_never_written(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"x": number})


@pytest.mark.parametrize("form", ["jsonl", "text"])
def test_a_row_is_flushed_before_the_next_is_made(form: str) -> None:
    stream = FlushedStream()

    def results() -> Iterator[Result]:
        for num_rows in range(3):
            assert [flushed.count(b"\n") for flushed in stream.flushed] == list(range(1, num_rows + 1))
            yield result_of()

    WRITERS[form](results(), stream, WriteOptions())
    assert len(stream.flushed) == 3


@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_a_record_of_a_table_is_flushed_before_the_next_is_made(form: str) -> None:
    stream = FlushedStream()

    def results() -> Iterator[Result]:
        yield result_of()
        for num_rows in range(1, 3):
            assert stream.flushed[-1].count(b"\n") == 1 + num_rows
            yield result_of()

    WRITERS[form](results(), stream, WriteOptions())


@pytest.mark.parametrize("form", ["jsonl", "text", "openai-batch"])
def test_no_results_are_no_output(form: str) -> None:
    assert written(form) == ""


@pytest.mark.parametrize("form", WRITERS)
def test_the_same_results_are_the_same_bytes(form: str) -> None:
    first, second = io.BytesIO(), io.BytesIO()
    for stream in (first, second):
        WRITERS[form]([result_of(), FAILED, result_of(index=5)], stream, WriteOptions())
    assert first.getvalue() == second.getvalue() != b""


def test_text_is_the_generated_text_alone() -> None:
    assert as_text(result_of(), result_of(" brown ")) == " very kind\n brown \n"


@pytest.mark.parametrize(("text", "line"), [("a\nb\n", r"a\nb\n"), ("a\r\nb", r"a\r\nb"), ("\r", r"\r")])
def test_a_newline_in_the_text_is_spelled_out(text: str, line: str) -> None:
    assert as_text(result_of(text)) == line + "\n"


@given(texts=st.lists(TEXT))
def test_a_row_of_text_is_one_line(texts: list[str]) -> None:
    written = as_text(*map(result_of, texts))
    assert written.count("\n") == len(texts)
    assert "\r" not in written


def test_a_failed_row_is_an_empty_line_of_text() -> None:
    assert as_text(result_of(), FAILED, result_of()) == " very kind\n\n very kind\n"


def test_text_is_escaped_line_by_line() -> None:
    seen: list[str] = []

    def escape(text: str) -> str:
        seen.append(text)
        return f"<{text}>"

    assert as_text(result_of("a\nb"), result_of("c"), escape=escape) == "<a\\nb>\n<c>\n"
    assert seen == [r"a\nb", "c"]
