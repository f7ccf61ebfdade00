"""How a model runs and how much memory its rows take, from its config and earlier trials: reads no weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchgen.doctor.facts import ModelFacts, or_else
from batchgen.engines import choose_engine
from batchgen.engines.reference.rules import LENGTHS, Mixing
from batchgen.engines.trial.ladder import kept_bits, kept_rule, kept_slots
from batchgen.model.footprint import footprint_of
from batchgen.model.layer_rules import layer_rules
from batchgen.model.weights import choose_device, choose_dtype
from batchgen.records import bits_text

if TYPE_CHECKING:
    import torch

    from batchgen.model import Checkpoint


@dataclass(frozen=True, slots=True)
class Unloaded:
    """A model as a run would load it."""

    checkpoint: Checkpoint
    device: torch.device
    dtype_name: str


@or_else(None)  # problems with torch or the device are reported elsewhere
def examine_model(checkpoint: Checkpoint, device: str) -> ModelFacts | None:
    """How a run with the default options would run the model."""
    on = choose_device(device)
    model = Unloaded(checkpoint, on, choose_dtype("auto", on.type, checkpoint.outline))
    footprint = footprint_of(checkpoint, model.dtype_name)
    engine, reason, rows = _way(model)
    rules = layer_rules(checkpoint.outline)
    return ModelFacts(
        checkpoint.name,
        family=checkpoint.outline.model_type,
        engine=engine,
        why_no_slots=reason or None,
        rows_of_a_batch=rows,
        bits=kept_bits(model) if engine == "continuous" else bits_text(f"engine {engine}"),
        dtype=model.dtype_name,
        cache_bytes_per_token=round(footprint.cache_column),
        state_bytes_per_row=round(footprint.cache_row),
        num_layers=len(rules),
        windows=tuple(Counter(rule.reach for rule in rules if rule.attends).items()),
        context_length=checkpoint.n_positions,
    )


def _way(model: Unloaded) -> tuple[str, str, str | None]:
    """The engine, why it does not use slots, and which rows may share a batch (None if no run has tried it)."""
    engine, reason = choose_engine("auto", model.checkpoint.outline)
    if engine == "continuous":
        are_right, reason = kept_slots(model) or (None, "")
        if are_right is not False:
            return engine, reason, LENGTHS[Mixing.padded] if are_right else None
        engine = "reference"
    rule = kept_rule(model)
    return engine, reason, rule.lengths if rule else None
