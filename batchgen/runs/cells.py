"""Converts a Result to a row of the store's table and back; each row has a hash that reveals damage."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from hashlib import blake2b
from typing import Any

from batchgen.formats.fields import to_json
from batchgen.records import Logprobs, Request, Result, RowScore

# The columns of `results`; `index` is stored as row_index. `forced` is only shown on a terminal and not kept.
FIELDS = [field.name for field in fields(Result) if field.name != "forced"]
JSON_FIELDS = {"metadata", "input_ids", "output_ids", "messages", "tool_calls", "parsed"}
WHOLE_NUMBER = re.compile(rb"-?\d+")
HASH_BYTES = 16


def to_cells(result: Result) -> list[object]:
    """Return the values that SQLite stores for a result, in the order of `FIELDS`."""
    return [_to_cell(name, getattr(result, name)) for name in FIELDS]


def _to_cell(name: str, value: object) -> object:
    """Return the SQLite value of a field; numbers and text are stored unchanged.

    What SQLite cannot represent becomes a blob: integers beyond 64 bits as their digits, text with lone surrogates.
    """
    if name in JSON_FIELDS:
        return to_json(value)
    if isinstance(value, Logprobs | RowScore):
        return to_json(asdict(value))
    if isinstance(value, bool):
        return int(value)  # SQLite returns it as an int
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return str(value).encode()
    if isinstance(value, str):
        with suppress(UnicodeEncodeError):
            value.encode()
            return value
        return value.encode("utf-8", "surrogatepass")
    return value


def to_result(cells: Sequence[Any]) -> Result:
    """Build the result from its cells."""
    values = {name: _from_cell(name, cell) for name, cell in zip(FIELDS, cells, strict=True)}
    for name in ("input_ids", "output_ids"):
        values[name] = tuple(values[name])
    if values["logprobs"] is not None:
        values["logprobs"] = Logprobs.from_dict(json.loads(values["logprobs"]))
    if values["score"] is not None:
        values["score"] = RowScore.from_dict(json.loads(values["score"]))
    values["is_json"] = bool(values["is_json"])
    return Result(**values)


def _from_cell(name: str, cell: Any) -> Any:
    if name in JSON_FIELDS:
        return json.loads(cell)
    if isinstance(cell, bytes):
        return int(cell) if WHOLE_NUMBER.fullmatch(cell) else cell.decode("utf-8", "surrogatepass")
    return cell


def hash_of(cells: Iterable[object]) -> bytes:
    """Hash cells together with their types and boundaries."""
    whole = blake2b(digest_size=HASH_BYTES)
    for cell in cells:
        text = cell if isinstance(cell, bytes | str) else repr(cell)
        content = text.encode() if isinstance(text, str) else text
        whole.update(b"%s %d " % (type(cell).__name__.encode(), len(content)))
        whole.update(content)
    return whole.digest()


def digest_of(request: Request) -> bytes:
    """Return a 16-byte hash of everything that a row's results depend on, to detect whether an input row has changed.

    The name of the input file is not included, not even where an error message contains it.
    """
    file = (request.source or "").rpartition(":")[0]
    error = request.error.replace(file, "") if request.error and file else request.error
    content = [request.id, request.prompt, asdict(request.sampling), request.metadata, error]
    if request.conversation:
        content.append(asdict(request.conversation))
    if request.scored:
        content += [request.scored, *request.replies]
    return blake2b(json.dumps(content).encode(), digest_size=HASH_BYTES).digest()
