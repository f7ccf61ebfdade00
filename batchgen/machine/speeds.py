"""What earlier runs on this machine measured: speeds, so that `plan` can estimate the next run's time, and settings.

One small JSON file in the user's cache folder. Only runs that write a file anyway (`-o`) record a speed, and `bench`,
which also records its settings. Failing to read or write the file is not an error.
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

# A shorter run spends its time on what happens only once.
LEAST_TELLING_S = 2.0
# Keys next to those of the speeds, which have four words.
SETTINGS, GAINS = "settings", "gains"


@dataclass(frozen=True, slots=True)
class Speed:
    """The speed of a run: padded columns per second in prefills, `RunStats.decode_work` per second in steps."""

    prefill_per_s: float
    decode_per_s: float
    date: str

    def seconds(self, prefill_columns: int, decode_work: int) -> float:
        """Return the time for this much work."""
        return prefill_columns / self.prefill_per_s + decode_work / self.decode_per_s


@dataclass(frozen=True, slots=True)
class Settings:
    """What `bench` recommends: the fewest rows in slots that reach the best rate, in new tokens per second."""

    rows: int
    tokens_per_s: float
    date: str


@dataclass(frozen=True, slots=True)
class KeptGain:
    """What `bench` measured for bfloat16: its rate relative to float32, and the share of greedy tokens that differ."""

    model: str
    times: float
    differing_share: float | None
    date: str


def speed_of(stats: RunStats) -> Speed | None:
    """Return the speed of a run; None if it was too short to tell."""
    columns = stats.prompt_tokens + stats.pad_tokens
    busy_s = stats.prefill_s + stats.decode_s
    if busy_s < LEAST_TELLING_S or not (columns and stats.decode_work and stats.prefill_s and stats.decode_s):
        return None
    return Speed(columns / stats.prefill_s, stats.decode_work / stats.decode_s, date.today().isoformat())


def read_speed(
    model: str, device: str, dtype: str, engine: str, environ: Mapping[str, str] = os.environ
) -> Speed | None:
    """Return the last speed of this model on this device in this dtype with this engine; None if unknown."""
    try:
        speed = Speed(**read_kept(FILE, environ)[_key(model, device, dtype, engine)])
        return speed if min(speed.prefill_per_s, speed.decode_per_s) > 0 else None
    except (KeyError, TypeError):
        return None


def write_speed(
    speed: Speed, model: str, device: str, dtype: str, engine: str, environ: Mapping[str, str] = os.environ
) -> None:
    """Save a speed, replacing the last one for the same model, device, dtype and engine."""
    keep(FILE, {_key(model, device, dtype, engine): asdict(speed)}, environ)


def kept_rows(model: str, device: str, dtype: str, environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the rows in slots that `bench` found best for this model on this device in this dtype; None if unknown."""
    try:
        rows = Settings(**_part(SETTINGS, environ)[_key(model, device, dtype)]).rows
        return rows if isinstance(rows, int) and rows > 0 else None
    except (KeyError, TypeError):
        return None


def write_settings(
    settings: Settings, model: str, device: str, dtype: str, environ: Mapping[str, str] = os.environ
) -> None:
    """Save settings, replacing the last ones for the same model, device and dtype."""
    keep(FILE, {SETTINGS: _part(SETTINGS, environ) | {_key(model, device, dtype): asdict(settings)}}, environ)


def read_gain(device: str, environ: Mapping[str, str] = os.environ) -> KeptGain | None:
    """Return what the last `bench` on this device measured for bfloat16; None if unknown."""
    try:
        gain = KeptGain(**_part(GAINS, environ)[device])
        return gain if gain.times > 0 else None
    except (KeyError, TypeError):
        return None


def write_gain(gain: KeptGain, device: str, environ: Mapping[str, str] = os.environ) -> None:
    """Save the gain of bfloat16, replacing the last one on this device."""
    keep(FILE, {GAINS: _part(GAINS, environ) | {device: asdict(gain)}}, environ)


def _part(name: str, environ: Mapping[str, str]) -> dict[str, Any]:
    part = read_kept(FILE, environ).get(name)
    return part if isinstance(part, dict) else {}


def _key(*words: str) -> str:
    return " ".join(words)
