"""Rows that took more memory than predicted: it is reported at the end, and the next run plans with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchgen.engines import finish_all, make_engine
from batchgen.engines.compiled.support import note_compiled
from batchgen.machine.meter import PeakMeter
from batchgen.model import Checkpoint, Model
from batchgen.model.footprint import footprint_of, overrun_keeper
from batchgen.planning.backoff import Backoff
from batchgen.records import EngineOptions
from tests.support.engines import limits_of
from tests.support.meters import FakeMeter
from tests.support.rows import encoded

MIB = 2**20


def ended(*growths: int, predicted: int = 100 * MIB) -> tuple[list[str], list[float]]:
    """Return what is reported and kept after batches that were all expected to take the same."""
    said: list[str] = []
    kept: list[float] = []
    backoff = Backoff(limits_of(1 << 40), meter=FakeMeter(list(growths)), say=said.append, keep_overrun=kept.append)
    for _ in growths:
        backoff.expect(predicted, anew=True)
        backoff.compare(predicted)
    backoff.end()
    backoff.end()
    return said, kept


def test_the_worst_overrun_is_said_once_with_its_numbers() -> None:
    said, kept = ended(90 * MIB, 150 * MIB, 120 * MIB)
    assert said == [
        "rows took 150 MiB of memory where 100 MiB was predicted: "
        "the next run of this model plans with 1.5 times as much"
    ]
    assert kept == [1.5]


@pytest.mark.parametrize("growth", [114 * MIB, 10 * MIB])
def test_what_is_near_the_prediction_is_not_worth_a_word(growth: int) -> None:
    assert ended(growth) == ([], [])


def test_small_rows_drown_in_what_the_process_takes_anyway() -> None:
    assert ended(60 * MIB, predicted=10 * MIB) == ([], [])


def test_what_is_kept_counts_for_this_engine_and_adds_up(checkpoint: Checkpoint) -> None:
    keep = overrun_keeper(checkpoint, "float32", "reference")
    keep(1.5)
    keep(1.2)
    assert footprint_of(checkpoint, "float32", "reference").overrun == pytest.approx(1.8)
    assert footprint_of(checkpoint, "float32", "continuous").overrun == 1
    assert footprint_of(checkpoint, "bfloat16", "reference").overrun == 1
    keep(100)
    assert footprint_of(checkpoint, "float32", "reference").overrun == 4


@pytest.mark.parametrize("engine", ["continuous", "reference"])
def test_an_engine_whose_rows_take_more_says_so_when_it_ends(
    bundled: Model, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PeakMeter, "growth_bytes", lambda meter: 300 * MIB)  # as if tensors were far larger
    said: list[str] = []

    def predicted() -> int:
        ran = make_engine(bundled, EngineOptions(engine=engine, batch_size=2), say=said.append)
        for _ in finish_all(ran, encoded(["My dog is", "The"], bundled, max_new_tokens=2)):
            pass
        ran.close()
        return ran.stats.predicted_bytes

    first = predicted()
    [line] = said
    assert line.startswith("rows took 300 MiB of memory where ")
    assert predicted() == pytest.approx(min(4 * first, 300 * MIB), rel=0.01)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize("compiles", [False, True])
def test_what_a_compiler_takes_is_not_blamed_on_rows(bundled: Model, compiles: bool) -> None:
    said: list[str] = []

    def take_memory(*_: object) -> None:
        _held = bytearray(b"x") * (300 * MIB)
        if compiles:
            note_compiled("a loop that no trial needed")

    ran = make_engine(bundled, EngineOptions(batch_size=2), on_logits=take_memory, say=said.append)
    list(finish_all(ran, encoded(["My dog is", "The"], bundled, max_new_tokens=2)))
    ran.close()
    assert (said, ran.stats.measured_bytes is None) == ([], True) if compiles else len(said) == 1
