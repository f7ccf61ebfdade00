"""Engines: take sequences, run one forward per step, and return finished sequences.

An engine knows nothing of files, windows or signals; the pipeline runs the loop over it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from batchgen.engines.choice import choose_engine
from batchgen.engines.compiled.support import num_compiled
from batchgen.engines.protocol import Engine, finish_all
from batchgen.engines.ready import Ready, ReadyToScore, get_ready, get_ready_to_score, room_bytes, why_different
from batchgen.machine.limits import Bound, memory_bounds
from batchgen.machine.meter import PeakMeter
from batchgen.planning.backoff import Backoff
from batchgen.records import BATCH_INVARIANT, EngineChoice, EngineOptions

if TYPE_CHECKING:
    from batchgen.engines.reference.rules import BatchRule
    from batchgen.engines.sampling.sampler import OnLogits, Sampler
    from batchgen.model import Model

__all__ = ["Agree", "Engine", "choose_engine", "finish_all", "make_engine", "make_scoring_engine", "quantized"]

# Gets the engine choice of this worker and returns that of the run, which another worker may have made first.
Agree = Callable[[EngineChoice], EngineChoice]


def make_engine(
    model: Model,
    options: EngineOptions | None = None,
    *,
    num_beams: int = 1,
    is_owned: bool = False,
    begun: EngineChoice | None = None,
    agree: Agree = lambda choice: choice,
    on_logits: OnLogits = lambda logits, sequences: None,
    reuse_blocks: Callable[[bool], None] = lambda is_plenty: None,
    say: Callable[[str], None] = lambda line: None,
) -> Engine:
    """Return the engine that `options` select for a model; `auto` selects the fastest one that supports it.

    A run that was `begun` with other kernels or rules continues with those; if it cannot, `say` gets a line about it.
    Near ties are decided again (`options.exact`) in float32 only: 16 bits are too coarse for it. If this engine alone
    owns the model (`is_owned`), the model's weights are freed where the engine keeps them in another layout. `say` also
    gets a line each time memory runs out. `on_logits` gets the logits of each step before any decision.
    """
    from batchgen.engines.sampling.sampler import Sampler

    options = options or EngineOptions()
    is_exact = options.is_exact(model.dtype_name)
    ready = get_ready(model, options, num_beams, is_owned, begun, say)
    agreed = agree(ready.choice)
    if agreed not in (ready.choice, begun):  # another worker was faster
        ready = get_ready(model, options, num_beams, is_owned, agreed, say)
    if line := why_different(agreed, ready.choice, model.dtype_name, is_exact=is_exact):
        say(line)
    backoff = _backoff(model, options, ready, reuse_blocks, say)
    sampler = Sampler(model.checkpoint.eos_token_ids, model.checkpoint.codec, on_logits=on_logits)
    sampler.recompute = model.logits_alone if is_exact else None
    if ready.rule:
        return _reference(model, sampler, backoff, ready.rule)
    return _continuous(ready, sampler, backoff, options)


def quantized(model: Model, options: EngineOptions) -> Model:
    """Return the model with the linear layers that `options.quantize` selects, to compute logits without an engine.

    Raises `UsageError` if it is not supported here.
    """
    from batchgen.engines.continuous.quantized import int8_kernels, quantize_network
    from batchgen.engines.int8.support import check_int8

    check_int8(options, model.device.type, model.checkpoint.outline)
    own = model.on_same_weights()
    quantize_network(model, own.network, None, int8_kernels(model))
    return own


def make_scoring_engine(
    model: Model,
    options: EngineOptions | None = None,
    *,
    is_owned: bool = False,
    begun: EngineChoice | None = None,
    agree: Agree = lambda choice: choice,
    reuse_blocks: Callable[[bool], None] = lambda is_plenty: None,
    say: Callable[[str], None] = lambda line: None,
) -> Engine:
    """Return the engine that scores rows; the arguments mean the same as in `make_engine`."""
    from batchgen.engines.scoring.engine import ScoringEngine

    options = options or EngineOptions()
    ready = get_ready_to_score(model, options, is_owned, begun)
    agreed = agree(ready.choice)
    if agreed not in (ready.choice, begun):  # another worker was faster
        ready = get_ready_to_score(model, options, is_owned, agreed)
    now = replace(ready.choice, rows=agreed.rows)  # how many rows share a forward does not change scores
    if line := why_different(agreed, now, model.dtype_name, is_exact=False):
        say(line)
    if not ready.network.is_split:
        say(f"{model.checkpoint.name} scores texts one at a time, which is slower: its logits differ in batches")
    backoff = _backoff(model, options, ready, reuse_blocks, say)
    return ScoringEngine(model, ready.network, backoff, share=options.share_prefixes)


def _backoff(
    model: Model,
    options: EngineOptions,
    ready: Ready | ReadyToScore,
    reuse_blocks: Callable[[bool], None],
    say: Callable[[str], None],
) -> Backoff:
    from batchgen.model.footprint import overrun_keeper

    model.read_in()
    return Backoff(
        ready.limits,
        budget=lambda: room_bytes(model, options),
        wall=lambda: _wall_bytes(memory_bounds(model.device, options.memory)),
        reuse_blocks=reuse_blocks,
        meter=PeakMeter(model.device, others=num_compiled),
        say=say,
        keep_overrun=overrun_keeper(model.checkpoint, model.dtype_name, ready.choice.engine),
    )


def _continuous(ready: Ready, sampler: Sampler, backoff: Backoff, options: EngineOptions) -> Engine:
    from batchgen.engines.continuous.engine import ContinuousEngine
    from batchgen.engines.continuous.slot_model import SlotModel

    assert ready.own
    return ContinuousEngine(
        SlotModel(ready.own),
        backoff.limits,
        sampler,
        share=options.share_prefixes,
        # Where a step's size can change a token, lookup would change it too.
        lookup=options.prompt_lookup and (ready.choice.bits == BATCH_INVARIANT or sampler.recompute is not None),
        backoff=backoff,
    )


def _reference(model: Model, sampler: Sampler, backoff: Backoff, rule: BatchRule) -> Engine:
    from batchgen.engines.reference.engine import ReferenceEngine

    return ReferenceEngine(model, backoff.limits, sampler, rule=rule, backoff=backoff)


def _wall_bytes(bounds: list[Bound]) -> int | None:
    """Return the bytes left under the tightest bound that kills the process or that the user set; None without one."""
    walls = (bound.available_bytes for bound in bounds if bound.kills or bound.name.startswith("--memory"))
    return min(walls, default=None)
