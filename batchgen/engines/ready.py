"""What an engine is made of: chosen by rule, or as the run was started, before the first row.

Everything that may change how numbers round is in the `EngineChoice`; it is recorded, and the same for all workers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from batchgen.engines.choice import KINDS, choose_engine
from batchgen.engines.int8.support import ALL_INT8, ANY_INT8, check_int8, leave_out
from batchgen.errors import ModelError, OutputError, parameter
from batchgen.machine.limits import available_bytes, cpu_name
from batchgen.machine.speeds import kept_rows
from batchgen.planning.kinds import EngineKind
from batchgen.planning.memory import BatchLimits, budget_bytes
from batchgen.records import BATCH_INVARIANT, EngineChoice, EngineOptions, bits_text, precision_of

if TYPE_CHECKING:
    from batchgen.engines.reference.rules import BatchRule
    from batchgen.engines.scoring.network import ScoringNetwork
    from batchgen.model import Model

CONTINUOUS, REFERENCE, SCORING = "continuous", "reference", "scoring"
SLOTS = "slots"  # how rows share a step: each row in its own slot
TOGETHER, ALONE = "padded", "alone"  # how rows are scored
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Ready:
    """Everything that an engine is made of: either the slots' network, `own`, or the `rule` of `reference`."""

    choice: EngineChoice
    limits: BatchLimits
    own: Model | None = None
    rule: BatchRule | None = None


@dataclass(frozen=True, slots=True)
class ReadyToScore:
    """Everything that the scoring engine is made of."""

    choice: EngineChoice
    limits: BatchLimits
    network: ScoringNetwork


def refuse_other_engine(begun: EngineChoice | None, options: EngineOptions, dtype: str) -> None:
    """Raise `OutputError` if a run in 16 bits asks for another engine than the one it was started with."""
    if begun and options.engine not in ("auto", begun.engine) and dtype != "float32":
        raise OutputError(
            f"the run was started with engine {begun.engine}, and in {dtype} {options.engine} gives other tokens: "
            f"remove {parameter('engine')}, or start over with {parameter('overwrite=True')}"
        )


def get_ready(
    model: Model, options: EngineOptions, num_beams: int, is_owned: bool, begun: EngineChoice | None, say: Say
) -> Ready:
    """Choose the engine, and build the slots' network if it has slots; `begun` is the run's choice so far."""
    check_int8(options, model.device.type, model.checkpoint.outline, num_beams)
    own = _slots(model, options, num_beams, is_owned, begun, say)
    name = CONTINUOUS if own else REFERENCE
    before = begun if begun and begun.engine == name else None
    limits = _limits(model, options, KINDS[name], before)
    rows = options.batch_size or limits.most_rows
    if own:
        from batchgen.engines.continuous.linear import kernels_of
        from batchgen.engines.continuous.network import bits_of

        kernels = kernels_of(own.network)
        choice = EngineChoice(
            name, kernels, SLOTS, rows, _threads(model), options.share_prefixes, bits_of(own), _processor(model)
        )
        return Ready(choice, limits, own)
    from batchgen.engines.trial.ladder import find_rule

    rule, reason = find_rule(model, before.batching if before else None)
    if reason:
        say(f"{model.checkpoint.name} runs {reason}")
    bits = bits_text(f"engine {REFERENCE}")
    choice = EngineChoice(
        name, "plain", str(rule.mixing), rows, _threads(model), bits=bits, processor=_processor(model)
    )
    return Ready(choice, limits, rule=rule)


def get_ready_to_score(
    model: Model, options: EngineOptions, is_owned: bool, begun: EngineChoice | None
) -> ReadyToScore:
    """Build the network that scores rows, with the kernels of the run that was `begun`."""
    from batchgen.engines.continuous.quantized import int8_kernels
    from batchgen.engines.scoring.bits import find_bits
    from batchgen.engines.scoring.memory import ScoringMemory, most_rows
    from batchgen.engines.scoring.network import scoring_network
    from batchgen.model.footprint import footprint_of

    check_int8(options, model.device.type, model.checkpoint.outline, generates=False)
    room = room_bytes(model, options)
    kernels = begun.kernels if begun and begun.engine == SCORING else None
    kernels = int8_kernels(model, kernels) if options.quantize else kernels
    network = scoring_network(model, is_owned=is_owned, has_room=lambda num_bytes: num_bytes <= room, kernels=kernels)
    memory = ScoringMemory(footprint_of(model.checkpoint, model.dtype_name, SCORING))
    limits = BatchLimits(memory, room_bytes(model, options), most_rows(1, model.device.type), options.batch_size)
    batching, rows = TOGETHER if network.is_split else ALONE, options.batch_size or limits.most_rows
    choice = EngineChoice(
        SCORING,
        network.kernels,
        batching,
        rows,
        _threads(model),
        options.share_prefixes,
        find_bits(model, network),
        _processor(model),
    )
    return ReadyToScore(choice, limits, network)


def why_different(begun: EngineChoice, now: EngineChoice, dtype: str, *, is_exact: bool) -> str | None:
    """Return one line if a run continues with engine facts that may change its rows; None if they stay the same."""
    if begun.bits == now.bits == BATCH_INVARIANT:  # how many rows share a step changes no bits
        begun = replace(begun, rows=now.rows)
        if now.engine != SCORING:  # slots share pages of keys; scores after a shared prompt are different sums
            begun = replace(begun, share_prefixes=now.share_prefixes)
    changed = begun.differences(now)
    if is_exact:  # near ties are decided alone, so only another engine is worth reporting
        same = f"in {dtype} with near ties decided alone, its tokens are the same, and log-probabilities up to rounding"
        return f"the run was started with {changed[0]}: {same}" if begun.engine != now.engine else None
    if not changed:
        return None
    return f"the run was started with {'; '.join(changed)}: in {dtype} the remaining rows may differ"


def room_bytes(model: Model, options: EngineOptions) -> int:
    """Return the bytes that rows may take now."""
    return budget_bytes(available_bytes(model.device, options.memory))


def _slots(
    model: Model, options: EngineOptions, num_beams: int, is_owned: bool, begun: EngineChoice | None, say: Say
) -> Model | None:
    """Return the model on the slots' own network, or None if it runs without slots, after one line that says why."""
    from batchgen.engines.continuous.network import slot_network

    def has_room(num_bytes: int) -> bool:
        return num_bytes <= room_bytes(model, options)

    name, reason = _choose_name(model, options, num_beams, begun)
    own: Model | None = None
    if name == CONTINUOUS:
        kernels = begun.kernels if begun and begun.engine == CONTINUOUS else None
        if options.quantize and kernels not in ALL_INT8:
            kernels = ANY_INT8
        own, reason = slot_network(model, is_owned=is_owned, has_room=has_room, kernels=kernels, is_exact=options.exact)
    if own is None and options.quantize:
        raise ModelError(f"--quantize {options.quantize} does not run {model.checkpoint.name}: {reason}; {leave_out()}")
    if name == CONTINUOUS and own is None and options.engine == CONTINUOUS:
        raise ModelError(f"--engine continuous does not run {model.checkpoint.name}: {reason}; use --engine auto")
    if reason and num_beams == 1:
        say(f"using engine reference, which is slower: {reason}")
    return own


def _choose_name(model: Model, options: EngineOptions, num_beams: int, begun: EngineChoice | None) -> tuple[str, str]:
    """Like `choose_engine`, but a run continues with the engine it was started with, regardless of free memory."""
    outline = model.checkpoint.outline
    if begun is None or options.engine != "auto":
        return choose_engine(options.engine, outline, num_beams, room_bytes(model, options))
    return (REFERENCE, "") if begun.engine == REFERENCE else choose_engine("auto", outline, num_beams)


def _limits(model: Model, options: EngineOptions, kind: EngineKind, begun: EngineChoice | None) -> BatchLimits:
    from batchgen.model.footprint import footprint_of

    precision = precision_of(model.dtype_name, options.quantize)
    best_rows = kept_rows(model.checkpoint.name, str(model.device), precision) if kind.takes_best_rows else None
    footprint = footprint_of(model.checkpoint, model.dtype_name, kind.name, is_exact=options.exact)
    available = available_bytes(model.device, options.memory)
    best_rows = begun.rows if begun else best_rows
    return kind.limits(footprint, model.device.type, available, options.batch_size, best_rows)


def _processor(model: Model) -> str:
    """Return the processor whose kernels compute; for an accelerator this is the name of its device."""
    return cpu_name() if model.device.type == "cpu" else str(model.device)


def _threads(model: Model) -> int | None:
    if model.device.type != "cpu":
        return None
    import torch

    return torch.get_num_threads()
