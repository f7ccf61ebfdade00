"""OpenAI Batch files for `/v1/completions`: a request a line, with `custom_id` and `body`.

What a body asks for is done, or the row fails and says what cannot be; nothing is passed over that would change the
answer.

Answers are a line a request, with all its samples as `choices`; failed ones as an error file has them. No clock and no
chance is in them: a run that is repeated or resumed writes the same bytes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from functools import partial
from hashlib import blake2b
from itertools import groupby
from typing import Any, BinaryIO

from batchgen.errors import InputError
from batchgen.formats.content import Content
from batchgen.formats.fields import WriteOptions, to_bytes, to_json
from batchgen.formats.jsonl import JsonLine, read_values
from batchgen.formats.row_options import row_keys
from batchgen.formats.rows import REPLACED, ReadOptions, Row
from batchgen.records import Result, SamplingParams, options_of

URL = "/v1/completions"
CACHE_KIB = 65_536  # of the ids that came before; more of them go to a file
KEYS = {"custom_id", "method", "url", "body"}
# Options of a body that are called otherwise here; all others are called as a row's own are.
RENAMED = {
    "max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens", "min_tokens": "min_new_tokens",
    "n": "num_samples",
}  # fmt: skip
OPTIONS = {key: key for key in row_keys() if key not in RENAMED.values()} | RENAMED
# A greedy request may have these, without effect; not so a number of samples.
UNUSED_WHEN_GREEDY = {key for key, item in options_of(SamplingParams).items() if item.option.only_sampled} - {
    "num_samples"
}
# Who asks, where it is kept, how it is sent: the text stays the same.
WITHOUT_EFFECT = {
    "model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "stream_options",
}  # fmt: skip
# Values of keys that cannot be honoured which ask for nothing.
HARMLESS: dict[str, tuple[object, ...]] = {
    "stream": (False,), "echo": (False,), "logprobs": (False,), "suffix": ("",), "best_of": (1,),
}  # fmt: skip


def read_openai_batch(content: Content, options: ReadOptions) -> Iterator[Row]:
    """Each line's `body` is a row; its `custom_id` is the id, which no other line may have."""
    if options.field or options.id_field or options.template:
        raise InputError(
            f"{content.name} is an OpenAI Batch file, which says itself where prompt and id are: "
            "leave out --field, --id-field and --template, or say --input-format jsonl"
        )
    seen = SeenIds()
    for line in read_values(content):
        yield _row(line, seen)


def is_openai_batch(value: object) -> bool:
    """Whether a file's first JSON value begins such a file."""
    return isinstance(value, dict) and "custom_id" in value and "body" in value


class SeenIds:
    """Which ids came before, and where; 8 bytes of each, in a database that leaves memory where it grows large."""

    def __init__(self) -> None:
        # Without a name it is private, in a file that nobody sees. Rows are read in one thread, but not always this.
        self._places = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._places.execute("PRAGMA journal_mode = OFF")
        self._places.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._places.execute("BEGIN")  # and no end: nothing of it is to last
        self._places.execute("CREATE TABLE seen (hash INTEGER PRIMARY KEY, place BLOB)")

    def place_of(self, custom_id: str, source: str) -> str | None:
        """Where an id came before; if it did not, it now has."""
        digest = blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        key = int.from_bytes(digest, "big", signed=True)
        place = source.encode("utf-8", "surrogatepass")
        if self._places.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (key, place)).rowcount:
            return None
        [found] = self._places.execute("SELECT place FROM seen WHERE hash = ?", (key,)).fetchone()
        return bytes(found).decode("utf-8", "surrogatepass")


def _row(line: JsonLine, seen: SeenIds) -> Row:
    value, source = line.value, line.source
    if not isinstance(value, dict):
        return Row(error="not a JSON object with custom_id and body", source=source)
    custom_id = value.get("custom_id")
    if line.problem or not isinstance(custom_id, str):
        known = custom_id if isinstance(custom_id, str) and REPLACED not in custom_id else None
        return Row(id=known, error=line.problem or "the custom_id is not a string", source=source)
    if place := seen.place_of(custom_id, source):
        return Row(id=custom_id, error=f"the custom_id is that of {place} too", source=source)
    metadata = {key: item for key, item in value.items() if key not in KEYS}
    row = partial(Row, id=custom_id, metadata=metadata, source=source, num_bytes=line.num_bytes)
    try:
        prompt, sampling = _read_body(value)
    except ValueError as problem:
        return row(error=str(problem))
    return row(prompt, sampling=sampling, option_names=_names(value["body"]))


def _read_body(request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The prompt and the options of a request, under our names. Raises `ValueError` for what cannot be done."""
    body, url = request.get("body"), request.get("url", URL)
    if not isinstance(body, dict):
        raise ValueError("the body is not an object")
    if "messages" in body or url == "/v1/chat/completions":
        raise ValueError(f"a chat request: only {URL} with a prompt can be run")
    if url != URL:
        raise ValueError(f"url is not {URL}")
    if request.get("method", "POST") != "POST":
        raise ValueError("method is not POST")
    for key in sorted(body.keys() - OPTIONS.keys() - WITHOUT_EFFECT - {"prompt"}):
        _check_harmless(key, body)
    return _prompt(body), _options(body)


def _options(body: dict[str, Any]) -> dict[str, Any]:
    """What a body asks of sampling, under our names."""
    given = {key: item for key, item in body.items() if key in OPTIONS and item is not None}
    if len({str(given[key]) for key in ("max_tokens", "max_completion_tokens") if key in given}) > 1:
        raise ValueError("body.max_tokens and body.max_completion_tokens differ: give one")
    options = {OPTIONS[key]: item for key, item in given.items()}
    if options.get("temperature") == 0:
        options = {key: item for key, item in options.items() if key not in UNUSED_WHEN_GREEDY}
    return options


def _names(body: dict[str, Any]) -> dict[str, str]:
    """What the body calls our options, for errors."""
    return {ours: f"body.{theirs}" for theirs, ours in OPTIONS.items() if body.get(theirs) is not None}


def _check_harmless(key: str, body: dict[str, Any]) -> None:
    value = body[key]
    # In Python 0 == False, and logprobs 0 asks for what false does not.
    known = any(value == other and type(value) is type(other) for other in HARMLESS.get(key, ()))
    if value is not None and not known and (key, value) != ("best_of", body.get("n")):
        raise ValueError(f"body.{key[:40]} cannot be honoured here: leave it out")


def _prompt(body: dict[str, Any]) -> str:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise ValueError("body.prompt must be a string: one prompt a line, and no token ids")
    return prompt


def write_openai_batch(results: Iterable[Result], stream: BinaryIO, options: WriteOptions) -> None:
    """A request is written when the next one's first result is there: only then its samples are complete."""
    for _, samples in groupby(results, key=lambda result: result.index):
        request = list(samples)
        failed = next((result for result in request if result.error is not None), None)
        if options.rows in ("all", "failed" if failed else "answered"):
            stream.write(to_bytes(to_json(_failure(failed) if failed else _answer(request)) + "\n"))
            stream.flush()


def _answer(samples: list[Result]) -> dict[str, Any]:
    first = samples[0]
    new_tokens = sum(sample.num_output_tokens for sample in samples)
    choices = [
        {"index": sample.sample_index, "text": sample.text, "finish_reason": sample.finish_reason, "logprobs": None}
        for sample in samples
    ]
    body = {
        "id": f"cmpl-{first.index}",
        "object": "text_completion",
        "created": 0,
        "model": first.model,
        "choices": choices,
        "usage": {
            "prompt_tokens": first.num_prompt_tokens,
            "completion_tokens": new_tokens,
            "total_tokens": first.num_prompt_tokens + new_tokens,
        },
    }
    response = {"status_code": 200, "request_id": f"req_{first.index}", "body": body}
    return _request(first, response, None)


def _failure(result: Result) -> dict[str, Any]:
    return _request(result, None, {"code": "row_failed", "message": result.error})


def _request(result: Result, response: object, error: object) -> dict[str, Any]:
    """Metadata, which the format does not know, only where there is any."""
    custom_id = None if result.id is None else str(result.id)
    own = {"id": f"batch_req_{result.index}", "custom_id": custom_id, "response": response, "error": error}
    return own | ({"metadata": result.metadata} if result.metadata else {})
