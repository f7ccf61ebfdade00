"""Engines: sequences are pushed in, each step is one forward, and finished sequences come out.

An engine knows nothing of files, windows or signals; the loop over it is the pipeline's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from batchgen.engines.choice import KINDS, choose_engine
from batchgen.engines.protocol import Engine, finish_all
from batchgen.errors import ModelError
from batchgen.machine.limits import Bound, PeakMeter, available_bytes, memory_bounds
from batchgen.machine.speeds import kept_rows
from batchgen.planning.backoff import Backoff
from batchgen.planning.kinds import EngineKind
from batchgen.planning.memory import BatchLimits, budget_bytes
from batchgen.records import EngineOptions, Sequence

if TYPE_CHECKING:
    import torch

    from batchgen.engines.reference.rules import BatchRule
    from batchgen.engines.sampling.sampler import OnLogits, RecomputeLogits, Sampler
    from batchgen.model import Model

__all__ = ["Engine", "choose_engine", "finish_all", "make_engine"]


def make_engine(
    model: Model,
    options: EngineOptions | None = None,
    *,
    num_beams: int = 1,
    is_owned: bool = False,
    on_logits: OnLogits = lambda logits, sequences: None,
    reuse_blocks: Callable[[bool], None] = lambda is_plenty: None,
    say: Callable[[str], None] = lambda line: None,
) -> Engine:
    """The engine that `options` name for a model; `auto` takes the fastest that fits it.

    Near ties are decided again (`options.exact`) in float32 only: 16 bits are too coarse for it. A model that
    `is_owned` by this engine alone lets its weights go where the engine keeps them in another layout. `say` is told
    each time that memory ran out, `on_logits` the logits of each step before anything is decided.
    """
    from batchgen.engines.sampling.sampler import Sampler

    options = options or EngineOptions()
    own = _slots(model, options, num_beams, is_owned, say)
    backoff = Backoff(
        _limits(model, options, KINDS["continuous" if own else "reference"]),
        budget=lambda: _room_bytes(model, options),
        wall=lambda: _wall_bytes(memory_bounds(model.device, options.memory)),
        reuse_blocks=reuse_blocks,
        meter=PeakMeter(model.device),
        say=say,
    )
    sampler = Sampler(model.checkpoint.eos_token_ids, model.checkpoint.codec, on_logits=on_logits)
    is_exact = options.exact and model.dtype_name == "float32"
    if own is None:
        return _reference(model, sampler, backoff, is_exact, say)
    sampler.recompute = model.logits_alone if is_exact else None
    return _continuous(own, sampler, backoff, options)


def _continuous(own: Model, sampler: Sampler, backoff: Backoff, options: EngineOptions) -> Engine:
    from batchgen.engines.continuous.engine import ContinuousEngine
    from batchgen.engines.continuous.slot_model import SlotModel

    return ContinuousEngine(SlotModel(own), backoff.limits, sampler, share=options.share_prefixes, backoff=backoff)


def _reference(model: Model, sampler: Sampler, backoff: Backoff, is_exact: bool, say: Callable[[str], None]) -> Engine:
    from batchgen.engines.reference.engine import ReferenceEngine
    from batchgen.engines.trial.ladder import find_rule

    rule, reason = find_rule(model)
    if reason:
        say(f"{model.checkpoint.name} runs {reason}")
    sampler.recompute = _alone_by(rule, model) if is_exact else None
    return ReferenceEngine(model, backoff.limits, sampler, rule=rule, backoff=backoff)


def _alone_by(rule: BatchRule, model: Model) -> RecomputeLogits:
    """What decides near ties; nothing does for a row whose steps are not what a forward of it all would compute."""

    def recompute(sequence: Sequence) -> torch.Tensor | None:
        return None if rule.crosses(sequence) else model.logits_alone(sequence)

    return recompute


def _slots(
    model: Model, options: EngineOptions, num_beams: int, is_owned: bool, say: Callable[[str], None]
) -> Model | None:
    """The model on the slots' own network; None, after one line that says why, where it runs without."""
    from batchgen.engines.continuous.network import slot_network

    def has_room(num_bytes: int) -> bool:
        return num_bytes <= _room_bytes(model, options)

    name, reason = choose_engine(options.engine, model.checkpoint.outline, num_beams, _room_bytes(model, options))
    own: Model | None = None
    if name == "continuous":
        own, reason = slot_network(model, is_owned=is_owned, has_room=has_room)
        if own is None and options.engine == "continuous":
            raise ModelError(f"--engine continuous does not run {model.checkpoint.name}: {reason}; use --engine auto")
    if reason and num_beams == 1:
        say(f"engine reference, the slower one: {reason}")
    return own


def _limits(model: Model, options: EngineOptions, kind: EngineKind) -> BatchLimits:
    from batchgen.model.footprint import footprint_of

    best_rows = kept_rows(model.checkpoint.name, str(model.device), model.dtype_name) if kind.takes_best_rows else None
    footprint = footprint_of(model.checkpoint, model.dtype_name)
    available = available_bytes(model.device, options.memory)
    return kind.limits(footprint, model.device.type, available, options.batch_size, best_rows)


def _room_bytes(model: Model, options: EngineOptions) -> int:
    """What rows may take now."""
    return budget_bytes(available_bytes(model.device, options.memory))


def _wall_bytes(bounds: list[Bound]) -> int | None:
    """What is left under the tightest bound that kills, or that the user has set."""
    walls = (bound.available_bytes for bound in bounds if bound.kills or bound.name.startswith("--memory"))
    return min(walls, default=None)
