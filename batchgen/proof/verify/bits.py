"""Whether rows have the same logits, bit for bit, at other batch sizes, in another order, behind a shared prefix."""

from __future__ import annotations

import random
from collections.abc import Mapping
from collections.abc import Sequence as Rows
from itertools import cycle, islice
from math import isfinite
from typing import TYPE_CHECKING

from batchgen.engines import finish_all
from batchgen.engines.choice import CONTINUOUS
from batchgen.proof.verify.bit_check import BitCheck, Way
from batchgen.proof.verify.layers import MakeEngine, find_parting, model_of, trace
from batchgen.proof.verify.rows import LogitRecorder
from batchgen.records import BATCH_INVARIANT, Sequence

if TYPE_CHECKING:
    import torch

    from batchgen.engines import Engine

    Steps = dict[int, list[torch.Tensor]]  # logits [V] of each step, by the row's index

OPENING = 64  # tokens that all rows begin with, where they are run behind a shared prefix
SHARED = "behind a shared prefix"


def compare_bits(
    make: MakeEngine,
    others: Mapping[str, MakeEngine],
    sequences: Rows[Sequence],
    *,
    alone: MakeEngine | None = None,
) -> BitCheck:
    """Runs greedy rows through an engine, and shuffled through others.

    With `alone`, which makes an engine that shares nothing, rows also run behind an opening that they have in common,
    which `make`'s engine computes once.
    """
    expected, engine = _logits_of(make, sequences)
    shuffled = random.Random(0).sample(list(sequences), len(sequences))
    ways = []
    for name, other in others.items():
        found, _ = _logits_of(other, shuffled)
        ways.append(_compare(name, (make, sequences, expected), (other, shuffled, found)))
    led = behind_opening(sequences, _positions(engine)) if alone else []
    if alone and len(led) > 1:
        apart, together = _logits_of(alone, led)[0], _logits_of(make, led)[0]
        ways.append(_compare(SHARED, (alone, led, apart), (make, led, together)))
    return BitCheck(len(expected), tuple(ways), _promises(engine))


def behind_opening(sequences: Rows[Sequence], n_positions: int | None = None) -> list[Sequence]:
    """The rows behind an opening made of the longest one's tokens; without those that would then be too long."""
    longest = max(sequences, key=lambda row: row.num_prompt_tokens).input_ids
    opening = list(islice(cycle(longest), OPENING))
    most = n_positions or float("inf")
    room = [row for row in sequences if OPENING + row.num_prompt_tokens + row.sampling.max_new_tokens <= most]
    return [Sequence(row.request, row.sample_index, opening + row.input_ids) for row in room]


def _logits_of(make: MakeEngine, sequences: Rows[Sequence]) -> tuple[Steps, Engine]:
    """Of each row the logits of its steps (of rows with the same tokens one may answer for all); and the engine."""
    recorder = LogitRecorder()
    engine = make(recorder.on_logits)
    rows = [Sequence(row.request, row.sample_index, list(row.input_ids)) for row in sequences]
    finished = [row for row in finish_all(engine, rows) if not row.error]
    engine.close()
    steps = {row.request.index: recorder.take(row) for row in finished}
    return {index: its for index, its in steps.items() if its}, engine


def _positions(engine: Engine) -> int | None:
    return model_of(engine).checkpoint.n_positions


def _promises(engine: Engine) -> bool:
    """Whether runs on this engine say that a row has the same bits in any batch."""
    from batchgen.engines.continuous.network import bits_of

    return engine.stats.engine == CONTINUOUS.name and bits_of(model_of(engine)) == BATCH_INVARIANT


def _compare(
    name: str,
    one: tuple[MakeEngine, Rows[Sequence], Steps],
    other: tuple[MakeEngine, Rows[Sequence], Steps],
) -> Way:
    """Steps are compared up to the first that differs: behind it rows may go other ways."""
    import torch

    partings = dict[int, int]()  # the step at which a row parts, by its index
    differences = []
    for index in sorted(one[2].keys() & other[2].keys()):
        for step, (mine, theirs) in enumerate(zip(one[2][index], other[2][index], strict=False)):
            if not torch.equal(mine, theirs):
                partings[index] = step
                differences.append(float((mine - theirs).abs().max()))
                break
    largest = max(differences, default=0.0)
    if not partings:
        return Way(name, 0, largest)
    index, step = min(partings.items())
    parting = find_parting(*(trace(make, rows, index, step) for make, rows, _ in (one, other)))
    return Way(name, len(differences), largest if isfinite(largest) else None, parting)
