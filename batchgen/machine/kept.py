"""Small facts that this machine keeps between runs, as JSON in the user's cache folder.

What cannot be read or written is no error: it is found out again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def read_kept(name: str, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What is kept in a file of that name."""
    try:
        facts = json.loads(kept_path(name, environ).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def keep(name: str, facts: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> None:
    """Adds facts to those of that name, in place of older ones with the same keys."""
    path = kept_path(name, environ)
    whole = read_kept(name, environ) | dict(facts)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(whole, indent=1), encoding="utf-8")
        partial.replace(path)


def kept_path(name: str, environ: Mapping[str, str] = os.environ) -> Path:
    """By the XDG base directory specification; without a home, a folder that is not there."""
    home = environ.get("HOME", "")
    folder = environ.get("XDG_CACHE_HOME") or Path(home or "/nonexistent") / ".cache"
    return Path(folder) / "batchgen" / f"{name}.json"
