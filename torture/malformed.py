"""Generated inputs, from good to hopeless: rows in are rows out, good ones are answered, bad ones say what is wrong.

A format is a function in `FORMATS` that draws a file and says how many rows it has and which prompts must come back.
"""

from __future__ import annotations

import codecs
import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torture.commands import FAKE, run
from torture.lab import Check, Trial, Tried

MOST_ROWS = 40
MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A generated file: its rows, the prompts of those that must be answered; `says` is in the line that refuses it."""

    content: bytes
    num_rows: int
    prompts: dict[int, str]
    says: str | None = None


def text_file(draw: random.Random) -> Drawn:
    """Lines of all kinds, split at \\n alone."""
    ending = draw.choice([b"\n", b"\r\n"])
    content = ending.join(_text_line(draw) for _ in range(draw.randrange(MOST_ROWS))) + draw.choice([b"", ending])
    rows = [line.removesuffix(b"\r") for line in content.split(b"\n")]
    rows = [row for row in rows if row.strip()]
    prompts = {}
    for i, row in enumerate(rows):
        with suppress(UnicodeDecodeError):
            prompts[i] = row.decode()
    return _as_file(draw, content, len(rows), prompts)


def _text_line(draw: random.Random) -> bytes:
    kind = draw.randrange(9)
    if kind == 0:
        return draw.choice([b"", b" ", b"\t \t", b"\x0b\x0c"])
    if kind == 1:
        return b"bytes " + draw.randbytes(draw.randrange(1, 60)).replace(b"\n", b"")
    if kind == 2:
        return ("a" * draw.choice([1, 1000, 200_000])).encode()
    return _text(draw).replace("\n", " ").encode("utf-8", "surrogatepass")


def _text(draw: random.Random) -> str:
    """A prompt with something odd in it."""
    odd = ["\0", "\x1b[31m", "\u2028", "\u0085", "\x0b", "\ufeff", "\U0001f600", "e\u0301", "\u202e", "\r", "\ud800"]
    odd += ["<|endoftext|>", "[/red]", "{{ x }}", "a" * 50, "\n", "\uffff", "\x7f", '"', "\\", "=1+1", ","]
    return "Say " + " ".join(draw.choice(odd) for _ in range(draw.randrange(4)))


def jsonl_file(draw: random.Random) -> Drawn:
    """Objects with every wrong thing in them, and lines that are none."""
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
    """A line, and its prompt where that must be answered."""
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
    """Now and then with a mark at the start, or in UTF-16."""
    chance = draw.random()
    if chance < 0.03:
        content = "text".encode("utf-16") + content
    elif chance < 0.2 and not content.startswith(MARKS):
        content = codecs.BOM_UTF8 + content
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return Drawn(content, 0, {}, says="UTF-16")
    return Drawn(content, num_rows, prompts)


FORMATS: dict[str, Callable[[random.Random], Drawn]] = {".txt": text_file, ".jsonl": jsonl_file}


def malformed(trial: Trial) -> Iterator[Tried]:
    suffix = trial.given
    drawn = FORMATS[suffix](trial.draw)
    source, output = trial.folder / f"rows{suffix}", trial.folder / "out.jsonl"
    source.write_bytes(drawn.content)
    into_file = trial.draw.random() < 0.5
    options = ["-o", output] if into_file else ["--format", "jsonl"]
    ended = run([*FAKE, source, "-q", "--max-new-tokens", "300000", *options])
    what = f"{source.name}, {'into a file' if into_file else 'to a pipe'}"
    if drawn.says:
        yield Tried(what, ended.refusal_problem(drawn.says, source.name))
        return
    written = output.read_bytes() if into_file and output.exists() else ended.stdout
    yield Tried(what, ended.problem(0, 3) or _wrong(written, drawn, ended.code))


def _wrong(written: bytes, drawn: Drawn, code: int) -> str | None:
    """What is wrong with the rows that came out."""
    rows = [json.loads(line) for line in written.split(b"\n")[:-1]]
    if [row["index"] for row in rows] != list(range(drawn.num_rows)):
        return f"{drawn.num_rows} rows went in, and out came {[row['index'] for row in rows]}"
    for row in rows:
        if (row["error"] is None) == (row["finish_reason"] == "error"):
            return f"row {row['index']} is neither answered nor failed: {row}"
        prompt = drawn.prompts.get(row["index"])
        if prompt is not None and (row["error"], row["prompt"]) != (None, prompt):
            return f"row {row['index']} is not answered: {str(row)[:500]}, its prompt was {prompt!r}"
        if row["error"] is None and not row["text"].startswith(row["prompt"]):
            return f"row {row['index']} has another's answer: {str(row)[:500]}"
    num_errors = sum(row["error"] is not None for row in rows)
    return None if code == (3 if num_errors else 0) else f"{num_errors} rows failed, and the code is {code}"


CHECKS = [
    Check(
        "malformed",
        "generated inputs, good, odd and hopeless: ok + error = rows, no crash",
        lambda lab: [suffix for i in range(lab.some(200)) for suffix in [list(FORMATS)[i % len(FORMATS)]]],
        malformed,
    )
]
