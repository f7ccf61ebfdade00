"""Small facts that this machine keeps between runs, as JSON in the user's cache folder.

Failing to read or write them is not an error: they are determined again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def read_kept(name: str, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return the facts kept under a name; empty if they cannot be read."""
    try:
        facts = json.loads(kept_path(name, environ).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def keep(name: str, facts: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> None:
    """Add facts to those kept under a name, replacing those with the same keys."""
    path = kept_path(name, environ)
    whole = read_kept(name, environ) | dict(facts)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(whole, indent=1), encoding="utf-8")
        partial.replace(path)


def kept_path(name: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path of a name's facts, following the XDG base directory specification.

    With neither XDG_CACHE_HOME nor a home, the path is in a folder that does not exist.
    """
    home = environ.get("HOME", "")
    folder = environ.get("XDG_CACHE_HOME") or Path(home or "/nonexistent") / ".cache"
    return Path(folder) / "batchgen" / f"{name}.json"
