"""The facts of a run, stored in the Parquet file that it wrote: JSON under one key of the file's metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

KEY = "batchgen"
# Facts that are not stored: a run writes the same bytes at any time and place, into any file, resumed or not.
PASSING = {"stats", "started", "finished"}


def facts_to_write(facts: Mapping[str, Any]) -> dict[str, str]:
    """The file's metadata; empty if nothing is known about the run."""
    kept = {name: value for name, value in facts.items() if name not in PASSING}
    if command := kept.get("command"):
        kept["command"] = {"words": ["batchgen", *_without_output(command["words"][1:])]}
    return {KEY: json.dumps(kept)} if kept else {}


def _without_output(words: Sequence[str]) -> Iterator[str]:
    """A command without its output and progress options.
    >>> list(_without_output(["run", "a.txt", "-q", "-o", "a.parquet", "-ob", "--output=c", "--seed", "1"]))
    ['run', 'a.txt', '--seed', '1']
    """
    names = ("-o", "--output", "--progress")
    for before, word in zip(["", *words], words, strict=False):
        is_joined = word.startswith(("--output=", "--progress=", "-o"))
        if word not in (*names, "-q", "--quiet") and before not in names and not is_joined:
            yield word


def read_parquet_facts(file: Path) -> dict[str, Any]:
    """The facts stored in a file; empty if there are none, or they cannot be read."""
    try:
        import pyarrow.parquet as parquet

        found = (parquet.read_metadata(file).metadata or {}).get(KEY.encode())
        facts = json.loads(found) if found else {}
    except (ImportError, OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
