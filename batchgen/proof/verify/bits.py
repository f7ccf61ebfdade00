"""Whether rows have the same logits, bit for bit, at other batch sizes, in another order, without shared prefixes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows
from math import isfinite
from typing import TYPE_CHECKING

from batchgen.engines import finish_all
from batchgen.proof.verify.facts import BitCheck, Way
from batchgen.proof.verify.rows import LogitRecorder
from batchgen.records import Sequence

if TYPE_CHECKING:
    import torch

    from batchgen.engines import Engine
    from batchgen.engines.sampling.sampler import OnLogits

MakeEngine = Callable[["OnLogits"], "Engine"]


def compare_bits(make: MakeEngine, others: Mapping[str, MakeEngine], sequences: Rows[Sequence]) -> BitCheck:
    """Runs greedy rows through an engine, and through others from the last row to the first."""
    expected = _logits_of(make, sequences)
    ways = [_compare(name, expected, _logits_of(other, sequences[::-1])) for name, other in others.items()]
    return BitCheck(len(expected), tuple(ways))


def _logits_of(make: MakeEngine, sequences: Rows[Sequence]) -> dict[int, list[torch.Tensor]]:
    """Of each row the logits `[V]` of its steps; of rows with the same tokens one may answer for all."""
    recorder = LogitRecorder()
    engine = make(recorder.on_logits)
    rows = [Sequence(row.request, row.sample_index, list(row.input_ids)) for row in sequences]
    finished = [row for row in finish_all(engine, rows) if not row.error]
    engine.close()
    steps = {row.request.index: recorder.take(row) for row in finished}
    return {index: its for index, its in steps.items() if its}


def _compare(name: str, expected: dict[int, list[torch.Tensor]], found: dict[int, list[torch.Tensor]]) -> Way:
    """Steps are compared up to the first that differs: behind it rows may go other ways."""
    import torch

    differences = []
    for index in expected.keys() & found.keys():
        pairs = zip(expected[index], found[index], strict=False)
        parted = next(((one, other) for one, other in pairs if not torch.equal(one, other)), None)
        if parted:
            differences.append(float((parted[0] - parted[1]).abs().max()))
    largest = max(differences, default=0.0)
    return Way(name, len(differences), largest if isfinite(largest) else None)
