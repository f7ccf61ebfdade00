"""Prompt files to Requests: text (one prompt a line), JSON Lines, directories, globs, standard input, given texts.

Reading is streaming. A bad row becomes a Request with an `error` that names its file and line; the rest go on.
Knows nothing of tokens or models.
"""

from __future__ import annotations

import glob
import json
import math
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from batchgen.errors import InputError
from batchgen.records import Request, RowId, SamplingParams
from batchgen.row_sampling import override

MOST_LEVELS = 100
UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
PROMPT_FIELDS = ("prompt", "text")
FORMATS_BY_SUFFIX = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl"}
# Files that would be read as nonsense if taken for lines of text.
NOT_TEXT = {".csv", ".tsv", ".parquet", ".json", ".gz", ".zst", ".zip", ".xz", ".bz2", ".xlsx", ".db"}


@dataclass(frozen=True, slots=True)
class Source:
    """Where prompts come from: a path, standard input (`-`), or texts given on the command line."""

    name: str
    path: Path | None = None
    texts: tuple[str, ...] = ()

    @property
    def form(self) -> str | None:
        """Its format, where that is known before it is read."""
        if self.texts:
            return "text"
        return FORMATS_BY_SUFFIX.get(self.path.suffix.lower()) if self.path else None


@dataclass(frozen=True, slots=True)
class Row:
    """One row as a reader saw it, before it has an index; `sampling` as it stands there, unchecked."""

    prompt: str = ""
    id: RowId | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    where: str = ""
    sampling: object = None


Lines = Iterable[tuple[int, bytes]]
Reader = Callable[[Lines, str, str | None], Iterator[Row]]


def find_sources(inputs: Iterable[str], texts: Iterable[str] = (), *, use_stdin: bool = False) -> list[Source]:
    """INPUTS as sources, in order: files, globs, `-`, FIFOs, directories (known suffixes, by name); then texts.

    Raises `InputError` at once where something does not exist or cannot be prompts.
    """
    sources = [source for given in inputs for source in _find(given)]
    if texts := tuple(texts):
        sources.append(Source("--prompt", texts=texts))
    if not sources and use_stdin:
        sources.append(Source("-"))
    return sources


def _find(given: str) -> list[Source]:
    if given == "-":
        return [Source("-")]
    if not given:
        raise InputError("an input has an empty name: is a shell variable unset?")
    try:
        return [_check_file(path) for path in _expand(given)]
    except OSError as error:
        raise InputError(f"{given[:80]} cannot be read: {error.strerror} (a prompt itself goes behind -p)") from None


def _expand(given: str) -> list[Path]:
    """The files that a name stands for: its own, a directory's prompt files, a glob's matches."""
    path = Path(given)
    if path.is_dir():
        files = [p for p in path.iterdir() if p.suffix.lower() in FORMATS_BY_SUFFIX and not p.name.startswith(".")]
        reason = f"{given} holds no prompt files ({', '.join(FORMATS_BY_SUFFIX)})"
    elif path.exists():
        return [path]
    elif glob.has_magic(given):
        files = [Path(match) for match in glob.glob(given, recursive=True)]  # noqa: PTH207 - from any root
        reason = f"no file matches {given}"
    else:
        files, reason = [], f"there is no file {given}"
    files = sorted(file for file in files if not file.is_dir())
    if not files:
        raise InputError(reason)
    return files


def _check_file(path: Path) -> Source:
    if path.suffix.lower() in NOT_TEXT:
        raise InputError(f"{path}: cannot read {path.suffix} files; give text (one prompt a line) or .jsonl")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} cannot be read: permission denied")
    return Source(str(path), path)


def count_rows(sources: Iterable[Source], limit: int | None = None) -> int | None:
    """Rows to come, for a progress bar; None where a source can be read only once, or not at all."""
    try:
        return _count_rows(sources, limit)
    except OSError:  # told by the reader, with its name
        return None


def _count_rows(sources: Iterable[Source], limit: int | None) -> int | None:
    total = 0
    for source in sources:
        if source.path is None and not source.texts:
            return None
        if source.path is not None and not stat.S_ISREG(source.path.stat().st_mode):
            return None
        total += len(source.texts)
        if source.path is not None:
            with source.path.open("rb") as stream:
                if stream.read(len(UTF8_BOM)) != UTF8_BOM:
                    stream.seek(0)
                for line in stream:
                    total += not line.isspace()
                    if limit is not None and total >= limit:
                        return limit
    return total if limit is None else min(total, limit)


def read_requests(
    sources: Iterable[Source],
    sampling: SamplingParams | None = None,
    *,
    field: str | None = None,
    on_blank: Callable[[], None] = lambda: None,
) -> Iterator[Request]:
    """Every row of every source as a Request; indices run on over all of them.

    `field` names the JSON field that holds the prompt. Blank lines are skipped and told to `on_blank`.
    """
    rows = (row for source in sources for row in _read(source, field, on_blank))
    return to_requests(rows, sampling or SamplingParams())


def to_requests(rows: Iterable[Row], sampling: SamplingParams) -> Iterator[Request]:
    """Rows to Requests: numbers them, gives each its sampling, and marks those that cannot be run."""
    return (_to_request(index, row, sampling) for index, row in enumerate(rows))


def _to_request(index: int, row: Row, sampling: SamplingParams) -> Request:
    row_id = str(index) if row.id is None else row.id
    error = row.error or _unencodable(row.prompt, f"prompt {index}")
    if row.sampling is not None and not error:
        try:
            sampling = override(sampling, row.sampling)
        except ValueError as problem:
            error = f"{row.where}: {problem}"
    return Request(index, row_id, row.prompt, sampling, row.metadata, error, row.where)


def _unencodable(prompt: str, where: str) -> str | None:
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"{where}: a lone surrogate (half a character) at character {error.start} of the prompt"
    return None


def _read(source: Source, field: str | None, on_blank: Callable[[], None]) -> Iterator[Row]:
    if source.texts:
        yield from (Row(text) for text in source.texts)
        return
    with _open(source) as stream:
        lines = _without_blanks(_lines(stream, source.name), on_blank)
        if (first := next(lines, None)) is None:
            return
        reader = READERS[source.form or _sniff(first[1], field)]
        yield from reader(chain([first], lines), source.name, field)


def _open(source: Source) -> BinaryIO:
    try:
        return source.path.open("rb") if source.path else _open_stdin()
    except OSError as error:
        raise InputError(f"{source.name} cannot be read: {error.strerror}") from None


def _open_stdin() -> BinaryIO:
    if sys.stdin is None:
        raise InputError("standard input is closed")
    try:
        descriptor = sys.stdin.fileno()
    except ValueError:  # replaced by an object in memory
        return sys.stdin.buffer
    # A buffer of our own: a thread that still waits in sys.stdin's would keep Python from exiting.
    return BufferedReader(open(descriptor, "rb", buffering=0, closefd=False))


def _lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    r"""Numbered lines, split on \n only, without their \n or \r\n; the first without a byte order mark."""
    number = 0
    while line := _next_line(stream, name):
        number += 1
        if number == 1:
            if line.startswith(UTF16_BOMS):
                raise InputError(f"{name} is UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`")
            line = line.removeprefix(UTF8_BOM)
        yield number, line.removesuffix(b"\n").removesuffix(b"\r")


def _next_line(stream: BinaryIO, name: str) -> bytes:
    try:
        return stream.readline()
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}") from None


def _without_blanks(lines: Lines, on_blank: Callable[[], None]) -> Iterator[tuple[int, bytes]]:
    for number, line in lines:
        if not line or line.isspace():
            on_blank()
        else:
            yield number, line


def _sniff(line: bytes, field: str | None) -> str:
    """The format of a stream without a suffix: JSON Lines if its first line is an object with a prompt."""
    if field is not None:
        return "jsonl"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return "text"
    return "jsonl" if isinstance(value, dict) and any(name in value for name in PROMPT_FIELDS) else "text"


def read_text(lines: Lines, name: str, field: str | None) -> Iterator[Row]:
    """One prompt a line. A line that is not UTF-8 is a bad row."""
    for number, line in lines:
        try:
            yield Row(line.decode("utf-8"), where=f"{name}:{number}")
        except UnicodeDecodeError as error:
            yield _not_utf8(name, number, line, error)


def read_jsonl(lines: Lines, name: str, field: str | None) -> Iterator[Row]:
    """One JSON object a line: the prompt in `field`, else `prompt` or `text`; `id` is kept; `sampling` holds the row's
    own options; the rest is metadata.
    """
    for number, line in lines:
        try:
            value = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
        except UnicodeDecodeError as error:
            yield _not_utf8(name, number, line, error)
        except (ValueError, RecursionError) as error:
            whole = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            reason = whole.split(";")[0]  # behind it Python advises programmers
            yield Row(error=f"{name}:{number}: not valid JSON: {reason}", where=f"{name}:{number}")
        else:
            yield row_of_object(value, f"{name}:{number}", field)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _finite(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"the number {digits} is too large")
    return value


def row_of_object(value: object, where: str, field: str | None = None) -> Row:
    """One parsed JSON row; `where` (file and line) begins the error of a bad one."""
    if not isinstance(value, dict):
        return Row(error=f'{where}: not a JSON object such as {{"prompt": "…"}}', where=where)
    names = PROMPT_FIELDS if field is None else (field,)
    name = next((name for name in names if name in value), None)
    row_id = value.get("id")
    metadata = {key: item for key, item in value.items() if key not in (name, "id", "sampling")}
    if isinstance(row_id, bool) or not isinstance(row_id, str | int | float | None):
        return Row(metadata=metadata, where=where, error=f"{where}: the id is neither a string nor a number")
    if name is None:
        return Row(
            id=row_id, metadata=metadata, where=where, error=f"{where}: no field {' or '.join(names)} (see --field)"
        )
    if not isinstance(value[name], str):
        return Row(id=row_id, metadata=metadata, where=where, error=f"{where}: the field {name} is not a string")
    if _is_deeper(metadata, MOST_LEVELS):
        return Row(value[name], row_id, where=where, error=f"{where}: nested deeper than {MOST_LEVELS} levels")
    sampling = None if name == "sampling" else value.get("sampling")
    return Row(value[name], row_id, metadata, _unencodable(value[name], where), where, sampling)


def _is_deeper(value: object, levels: int) -> bool:
    """Whether a JSON value is nested deeper than that: writing it would need as much of the stack again."""
    level = [value]
    for _ in range(levels):
        level = [inner for item in level if isinstance(item, dict | list) for inner in _children(item)]
        if not level:
            return False
    return True


def _children(value: dict[str, object] | list[object]) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value


def _not_utf8(name: str, number: int, line: bytes, error: UnicodeDecodeError) -> Row:
    problem = f"{name}:{number}: not UTF-8 at byte {error.start} of the line"
    return Row(line.decode("utf-8", "replace"), error=problem, where=f"{name}:{number}")


READERS: dict[str, Reader] = {"text": read_text, "jsonl": read_jsonl}
