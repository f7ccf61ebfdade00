"""The ladder: from the fastest way to run a model that holds on it, down to one row at a time, which always does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from batchgen.engines.continuous.memory import SlotMemory
from batchgen.engines.reference.memory import BatchMemory
from batchgen.engines.reference.rules import BatchRule, Mixing, short_limit
from batchgen.engines.trial.verdicts import keep_verdict, read_verdict
from batchgen.model.layer_rules import layer_rules
from batchgen.planning.memory import BatchLimits
from batchgen.records import Sequence, bits_text

if TYPE_CHECKING:
    import torch

    from batchgen.engines.protocol import Engine
    from batchgen.engines.trial.rows import Watched
    from batchgen.engines.trial.verdicts import Tried
    from batchgen.model import Model

RIGHT, WRONG = "right", "wrong"
OTHER_BITS = "in a trial, logits had other bits in another batch"
STATES_IN_16_BITS = "16 bits hide what order a state is summed in"
NO_SLOTS = "in a trial, slots gave other logits than a plain forward pass"
PLENTY_BYTES = 1 << 60


def slots_hold(model: Model, own: Model) -> bool:
    """Whether rows in slots on the network `own` get what the model gives them alone."""
    from batchgen.engines.continuous.linear import kernels_of

    engine = f"continuous, {kernels_of(own.network)}"
    verdict = read_verdict(model, engine)
    if verdict is None:
        verdict = RIGHT if _stray_of_slots(model, own) <= 1 else WRONG
        keep_verdict(model, engine, verdict)
    return verdict == RIGHT


def find_bits(own: Model, problem: str | None) -> str:
    """What is promised of rows' bits in slots on the network `own`: one at a time they must be those of all together.

    A `problem` that is known already needs no trial.
    """
    from batchgen.engines.continuous.linear import kernels_of
    from batchgen.engines.trial.rows import have_same_bits

    engine = f"bits, {kernels_of(own.network)}"
    verdict = read_verdict(own, engine)
    if verdict is None:
        if any(rule.num_states for rule in layer_rules(own.checkpoint.config)) and own.dtype_name != "float32":
            problem = problem or STATES_IN_16_BITS
        if problem is None:
            rows = _rows_within(own, None)
            together, alone = _steps_in_slots(own, rows, len(rows)), _steps_in_slots(own, rows[::-1], 1)
            problem = None if have_same_bits(together, alone) else OTHER_BITS
        verdict = bits_text(problem)
        keep_verdict(own, engine, verdict)
    return verdict


def kept_bits(model: Tried) -> str | None:
    """What was found of rows' bits in an earlier run, with the best kernels; None where there was none."""
    from batchgen.engines.continuous.linear import KERNELS

    return next(filter(None, (read_verdict(model, f"bits, {kernels}") for kernels in KERNELS)), None)


def kept_slots(model: Tried) -> bool | None:
    """Whether slots were right in an earlier trial, with any kernels; None where there was none."""
    from batchgen.engines.continuous.linear import KERNELS

    verdicts = {read_verdict(model, f"continuous, {kernels}") for kernels in KERNELS}
    return RIGHT in verdicts if verdicts & {RIGHT, WRONG} else None


def kept_rule(model: Tried) -> BatchRule | None:
    """The rule that an earlier trial of `reference` found; None where there was none."""
    verdict = read_verdict(model, "reference")
    return next((rule for rule in _rungs(model) if rule.mixing == verdict), None)


def find_rule(model: Model, begun: str | None = None) -> tuple[BatchRule, str]:
    """How rows may share a batch of `reference`; and in a few words what other ways do to them, if any is wrong.

    A run that was `begun` in a slower way goes on in that; in a quicker one only where that is right here.
    """
    verdict = read_verdict(model, "reference")
    if verdict not in set(Mixing):
        verdict = next((rule.mixing for rule in _rungs(model) if _holds(model, rule)), Mixing.alone)
        keep_verdict(model, "reference", verdict)
    rungs = {rule.mixing: rule for rule in _rungs(model)}
    found = Mixing(verdict)
    reason = f"{found}: in larger batches its rows get other logits than alone" if found is not Mixing.padded else ""
    order = list(rungs)
    slower = [mixing for mixing in order[order.index(found) :] if mixing == begun]
    return rungs[slower[0] if slower else found], reason


def _rungs(model: Tried) -> Iterator[BatchRule]:
    checkpoint = model.checkpoint
    pad, limit = checkpoint.pad_token_id, short_limit(checkpoint.config)
    own = getattr(checkpoint.config.get_text_config(), "pad_token_id", None)
    own_pad = own if isinstance(own, int) and 0 <= own < checkpoint.vocab_size else pad
    yield BatchRule(Mixing.padded, pad, limit)
    yield BatchRule(Mixing.own_pad, own_pad, limit)
    yield BatchRule(Mixing.equal_lengths, pad, limit)
    yield BatchRule(Mixing.alone, pad, limit)


def _holds(model: Model, rule: BatchRule) -> bool:
    from batchgen.engines.reference.engine import ReferenceEngine
    from batchgen.engines.sampling.sampler import Sampler
    from batchgen.engines.trial.rows import Watched
    from batchgen.model.footprint import footprint_of

    if rule.mixing is Mixing.alone:
        return True
    if rule.mixing is Mixing.own_pad and rule.pad_token_id == model.checkpoint.pad_token_id:
        return False  # the rung above
    rows, watched = _rows_within(model, rule.short_limit), Watched()
    limits = BatchLimits(BatchMemory(footprint_of(model.checkpoint, model.dtype_name)), PLENTY_BYTES, 64, len(rows))
    sampler = Sampler([], on_logits=watched.on_logits)
    return _stray(ReferenceEngine(model, limits, sampler, rule=rule), watched, rows, model) <= 1


def _stray_of_slots(model: Model, own: Model) -> float:
    from batchgen.engines.trial.rows import Watched

    rows, watched = _rows_within(model, None), Watched()
    return _stray(_slots_on(own, len(rows), watched), watched, rows, model)


def _steps_in_slots(own: Model, rows: list[Sequence], at_once: int) -> dict[int, list[torch.Tensor]]:
    """Of each row the logits `[V]` of its steps."""
    from batchgen.engines.protocol import finish_all
    from batchgen.engines.trial.rows import Watched

    watched = Watched()
    again = [Sequence(row.request, 0, list(row.input_ids)) for row in rows]
    for _ in finish_all(_slots_on(own, at_once, watched), again):
        pass
    return watched.steps


def _slots_on(own: Model, num_rows: int, watched: Watched) -> Engine:
    from batchgen.engines.continuous.engine import ContinuousEngine
    from batchgen.engines.continuous.slot_model import SlotModel
    from batchgen.engines.sampling.sampler import Sampler
    from batchgen.model.footprint import footprint_of

    limits = BatchLimits(SlotMemory(footprint_of(own.checkpoint, own.dtype_name)), PLENTY_BYTES, 64, num_rows)
    sampler = Sampler([], on_logits=watched.on_logits)
    return ContinuousEngine(SlotModel(own), limits, sampler)


def _rows_within(model: Model, limit: int | None) -> list[Sequence]:
    """The trial's rows; of those that grow over a limit of the model what they do there is their family's affair."""
    from batchgen.engines.trial.rows import trial_rows

    rows = trial_rows(model.checkpoint)
    return [row for row in rows if limit is None or row.num_prompt_tokens + row.sampling.max_new_tokens <= limit]


def _stray(engine: Engine, watched: Watched, rows: list[Sequence], model: Model) -> float:
    """As `rows.stray`; infinite for an engine that an architecture trips over, or where there is nothing to try."""
    from batchgen.engines.trial.rows import stray

    if rows:
        with suppress(Exception):
            return stray(engine, watched, rows, model)
    return float("inf")
