"""How fast earlier runs on this machine were, so that `plan` can say how long the next one takes.

One small JSON file in the user's cache folder. Only runs that write a file anyway (`-o`) leave a speed behind; a
speed that cannot be read or written is no error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from batchgen.records import RunStats

# A shorter run spends its time on what happens once.
LEAST_TELLING_S = 2.0


@dataclass(frozen=True, slots=True)
class Speed:
    """What a run reached: padded columns a second in prefills, `RunStats.decode_work` a second in steps."""

    prefill_per_s: float
    decode_per_s: float
    date: str

    def seconds(self, prefill_columns: int, decode_work: int) -> float:
        """Time for that much work."""
        return prefill_columns / self.prefill_per_s + decode_work / self.decode_per_s


def speed_of(stats: RunStats) -> Speed | None:
    """The speed of a run; None where it was too short to tell."""
    columns = stats.prompt_tokens + stats.pad_tokens
    busy_s = stats.prefill_s + stats.decode_s
    if busy_s < LEAST_TELLING_S or not (columns and stats.decode_work and stats.prefill_s and stats.decode_s):
        return None
    return Speed(columns / stats.prefill_s, stats.decode_work / stats.decode_s, date.today().isoformat())


def read_speed(model: str, device: str, dtype: str, environ: Mapping[str, str] = os.environ) -> Speed | None:
    """The last speed of this model on this device in this dtype."""
    try:
        speed = Speed(**_read(_path(environ))[_key(model, device, dtype)])
        return speed if min(speed.prefill_per_s, speed.decode_per_s) > 0 else None
    except (KeyError, TypeError):
        return None


def write_speed(speed: Speed, model: str, device: str, dtype: str, environ: Mapping[str, str] = os.environ) -> None:
    """Remembers a speed, in place of the last one of its kind."""
    path = _path(environ)
    speeds = _read(path) | {_key(model, device, dtype): asdict(speed)}
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(speeds, indent=1), encoding="utf-8")
        partial.replace(path)


def _path(environ: Mapping[str, str]) -> Path:
    """By the XDG base directory specification."""
    folder = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".cache"
    return Path(folder) / "batchgen" / "speeds.json"


def _key(model: str, device: str, dtype: str) -> str:
    return f"{model} {device} {dtype}"


def _read(path: Path) -> dict[str, Any]:
    try:
        speeds = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return speeds if isinstance(speeds, dict) else {}
