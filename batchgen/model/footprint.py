"""Predict the memory of a model and its rows before anything is loaded; predictions are kept between runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from hashlib import blake2b
from importlib.metadata import version
from typing import TYPE_CHECKING

from batchgen.machine.kept import keep, read_kept
from batchgen.model.layer_rules import scans_columns
from batchgen.model.shape import Footprint, ModelShape

if TYPE_CHECKING:
    from batchgen.model.checkpoint import Checkpoint

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FILE, OVERRUNS = "footprints", "overruns"  # results of trial forwards, and how far runs exceeded them
PROBES = 5  # version of the probe and the formulas: increase it when their numbers change
MOST_KEPT = 200
MOST_OVERRUN = 4.0  # more points to a bug elsewhere, and would leave no room for rows


def footprint_of(checkpoint: Checkpoint, dtype: str, engine: str = "", *, is_exact: bool = True) -> Footprint:
    """Bytes that a model takes in `dtype`, from GPT-2's formulas or from trial forwards; needs no weights.

    With `engine`, includes the overrun that its earlier runs recorded. `is_exact`: rows get the same bits in any batch.
    """
    alone = is_exact and scans_columns(checkpoint.outline)
    found = _probed(checkpoint, dtype)
    return replace(found, prefills_alone=alone, overrun=_kept_overrun(checkpoint, dtype, engine))


def overrun_keeper(checkpoint: Checkpoint, dtype: str, engine: str) -> Callable[[float], None]:
    """Return a function that records by what factor rows exceeded the prediction, for the next run's plan."""

    def keep_overrun(times: float) -> None:
        before = _kept_overrun(checkpoint, dtype, engine)
        keep(OVERRUNS, {_overrun_key(checkpoint, dtype, engine): round(min(MOST_OVERRUN, before * times), 3)})

    return keep_overrun


def _kept_overrun(checkpoint: Checkpoint, dtype: str, engine: str) -> float:
    kept = read_kept(OVERRUNS)
    times = kept.get(_overrun_key(checkpoint, dtype, engine)) if kept and engine else None
    return times if isinstance(times, float) and 1 <= times <= MOST_OVERRUN else 1.0


def _probed(checkpoint: Checkpoint, dtype: str) -> Footprint:
    if checkpoint.outline.model_type == "gpt2":
        return Footprint.of_shape(ModelShape.from_config(checkpoint.outline), ELEMENT_BYTES[dtype], "sdpa")
    key = _key(checkpoint.config.to_json_string(use_diff=False), dtype)
    kept = read_kept(FILE)
    if (footprint := _read(kept.get(key))) is None:
        import torch

        from batchgen.model.probe import probe_footprint

        as_dtype: torch.dtype = getattr(torch, dtype)
        footprint = probe_footprint(checkpoint.config, as_dtype)
        if len(kept) < MOST_KEPT:
            keep(FILE, {key: asdict(footprint)})
    return footprint


def _read(facts: object) -> Footprint | None:
    """A footprint as it was stored; None if it cannot be read."""
    try:
        footprint = Footprint(**facts)  # type: ignore[arg-type]
        return replace(
            footprint,
            prefill=tuple((column, pair) for column, pair in footprint.prefill),
            local=tuple((window, column) for window, column in footprint.local),
        )
    except TypeError:
        return None


def _overrun_key(checkpoint: Checkpoint, dtype: str, engine: str) -> str:
    """The key of a recorded overrun. It avoids the complete config, which takes seconds to read."""
    outline = checkpoint.outline
    return _key(checkpoint.name, outline.model_type, repr(ModelShape.from_config(outline)), dtype, engine)


def _key(*words: str) -> str:
    """A hash of everything the numbers depend on, including library versions."""
    depends_on = [PROBES, *words, *map(version, ("torch", "transformers"))]
    return blake2b(json.dumps(depends_on).encode(), digest_size=16).hexdigest()
