"""Hostile or odd files: every row comes out once, good or as an error with its place; nothing crashes."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchgen.errors import BatchgenError
from batchgen.formats.reading import ReadOptions, find_sources, read_requests
from batchgen.formats.templates import Template
from batchgen.formats.writing import WRITERS, WriteOptions
from batchgen.model import Checkpoint
from batchgen.pipeline import Pipeline
from batchgen.records import Request, Result
from tests.support.engines import FakeEngine

ODD = [
    "\0", "\x1b[31m", "\ufeff", "\u2028", "\u202e", "\x85", "\r", "\ud800", "<|endoftext|>", "=1+1", '"', "'", "\\",
    "{", "}", "{{ x }}", ",", "\t", "\n", "  ", "é", "😀", "𓀀" * 9, "-", "null", "NaN", "1e999", "$(id)",
]  # fmt: skip
BYTES = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\0", b"\x1f\x8b", b"\r\n", b'"', b"\xfe\xff"]
VALUES: list[Any] = [
    None, True, 7, -0.0, 2**80, 1e300, "x", [], {}, [[[[]]]], {"a": {"b": [1, "\ud800"]}}, {"temperature": 0.7},
    {"max_new_tokens": -1}, {"heat": 1}, ["a", "b"], "\0",
]  # fmt: skip
KEYS = ["prompt", "text", "id", "sampling", "metadata", "custom_id", "body", "model", "", "index", "q", "\ud800", "row"]


def odd_text(draw: random.Random) -> str:
    return "".join(draw.choice([*ODD, "My dog is", " "]) for _ in range(draw.randint(0, 4)))


def json_line(draw: random.Random) -> str:
    row = {draw.choice(KEYS): draw.choice([odd_text(draw), draw.choice(VALUES)]) for _ in range(draw.randint(0, 4))}
    text = json.dumps(row, ensure_ascii=draw.random() < 0.5)
    kinds = [text, text, text, text[: draw.randint(0, len(text))], text + "}", odd_text(draw), "[" * 3000, "7", "null"]
    return draw.choice(kinds).replace("\n", " ")


def batch_line(draw: random.Random) -> str:
    keys = ["prompt", "max_tokens", "n", "temperature", "stop", "echo", "logprobs", "messages", "model", "x"]
    body = {draw.choice(keys): draw.choice([odd_text(draw), draw.choice(VALUES)]) for _ in range(draw.randint(0, 4))}
    custom_id = draw.choice(["a", "b", str(draw.random()), 7, None, odd_text(draw)])
    return json.dumps({"custom_id": custom_id, "body": draw.choice([body, body, "x"])})


def text_line(draw: random.Random) -> str:
    return odd_text(draw).replace("\n", " ")


def csv_line(draw: random.Random) -> str:
    return ",".join(draw.choice([odd_text(draw), f'"{odd_text(draw)}"', "x"]) for _ in range(draw.randint(1, 4)))


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Alter a few bytes, or cut off the end."""
    for _ in range(draw.randint(0, 3)):
        place = draw.randint(0, len(content))
        content = content[:place] + draw.choice(BYTES) + content[place + draw.randint(0, 2) :]
    return content[: draw.randint(0, len(content))] if draw.random() < 0.1 else content


MAKERS: dict[str, tuple[str, Callable[[random.Random], str]]] = {
    "a.txt": ("", text_line),
    "a.jsonl": ("", json_line),
    "a": ("", json_line),
    "batch.jsonl": ('{"custom_id": "0", "body": {"prompt": "a"}}\n', batch_line),
    "a.csv": ("prompt,id,q\n", csv_line),
    "a.tsv": ("prompt\tid\n", csv_line),
}


def make(name: str, seed: int) -> bytes:
    draw = random.Random(f"{name} {seed}")
    header, line = MAKERS[name]
    lines = [line(draw) for _ in range(draw.randint(0, 12))]
    content = (header + "\n".join(lines)).encode("utf-8", "surrogatepass")
    return damaged(content, draw)


def read(path: Path, template: Template | None = None) -> list[Request] | str:
    """Return the rows of a file, or the line that says why it is not valid."""
    try:
        return list(read_requests(find_sources([str(path)]), options=ReadOptions(template=template)))
    except BatchgenError as error:
        return str(error)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("seed", range(35))
def test_every_row_comes_out_once(tmp_path: Path, checkpoint: Checkpoint, name: str, seed: int) -> None:
    path = tmp_path / name
    path.write_bytes(make(name, seed))
    requests = read(path, Template("{{ row.q }}{{ prompt }}") if seed % 5 == 4 and name != "batch.jsonl" else None)
    if isinstance(requests, str):
        assert requests.startswith(str(path))
        assert "\n" not in requests
        return
    results = list(Pipeline(checkpoint, FakeEngine()).run(requests))
    assert [result.index for result in results if result.sample_index == 0] == list(range(len(requests)))
    assert all((result.error is None) == (result.finish_reason != "error") for result in results)
    for request in requests:
        assert request.source.startswith(f"{path}:")
        assert request.error is None or request.error.startswith(request.source)
    check_writers(results)


def check_writers(results: list[Result]) -> None:
    """Check that whatever was read can be written in every format, without losing a row."""
    for form, write in WRITERS.items():
        stream = io.BytesIO()
        write(results, stream, WriteOptions())
        content = stream.getvalue()
        if form != "parquet":
            content.decode("utf-8")
        if form in ("jsonl", "text"):
            assert content.count(b"\n") == len(results)
        if form == "openai-batch":
            assert content.count(b"\n") == len({result.index for result in results})


@pytest.mark.parametrize("seed", range(20))
def test_damaged_packing_is_one_line_or_the_rows(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    path = tmp_path / "a.txt.gz"
    path.write_bytes(damaged(gzip.compress(b"My dog is\n" * 500), draw))
    requests = read(path)
    if isinstance(requests, str):
        assert requests.startswith(str(path))
        assert "\n" not in requests
    else:
        assert len(requests) == 500


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_row_with_a_key_twice_fails_and_has_no_id_that_may_be_wrong(tmp_path: Path, name: str) -> None:
    lines = [
        '{"id": "a", "prompt": "x"}', '{"id": "b", "prompt": "x", "prompt": "y", "topic": 1}',
        '{"id": "c", "id": "d", "prompt": "x"}', '{"id": "e", "prompt": "x", "more": [{"k": 1, "k": 2}]}',
    ]  # fmt: skip
    text = "\n".join(lines) if name.endswith("l") else f"[{','.join(lines)}]"
    (tmp_path / name).write_text(text)
    first, second, third, fourth = read_requests(find_sources([str(tmp_path / name)]), ReadOptions())
    assert first.error is None
    assert 'duplicate key "prompt"' in str(second.error)
    assert (second.id, second.metadata, second.prompt) == ("b", {"topic": 1}, "")
    assert 'duplicate key "id"' in str(third.error)
    assert third.id is None
    assert 'duplicate key "k"' in str(fourth.error)


def test_an_openai_request_with_a_key_twice_fails_also_as_the_first_of_its_file(tmp_path: Path) -> None:
    body = '{"prompt": "x", "max_tokens": 1, "max_tokens": 2}'
    (tmp_path / "rows.jsonl").write_text(f'{{"custom_id": "a", "body": {body}}}\n')
    [row] = read_requests(find_sources([str(tmp_path / "rows.jsonl")]), ReadOptions())
    assert (row.id, row.endpoint) == ("a", "/v1/completions")
    assert 'duplicate key "max_tokens"' in str(row.error)


def test_messages_in_a_cell_with_a_key_twice_are_no_prompt(tmp_path: Path) -> None:
    cell = '[{"role": "user", "content": "x", "content": "y"}]'.replace('"', '""')
    (tmp_path / "rows.csv").write_text(f'prompt\n"{cell}"\n')
    [row] = read_requests(find_sources([str(tmp_path / "rows.csv")]), ReadOptions())
    assert 'duplicate key "content"' in str(row.error)
