"""The rows of a file with given content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from batchgen.errors import InputError
from batchgen.formats.reading import ReadOptions, Source, read_requests
from batchgen.records import Request


def read(path: Path, content: bytes, **options: Any) -> list[Request]:
    path.write_bytes(content)
    return list(read_requests([Source(path.name, path)], options=ReadOptions(**options)))


def read_to_the_damage(path: Path) -> tuple[list[str], str]:
    """Return the prompts that came before the error, and the error."""
    seen: list[str] = []
    try:
        seen.extend(request.prompt for request in read_requests([Source(path.name, path)]))
    except InputError as error:
        return seen, str(error)
    return seen, ""
