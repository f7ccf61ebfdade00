"""What a run was made of, inside the Parquet file that it wrote: JSON under one key of the file's own metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEY = "batchgen"
# A run writes the same bytes wherever, whenever and into whichever file it runs, resumed or not.
PASSING = {"stats", "started", "finished", "command"}


def facts_to_write(facts: Mapping[str, Any]) -> dict[str, str]:
    """The file's metadata; nothing where nothing is known of the run."""
    kept = {name: value for name, value in facts.items() if name not in PASSING}
    return {KEY: json.dumps(kept)} if kept else {}


def read_parquet_facts(file: Path) -> dict[str, Any]:
    """What was written into a file; nothing where there is nothing, or it cannot be read."""
    try:
        import pyarrow.parquet as parquet

        found = (parquet.read_metadata(file).metadata or {}).get(KEY.encode())
        facts = json.loads(found) if found else {}
    except (ImportError, OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
