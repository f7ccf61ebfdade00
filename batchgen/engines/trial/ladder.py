"""The ladder: the fastest correct way to run a model, down to one row at a time, which is always correct."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from batchgen.engines.continuous.memory import SlotMemory
from batchgen.engines.reference.memory import BatchMemory
from batchgen.engines.reference.rules import BatchRule, Mixing
from batchgen.engines.trial.verdicts import keep_verdict, read_verdict
from batchgen.errors import ModelError, first_line, is_out_of_memory
from batchgen.model.long_rope import crosses, short_limit
from batchgen.planning.memory import BatchLimits
from batchgen.records import Sequence, bits_text

if TYPE_CHECKING:
    import torch

    from batchgen.engines.continuous.engine import ContinuousEngine
    from batchgen.engines.protocol import Engine
    from batchgen.engines.trial.rows import Fault, Watched
    from batchgen.engines.trial.verdicts import Tried
    from batchgen.model import Model

RIGHT = "right"
OTHER_BITS = "in a trial, logits had other bits in another batch"
UNLIKE_ALONE = "in larger batches its rows get other logits than alone"
PLENTY_BYTES = 1 << 60


def why_slots_fail(model: Model, own: Model) -> str | None:
    """Return what is wrong with slots on the network `own`; None if rows get what the model gives them alone."""
    from batchgen.engines.continuous.linear import kernels_of

    engine = f"continuous, {kernels_of(own.network)}"
    verdict = read_verdict(model, engine)
    if verdict is None:
        fault = _fault_of_slots(model, own)
        verdict = f"in a trial, slots {fault.text}" if fault else RIGHT
        if fault is None or fault.lasts:
            keep_verdict(model, engine, verdict)
    return None if verdict == RIGHT else verdict


def find_bits(own: Model, problem: str | None) -> str:
    """Return what is guaranteed about rows' bits in slots on the network `own`: one at a time must equal all together.

    A known `problem` makes a trial unnecessary.
    """
    from batchgen.engines.continuous.linear import kernels_of
    from batchgen.engines.trial.rows import have_same_bits

    engine = f"bits, {kernels_of(own.network)}"
    verdict = read_verdict(own, engine)
    if verdict is None:
        if problem is None:
            rows = _rows_for(own)
            together, alone = _steps_in_slots(own, rows, len(rows)), _steps_in_slots(own, rows[::-1], 1)
            problem = None if have_same_bits(together, alone) else OTHER_BITS
        verdict = bits_text(problem)
        keep_verdict(own, engine, verdict)
    return verdict


def kept_bits(model: Tried) -> str | None:
    """Return what an earlier run found about rows' bits, with the best kernels; None if there was none."""
    from batchgen.engines.continuous.linear import KERNELS

    return next(filter(None, (read_verdict(model, f"bits, {kernels}") for kernels in KERNELS)), None)


def kept_slots(model: Tried) -> tuple[bool, str] | None:
    """Whether slots were right in an earlier trial, with any kernels, and otherwise why not; None without a trial."""
    from batchgen.engines.continuous.linear import KERNELS

    verdicts = list(filter(None, (read_verdict(model, f"continuous, {kernels}") for kernels in KERNELS)))
    if RIGHT in verdicts:
        return True, ""
    return (False, verdicts[-1]) if verdicts else None


def are_known_wrong(model: Tried, kernels: str) -> bool:
    """Whether slots with these kernels failed in an earlier trial."""
    return read_verdict(model, f"continuous, {kernels}") not in (None, RIGHT)


def kept_rule(model: Tried) -> BatchRule | None:
    """Return the rule that an earlier trial of `reference` found; None if there was no trial."""
    verdict = read_verdict(model, "reference")
    return next((rule for rule in _rungs(model) if rule.mixing == verdict), None)


def find_rule(model: Model, begun: str | None = None) -> tuple[BatchRule, str]:
    """Return how rows may share a batch of `reference`, and in a few words what is wrong with faster ways, if anything.

    A run that was `begun` in a slower way continues in that way; in a faster way only if that is right here.
    """
    verdict, why = read_verdict(model, "reference"), read_verdict(model, "reference, why") or UNLIKE_ALONE
    if verdict not in set(Mixing):
        verdict, why = _try_rungs(model)
    rungs = {rule.mixing: rule for rule in _rungs(model)}
    found = Mixing(verdict)
    reason = f"{found}: {why}" if found is not Mixing.padded else ""
    order = list(rungs)
    slower = [mixing for mixing in order[order.index(found) :] if mixing == begun]
    return rungs[slower[0] if slower else found], reason


def _rungs(model: Tried) -> Iterator[BatchRule]:
    checkpoint = model.checkpoint
    pad, limit = checkpoint.pad_token_id, short_limit(checkpoint.config)
    own = getattr(checkpoint.config.get_text_config(), "pad_token_id", None)
    own_pad = own if isinstance(own, int) and 0 <= own < checkpoint.vocab_size else pad
    yield BatchRule(Mixing.padded, pad, limit)
    if own_pad != pad:
        yield BatchRule(Mixing.own_pad, own_pad, limit)
    yield BatchRule(Mixing.equal_lengths, pad, limit)
    yield BatchRule(Mixing.alone, pad, limit)


def _try_rungs(model: Model) -> tuple[Mixing, str]:
    """Return the first way that gives correct results, and what is wrong with the fastest."""
    from batchgen.engines.trial.rows import OTHER_LOGITS

    faults: list[Fault] = []
    for rule in _rungs(model):
        if fault := _fault_of_rule(model, rule):
            faults.append(fault)
        else:
            break
    says_why = faults and faults[0] != OTHER_LOGITS
    why = f"in a trial, larger batches {faults[0].text}" if says_why else UNLIKE_ALONE
    if all(fault.lasts for fault in faults):
        keep_verdict(model, "reference", rule.mixing)
        keep_verdict(model, "reference, why", why)
    return rule.mixing, why


def _fault_of_rule(model: Model, rule: BatchRule) -> Fault | None:
    from batchgen.engines.reference.engine import ReferenceEngine
    from batchgen.engines.sampling.sampler import Sampler
    from batchgen.engines.trial.rows import Watched
    from batchgen.model.footprint import footprint_of

    if rule.mixing is Mixing.alone:
        return None
    rows, watched = _rows_for(model, rule.short_limit), Watched()
    limits = BatchLimits(BatchMemory(footprint_of(model.checkpoint, model.dtype_name)), PLENTY_BYTES, 64, len(rows))
    sampler = Sampler([], on_logits=watched.on_logits)
    return _fault(ReferenceEngine(model, limits, sampler, rule=rule), watched, rows, model)


def _fault_of_slots(model: Model, own: Model) -> Fault | None:
    from batchgen.engines.trial.rows import Watched

    rows, watched = _rows_for(model, short_limit(model.checkpoint.config)), Watched()
    return _fault(_slots_on(own, len(rows), watched), watched, rows, model)


def _steps_in_slots(own: Model, rows: list[Sequence], at_once: int) -> dict[int, list[torch.Tensor]]:
    """Return the logits `[V]` of each row's steps, with digests of its states: 16 bits of logits hide most bits."""
    from batchgen.engines.protocol import finish_all
    from batchgen.engines.trial.rows import Watched

    watched = Watched()
    again = [Sequence(row.request, 0, list(row.input_ids)) for row in rows]
    engine = _slots_on(own, at_once, watched)
    if states := engine.slot_model.cache.states:
        watched.digests = states.digests
    for _ in finish_all(engine, again):
        pass
    return watched.steps


def _slots_on(own: Model, num_rows: int, watched: Watched) -> ContinuousEngine:
    from batchgen.engines.continuous.engine import ContinuousEngine
    from batchgen.engines.continuous.slot_model import SlotModel
    from batchgen.engines.sampling.sampler import Sampler
    from batchgen.model.footprint import footprint_of

    limits = BatchLimits(SlotMemory(footprint_of(own.checkpoint, own.dtype_name)), PLENTY_BYTES, 64, num_rows)
    sampler = Sampler([], on_logits=watched.on_logits)
    return ContinuousEngine(SlotModel(own), limits, sampler)


def _rows_for(model: Model, limit: int | None = None) -> list[Sequence]:
    """Return the trial's rows, without those that cross a limit of LongRoPE: one forward of them differs from steps."""
    from batchgen.engines.trial.rows import trial_rows

    return [row for row in trial_rows(model.checkpoint) if not crosses(row, limit)]


def _fault(engine: Engine, watched: Watched, rows: list[Sequence], model: Model) -> Fault | None:
    """Like `find_fault`, but an exception of the engine is also a fault, and so is having no rows to try."""
    from batchgen.engines.trial.rows import Fault, find_fault

    if not rows:
        return Fault("could not be tried, since its tokenizer and its vocabulary do not fit each other")
    try:
        return find_fault(engine, watched, rows, model)
    except Exception as error:  # noqa: BLE001 - nearly any; the line says which one
        cause = error.__cause__ if isinstance(error, ModelError) and error.__cause__ else error
        return Fault(f"failed: {first_line(cause)}", lasts=not is_out_of_memory(cause))
