"""Randomly generated input files, from good to hopeless, with the number of rows and the rows that must be answered.

A format is a function in `FORMATS`, keyed by the name of its file.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

MOST_ROWS = 40
FIRST_BYTES = 8192  # a NUL within these makes a file binary
MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A generated file: its number of rows, if known, and the prompts of the rows that must be answered.

    A file that `is_damaged` may be refused as a whole; if `says` is set, the file must be refused with a line that
    contains it.
    """

    content: bytes
    num_rows: int | None
    prompts: dict[int, str]
    says: str | None = None
    is_damaged: bool = False


def text_file(draw: random.Random) -> Drawn:
    """Lines of all kinds, separated only by \\n."""
    ending = draw.choice([b"\n", b"\r\n"])
    content = ending.join(_text_line(draw) for _ in range(draw.randrange(MOST_ROWS))) + draw.choice([b"", ending])
    if draw.random() < 0.9:
        content = content.replace(b"\0", b"")
    rows = [line.removesuffix(b"\r") for line in content.split(b"\n")]
    rows = [row for row in rows if row.strip()]
    prompts = {}
    for i, row in enumerate(rows):
        with suppress(UnicodeDecodeError):
            prompts[i] = row.decode()
    if b"\0" in content[:FIRST_BYTES]:
        return Drawn(content, 0, {}, says="binary")
    return _as_file(draw, content, len(rows), prompts)


def _text_line(draw: random.Random) -> bytes:
    kind = draw.randrange(9)
    if kind == 0:
        return draw.choice([b"", b" ", b"\t \t", b"\x0b\x0c"])
    if kind == 1:
        return b"bytes " + draw.randbytes(draw.randrange(1, 60)).translate(None, bytes(range(32)))
    if kind == 2:
        return ("a" * draw.choice([1, 1000, 200_000])).encode()
    return _text(draw).replace("\n", " ").encode("utf-8", "surrogatepass")


def _text(draw: random.Random) -> str:
    """A prompt with something unusual in it."""
    odd = ["\0", "\x1b[31m", "\u2028", "\u0085", "\x0b", "\ufeff", "\U0001f600", "e\u0301", "\u202e", "\r", "\ud800"]
    odd += ["<|endoftext|>", "[/red]", "{{ x }}", "a" * 50, "\n", "\uffff", "\x7f", '"', "\\", "=1+1", ","]
    return "Say " + " ".join(draw.choice(odd) for _ in range(draw.randrange(4)))


def jsonl_file(draw: random.Random) -> Drawn:
    """Objects with all kinds of errors, and lines that are not objects."""
    lines: list[bytes] = []
    prompts = {}
    for _ in range(draw.randrange(1, MOST_ROWS)):
        line, prompt = _json_line(draw)
        if prompt is not None:
            prompts[sum(bool(line.strip()) for line in lines)] = prompt
        lines.append(line)
    content = b"\n".join(lines) + draw.choice([b"", b"\n"])
    return _as_file(draw, content, sum(bool(line.strip()) for line in lines), prompts)


def _json_line(draw: random.Random) -> tuple[bytes, str | None]:
    """Return a line, and its prompt if that must be answered."""
    prompt = _text(draw)
    row: dict[str, Any] = {"prompt": prompt, "id": draw.choice(["a", 7, -1.5, None, "", 10**30, "\ud801", "a\0b"])}
    is_good = "\ud800" not in prompt
    kind = draw.randrange(16)
    if kind == 0:
        return draw.choice([b"", b"  ", b"\t"]), None
    if kind == 1:
        return draw.choice(BROKEN_LINES), None
    if kind == 2:
        row = draw.choice(BAD_ROWS)
        is_good = False
    elif kind == 3:
        row["sampling"] = draw.choice(BAD_SAMPLING)
        is_good = False
    elif kind == 4:
        row["sampling"] = draw.choice(GOOD_SAMPLING)
    elif kind == 5:
        row["meta"] = draw.choice([{"a": [1, {"b": None}]}, "\ud800", 1e308, 10**40, [], {"\ud800": 1, "": 2}])
    elif kind == 6:
        row["deep"] = json.loads("[" * 150 + "]" * 150)
        is_good = False
    line = json.dumps(row, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    if kind == 7:
        cut = draw.randrange(1, len(line))
        return (line[:cut] + draw.randbytes(2).replace(b"\n", b"") + line[cut + 1 :]), None
    if kind == 8:
        return line[: draw.randrange(1, len(line))], None
    try:
        line.decode()
    except UnicodeDecodeError:
        is_good = False
    return line, prompt if is_good else None


BROKEN_LINES = [
    b"nonsense", b"{", b"}", b"[]", b"null", b"1", b'"text"', b"[" * 100_000, b'{"prompt":' * 5_000, b"{'prompt': 1}",
    b'{"prompt": "a"} {"prompt": "b"}', b'{"prompt": "a",}', b'{"prompt": "\\ud800"}', b'{"prompt": "\\x"}',
    b'{"prompt": "a", "id": NaN}', b'{"prompt": "a", "x": 1e999}', b'{"prompt": "a", "x": ' + b"9" * 5000 + b"}",
    b"\xff\xfe", b"\xef\xbb\xbf{}", b'{"prompt": "\xc3"}', b'{"prompt": "a\tb"}', b"\0" * 50, b"\x1f\x8b\x08\x00",
]  # fmt: skip
BAD_ROWS: list[dict[str, Any]] = [
    {}, {"prompt": None}, {"prompt": 1}, {"prompt": ["a"]}, {"prompt": ""}, {"text": {}}, {"promt": "a"},
    {"prompt": "a", "id": True}, {"prompt": "a", "id": [1]}, {"prompt": "a", "id": {}}, {"": ""},
]  # fmt: skip
BAD_SAMPLING: list[Any] = [
    {"max_new_tokens": 0}, {"max_new_tokens": -1}, {"max_new_tokens": 1.5}, {"max_new_tokens": "5"}, {"seed": "x"},
    {"temperature": -1}, {"temperature": "hot"}, {"temperature": None}, {"top_p": 0}, {"top_p": 2}, {"top_k": 5},
    {"stop": ""}, {"stop": [1]}, {"stop": {}}, {"unknown": 1}, {"num_beams": 2, "temperature": 1}, [], "x", 1, True,
    {"repetition_penalty": 0}, {"max_new_tokens": True}, {"num_samples": 0}, {"no_repeat_ngram_size": -2},
    {"temperature": 10**400}, {"max_new_tokens": 10**30, "min_new_tokens": 10**31},
]  # fmt: skip
GOOD_SAMPLING: list[Any] = [
    {"max_new_tokens": 200}, {"temperature": 1, "seed": 3}, {"temperature": 0.5, "top_k": 5}, {}, None,
    {"seed": 2**63 - 1},
]  # fmt: skip


def _as_file(draw: random.Random, content: bytes, num_rows: int, prompts: dict[int, str]) -> Drawn:
    """Occasionally add a byte order mark, or make the file UTF-16."""
    chance = draw.random()
    if chance < 0.03:
        content = "text".encode("utf-16") + content
    elif chance < 0.2 and not content.startswith(MARKS):
        content = codecs.BOM_UTF8 + content
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return Drawn(content, 0, {}, says="UTF-16")
    return Drawn(content, num_rows, prompts)


def table_file(delimiter: str) -> Callable[[random.Random], Drawn]:
    """CSV or TSV: well quoted, with some records of too few or too many cells; or with quotes and bytes anywhere."""

    def make(draw: random.Random) -> Drawn:
        text = io.StringIO(newline="")
        # Unless all cells are quoted, Python's writer leaves a lone carriage return bare, which is not valid CSV.
        quoting, odd = draw.choice([(csv.QUOTE_ALL, "\ud800"), (csv.QUOTE_MINIMAL, "\ud800\r")])
        ending = draw.choice(["\n", "\r\n"])
        write = csv.writer(text, delimiter=delimiter, lineterminator=ending, quoting=quoting).writerow
        if delimiter == "\t":  # TSV, where a quote is text
            odd, write = "\ud800\t\r\n", lambda cells: text.write(delimiter.join(cells) + ending)
        write(["id", "prompt", "topic"])
        prompts = {}
        num_rows = draw.randrange(MOST_ROWS)
        for i in range(num_rows):
            cells = [f"r{i}", *(_text(draw).translate(dict.fromkeys(map(ord, odd))) for _ in range(2))]
            if draw.random() < 0.1:
                cells = cells[: draw.randrange(1, 3)] if draw.random() < 0.5 else [*cells, "more"]
            else:
                prompts[i] = cells[1]
            write(cells)
        content = text.getvalue().encode()
        if draw.random() < 0.6:
            return Drawn(content, num_rows, prompts)
        return Drawn(_damaged(draw, content), None, {}, is_damaged=True)

    return make


def parquet_file(draw: random.Random) -> Drawn:
    """Columns of unusual types, and rows without a prompt; sometimes with altered bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    given = [draw.choice([None, _text(draw).replace("\ud800", "")]) for _ in range(draw.randrange(MOST_ROWS))]
    others = {
        "n": pa.array(range(len(given)), pa.int64()),
        "when": pa.array([10**9] * len(given), pa.timestamp("ns")),
        "bytes": pa.array([b"\xff\0"] * len(given)),
        "list": pa.array([[1.0, float("nan")]] * len(given)),
        "exact": pa.array([Decimal("1.5")] * len(given), pa.decimal128(20, 3)),
    }
    chosen = {name: others[name] for name in draw.sample(list(others), draw.randrange(len(others)))}
    stream = io.BytesIO()
    table = pa.table({"prompt": pa.array(given, pa.string()), **chosen})
    pq.write_table(table, stream, row_group_size=draw.choice([1, 7, 1000]))
    if draw.random() < 0.6:
        prompts = {i: prompt for i, prompt in enumerate(given) if prompt}
        return Drawn(stream.getvalue(), len(given), prompts)
    return Drawn(_damaged(draw, stream.getvalue()), None, {}, is_damaged=True)


def batch_file(draw: random.Random) -> Drawn:
    """OpenAI Batch requests: chats, unknown options, duplicate ids."""
    lines = [b'{"custom_id": "first", "body": {"prompt": "a"}}']
    for i in range(draw.randrange(MOST_ROWS)):
        body = {"prompt": _text(draw).replace("\ud800", ""), "max_tokens": draw.choice([500, 0, "x", None, 10**30])}
        odd = {draw.choice(["n", "stop", "messages", "echo", "logprobs", "seed", "x"]): draw.choice(ODD_VALUES)}
        request = {
            "custom_id": draw.choice([f"r{i}", "first", 7, None, ""]),
            "body": draw.choice([body, body | odd, 1]),
        }
        lines.append(draw.choice([json.dumps(request).encode(), draw.choice(BROKEN_LINES)]))
    return Drawn(b"\n".join(lines), sum(bool(line.strip()) for line in lines), {0: "a"})


ODD_VALUES: list[Any] = [None, True, 0, 1, 2, -1, 2.5, "x", [], ["a", "b"], {}, 10**400]


def packed_file(pack: Callable[[bytes], bytes]) -> Callable[[random.Random], Drawn]:
    """Compressed JSON Lines that may be cut off, altered, or something else."""

    def make(draw: random.Random) -> Drawn:
        drawn = jsonl_file(draw)
        if draw.random() < 0.5:
            return replace(drawn, content=pack(drawn.content))
        content = draw.choice([drawn.content, b"", _damaged(draw, pack(drawn.content * 20))])
        return Drawn(content, None, {}, is_damaged=True)

    return make


def _damaged(draw: random.Random, content: bytes) -> bytes:
    """Alter some bytes, or cut off the end."""
    if draw.random() < 0.3:
        return content[: draw.randrange(len(content) + 1)]
    altered = bytearray(content)
    for _ in range(draw.randrange(1, 5)):
        if altered:
            altered[draw.randrange(len(altered))] = draw.choice([0, 0x22, 0xFF, draw.randrange(256)])
    return bytes(altered)


def zstd(content: bytes) -> bytes:
    from backports.zstd import compress

    return bytes(compress(content))


FORMATS: dict[str, Callable[[random.Random], Drawn]] = {
    "rows.txt": text_file,
    "rows.jsonl": jsonl_file,
    "rows.csv": table_file(","),
    "rows.tsv": table_file("\t"),
    "rows.parquet": parquet_file,
    "batch.jsonl": batch_file,
    "rows.jsonl.gz": packed_file(gzip.compress),
    "rows.jsonl.zst": packed_file(zstd),
}
