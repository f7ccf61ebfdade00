"""What a row keeps: its source, its id, its columns, its weight; also for failed rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen import generate
from batchgen.formats.json_values import read_members
from batchgen.formats.reading import find_sources, read_requests
from batchgen.pipeline import Pipeline
from batchgen.records import Request, SamplingParams
from tests.support.engines import FakeEngine
from tests.support.reading import read


def ids(requests: list[Request]) -> list[object]:
    return [request.id for request in requests]


# Sources.


@pytest.mark.parametrize("name", ["rows.txt", "rows.jsonl", "rows.csv"])
def test_a_row_says_which_line_it_came_from(tmp_path: Path, name: str) -> None:
    line = '{"prompt": "a"}' if name.endswith("jsonl") else "a"
    requests = read(tmp_path / name, f"prompt\n\n{line}\n\n{line}\n".encode())
    assert [request.source for request in requests if request.prompt == "a"] == [f"{name}:3", f"{name}:5"]


def test_what_comes_from_no_file_has_no_source() -> None:
    assert [request.source for request in read_requests(find_sources([], ["a"]))] == [None]
    good, bad = generate([{"prompt": "My dog is"}, {"prompt": ""}], model="bundled", max_new_tokens=1)
    assert (good.source, bad.source) == (None, None)


def test_a_result_has_the_source_of_its_row(checkpoint: Any) -> None:
    requests = [Request(0, "0", "My dog is", source="a.txt:7")]
    assert [result.source for result in Pipeline(checkpoint, FakeEngine()).run(requests)] == ["a.txt:7"]


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", b'\n\n{"prompt": ""}\n'), ("a.csv", b"prompt,n\na,1\n,2\n")])
def test_the_error_of_an_empty_prompt_names_file_and_line(
    tmp_path: Path, checkpoint: Any, name: str, content: bytes
) -> None:
    *_, result = Pipeline(checkpoint, FakeEngine()).run(read(tmp_path / name, content))
    assert (result.error or "").startswith(f"{name}:3: the prompt is empty")


# Ids of failed rows.


@pytest.mark.parametrize(
    ("line", "row_id"),
    [
        ('{"id": "b", "prompt":', "b"),
        ('{"id": "b", "topic": "x", "prompt": "It is', "b"),
        ('{"id": 7, "prompt": "a", "x": NaN}', 7),
        ('{"id": "b", "prompt": "a", "x": 1e999}', "b"),
        ('{"prompt": "a", "x": -Infinity, "id": "b"}', "b"),
        ('{"id": "b", "prompt": 7}', "b"),
        ('{"id": "b", "prompt": "a", "sampling": {"heat": 1}}', "b"),
        ('{"id": "b", "prompt": "\\ud800"}', "b"),
        ('{"id": 12', None),
        ('{"id": "b"', None),
        ('{"id": 7, "prompt": "a"}{"id": 8, "prompt": "b"}', None),
        ('{"id": "a", "prompt": "x"}, {"id": "b"}', None),
        ('{"id": true, "prompt": "a"}', None),
        ('{"id": ["1"], "prompt": "a"}', None),
        ('{"prompt": 7}', None),
        ("[1, 2]", None),
        ('"1"', None),
        ("1", None),
        ("nonsense", None),
    ],
)
def test_a_bad_line_has_its_own_id_or_none(tmp_path: Path, line: str, row_id: object) -> None:
    rows = '{"id": "1", "prompt": "a"}\n' + line + '\n{"id": "0", "prompt": "b"}\n'
    requests = read(tmp_path / "a.jsonl", rows.encode())
    assert ids(requests) == ["1", row_id, "0"]
    assert requests[1].error


def test_an_id_with_bytes_that_are_not_utf_8_is_none(tmp_path: Path) -> None:
    lines = b'{"id": "b\xff", "prompt": "a"}\n{"id": "c", "prompt": "a\xff"}\n'
    assert ids(read(tmp_path / "a.jsonl", lines)) == [None, "c"]
    assert ids(read(tmp_path / "a.csv", b"id,prompt\nb\xff,a\nc,a\xff\n")) == [None, "c"]


def test_a_record_with_other_cells_than_the_header_has_no_id(tmp_path: Path) -> None:
    requests = read(tmp_path / "a.csv", b"id,prompt\n6,My dog is\n7,One, two\n8\n1,The moon\n")
    assert ids(requests) == ["6", None, None, "1"]


def test_a_record_with_a_bad_sampling_keeps_its_columns(tmp_path: Path) -> None:
    [bad] = read(tmp_path / "a.csv", b"id,prompt,sampling,topic\n5,The sun,{bad,sky\n")
    assert (bad.id, bad.prompt, bad.metadata) == ("5", "The sun", {"topic": "sky"})
    assert (bad.error or "").startswith("a.csv:2: the sampling is not valid JSON")


@pytest.mark.parametrize(
    ("line", "custom_id"),
    [('{"custom_id": "x", "body":', "x"), ('{"custom_id": ["y"], "body": {"prompt": "a"}}', None)],
)
def test_a_bad_request_has_its_own_custom_id_or_none(tmp_path: Path, line: str, custom_id: str | None) -> None:
    good = '{"custom_id": "1", "body": {"prompt": "a"}}\n'
    assert ids(read(tmp_path / "a.jsonl", (good + line).encode())) == ["1", custom_id]


def test_a_good_row_without_an_id_has_its_place(tmp_path: Path) -> None:
    assert ids(read(tmp_path / "a.jsonl", b'{"prompt": "a"}\n{"id": null, "prompt": "b"}\n')) == ["0", "1"]


JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(value=st.dictionaries(st.text(), JSON_VALUE, min_size=1), share=st.floats(0, 1))
def test_what_is_read_of_a_cut_object_was_in_it(value: dict[str, Any], share: float) -> None:
    text = json.dumps(value)
    members = read_members(text[: int(share * len(text))])
    assert all(key in value and value[key] == item for key, item in members.items())


@given(value=st.dictionaries(st.text(), JSON_VALUE))
def test_a_whole_object_is_read_whole(value: dict[str, Any]) -> None:
    assert read_members(json.dumps(value)) == value


# Weights.


def test_nested_values_weigh_more_than_their_text(tmp_path: Path) -> None:
    flat, nested = read(
        tmp_path / "a.jsonl",
        b'{"prompt": "a", "x": "' + b"[]" * 999 + b'"}\n{"prompt": "a", "x": [' + b"[]," * 999 + b"0]}",
    )
    assert min(flat.weight, nested.weight) > 56 * 999


def test_a_row_of_too_many_values_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchgen.formats.json_values.HEAVIEST_ROW", 2**20)
    nested = '{"prompt": "a", "x": [' + "[]," * 15_000 + "0]}"
    text = json.dumps({"prompt": "a", "x": ',[{\\"' * 15_000})
    for name, content in (("a.jsonl", f"{nested}\n{text}\n"), ("a.json", f"[{nested},\n{text}]")):
        bad, good = read(tmp_path / name, content.encode())
        assert bad.error == f"{name}:1: its nested values take 1 MiB of memory, more than 1"
        assert good.error is None


def test_samples_weigh_too() -> None:
    one, many = (Request(0, "0", "a" * 100, SamplingParams(temperature=1, num_samples=n)) for n in (1, 1000))
    assert one.weight == 100
    assert many.weight > 1000 * 100


def test_a_row_of_too_many_samples_fails_alone(tmp_path: Path) -> None:
    rows = [{"temperature": 1, "num_samples": n} for n in (16_384, 16_385, 10**12)]
    content = "\n".join(json.dumps({"prompt": "a", "sampling": sampling}) for sampling in rows)
    most, *others = read(tmp_path / "a.jsonl", content.encode())
    assert most.error is None
    assert all("sampling.num_samples" in (other.error or "") for other in others)
