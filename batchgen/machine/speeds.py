"""What earlier runs on this machine showed: speeds, so that `plan` can say how long the next one takes, and settings.

One small JSON file in the user's cache folder. Only runs that write a file anyway (`-o`) leave a speed behind, and
`bench`, which leaves its settings too; what cannot be read or written is no error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from batchgen.machine.kept import keep, read_kept
from batchgen.records import RunStats

FILE = "speeds"

# A shorter run spends its time on what happens once.
LEAST_TELLING_S = 2.0
# Beside the speeds, whose keys have four words.
SETTINGS, GAINS = "settings", "gains"


@dataclass(frozen=True, slots=True)
class Speed:
    """What a run reached: padded columns a second in prefills, `RunStats.decode_work` a second in steps."""

    prefill_per_s: float
    decode_per_s: float
    date: str

    def seconds(self, prefill_columns: int, decode_work: int) -> float:
        """Time for that much work."""
        return prefill_columns / self.prefill_per_s + decode_work / self.decode_per_s


@dataclass(frozen=True, slots=True)
class Settings:
    """What `bench` recommends: the fewest rows in slots that reach the best rate, in new tokens a second."""

    rows: int
    tokens_per_s: float
    date: str


@dataclass(frozen=True, slots=True)
class KeptGain:
    """What `bench` found of bfloat16: how many times float32's rate, and the share of greedy tokens that differ."""

    model: str
    times: float
    differing_share: float | None
    date: str


def speed_of(stats: RunStats) -> Speed | None:
    """The speed of a run; None where it was too short to tell."""
    columns = stats.prompt_tokens + stats.pad_tokens
    busy_s = stats.prefill_s + stats.decode_s
    if busy_s < LEAST_TELLING_S or not (columns and stats.decode_work and stats.prefill_s and stats.decode_s):
        return None
    return Speed(columns / stats.prefill_s, stats.decode_work / stats.decode_s, date.today().isoformat())


def read_speed(
    model: str, device: str, dtype: str, engine: str, environ: Mapping[str, str] = os.environ
) -> Speed | None:
    """The last speed of this model on this device in this dtype, with this engine."""
    try:
        speed = Speed(**read_kept(FILE, environ)[_key(model, device, dtype, engine)])
        return speed if min(speed.prefill_per_s, speed.decode_per_s) > 0 else None
    except (KeyError, TypeError):
        return None


def write_speed(
    speed: Speed, model: str, device: str, dtype: str, engine: str, environ: Mapping[str, str] = os.environ
) -> None:
    """Remembers a speed, in place of the last one of its kind."""
    keep(FILE, {_key(model, device, dtype, engine): asdict(speed)}, environ)


def kept_rows(model: str, device: str, dtype: str, environ: Mapping[str, str] = os.environ) -> int | None:
    """How many rows in slots `bench` found best for this model on this device in this dtype."""
    try:
        rows = Settings(**_part(SETTINGS, environ)[_key(model, device, dtype)]).rows
        return rows if isinstance(rows, int) and rows > 0 else None
    except (KeyError, TypeError):
        return None


def write_settings(
    settings: Settings, model: str, device: str, dtype: str, environ: Mapping[str, str] = os.environ
) -> None:
    """Remembers settings, in place of the last ones of their kind."""
    keep(FILE, {SETTINGS: _part(SETTINGS, environ) | {_key(model, device, dtype): asdict(settings)}}, environ)


def read_gain(device: str, environ: Mapping[str, str] = os.environ) -> KeptGain | None:
    """What the last `bench` on this device found of bfloat16."""
    try:
        gain = KeptGain(**_part(GAINS, environ)[device])
        return gain if gain.times > 0 else None
    except (KeyError, TypeError):
        return None


def write_gain(gain: KeptGain, device: str, environ: Mapping[str, str] = os.environ) -> None:
    """Remembers bfloat16's gain, in place of the last one."""
    keep(FILE, {GAINS: _part(GAINS, environ) | {device: asdict(gain)}}, environ)


def _part(name: str, environ: Mapping[str, str]) -> dict[str, Any]:
    part = read_kept(FILE, environ).get(name)
    return part if isinstance(part, dict) else {}


def _key(*words: str) -> str:
    return " ".join(words)
