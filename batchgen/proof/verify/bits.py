"""Check that rows get the same logits, bit for bit, at other batch sizes, in another order, after a shared prefix."""

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

    Steps = dict[int, list[torch.Tensor]]  # logits [V] of each step, by row index

OPENING = 64  # tokens that all rows begin with when they run after a shared prefix
SHARED = "behind a shared prefix"


def compare_bits(
    make: MakeEngine,
    others: Mapping[str, MakeEngine],
    sequences: Rows[Sequence],
    *,
    alone: MakeEngine | None = None,
) -> BitCheck:
    """Run greedy rows through an engine, and shuffled through other engines, and compare the logits.

    With `alone`, which makes an engine that shares nothing, rows also run after a common opening, which `make`'s engine
    computes once.
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
    """The rows after an opening made of the longest row's tokens, without rows that would then be too long."""
    longest = max(sequences, key=lambda row: row.num_prompt_tokens).input_ids
    opening = list(islice(cycle(longest), OPENING))
    most = n_positions or float("inf")
    room = [row for row in sequences if OPENING + row.num_prompt_tokens + row.sampling.max_new_tokens <= most]
    return [Sequence(row.request, row.sample_index, opening + row.input_ids) for row in room]


def _logits_of(make: MakeEngine, sequences: Rows[Sequence]) -> tuple[Steps, Engine]:
    """The logits of each row's steps, and the engine; of rows with the same tokens, only one may have logits."""
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
    """Whether this engine promises that a row gets the same bits in any batch."""
    from batchgen.engines.continuous.network import bits_of

    return engine.stats.engine == CONTINUOUS.name and bits_of(model_of(engine)) == BATCH_INVARIANT


def _compare(
    name: str,
    one: tuple[MakeEngine, Rows[Sequence], Steps],
    other: tuple[MakeEngine, Rows[Sequence], Steps],
) -> Way:
    """Compare steps up to the first one that differs: after it, rows may continue differently."""
    import torch

    partings = dict[int, int]()  # the first step that differs, by row index
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
