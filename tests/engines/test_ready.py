"""What a run is made of is chosen once: a resumed run and every worker keep it, whatever they would choose now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from batchgen.engines import make_engine, make_scoring_engine, ready
from batchgen.engines.continuous.engine import ContinuousEngine
from batchgen.engines.continuous.linear import FUSED, PACKED, PLAIN, kernels_of
from batchgen.engines.continuous.row_counts import FixedRows
from batchgen.engines.continuous.same_bits import ByElement
from batchgen.engines.ready import refuse_other_engine, why_different
from batchgen.engines.reference.engine import ReferenceEngine
from batchgen.engines.reference.rules import Mixing
from batchgen.engines.scoring.engine import ScoringEngine
from batchgen.engines.trial import ladder
from batchgen.errors import OutputError
from batchgen.machine.limits import cpu_name
from batchgen.model import Checkpoint, Model, open_model
from batchgen.records import BATCH_INVARIANT, EngineChoice, EngineOptions
from tests.support.models import QWEN2, model_of

AUTO = EngineOptions()


def chosen(model: Model, options: EngineOptions = AUTO, begun: EngineChoice | None = None) -> EngineChoice:
    choices: list[EngineChoice] = []

    def keep(choice: EngineChoice) -> EngineChoice:
        choices.append(choice)
        return begun or choice

    make_engine(model, options, begun=begun, agree=keep).close()
    [choice] = choices
    return choice


@pytest.fixture
def fresh() -> Callable[[], Model]:
    """The bundled model, as often as needed, each time with networks of its own."""
    return lambda: open_model("bundled", device="cpu")


def test_what_is_chosen_says_all_that_decides_how_numbers_round(bundled: Model) -> None:
    threads = torch.get_num_threads()
    begun = EngineChoice("continuous", FUSED, "slots", 128, threads, bits=BATCH_INVARIANT, processor=cpu_name())
    assert chosen(bundled) == begun
    assert chosen(bundled, EngineOptions(exact=False)) == replace(
        begun, bits="may depend on the batch: exactness is off"
    )
    reference = replace(begun, engine="reference", kernels=PLAIN, batching="padded", rows=5)
    assert chosen(bundled, EngineOptions("reference", batch_size=5)) == replace(
        reference, bits="may depend on the batch: engine reference"
    )


def test_inexact_rows_run_without_whole_vectors_and_blocks(checkpoint: Checkpoint) -> None:
    model = model_of(QWEN2, checkpoint)
    for is_exact in (True, False, True):
        engine = make_engine(model, EngineOptions(exact=is_exact))
        assert isinstance(engine, ContinuousEngine)
        kinds = {type(module) for module in engine.slot_model.model.network.modules()}
        assert bool(kinds & {FixedRows, ByElement}) == is_exact


def test_kernels_stay_those_that_the_run_was_begun_with(
    fresh: Callable[[], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = replace(chosen(fresh()), kernels=PLAIN)
    engine = make_engine(fresh(), begun=begun)
    assert isinstance(engine, ContinuousEngine)
    assert kernels_of(engine.slot_model.model.network) == PLAIN


def test_an_opened_model_has_a_network_for_each_kind_of_kernels(fresh: Callable[[], Model]) -> None:
    model = fresh()
    first = chosen(model)
    assert chosen(model, begun=replace(first, kernels=PLAIN)).kernels == PLAIN
    assert chosen(model, begun=first) == first


def test_the_engine_stays_though_memory_is_short_now(bundled: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = chosen(bundled)
    monkeypatch.setattr(ready, "room_bytes", lambda model, options: 2**20)
    assert chosen(bundled).engine == "reference"
    assert chosen(bundled, begun=begun) == begun


def test_a_run_that_was_begun_with_reference_takes_no_slots(bundled: Model) -> None:
    begun = chosen(bundled, EngineOptions("reference"))
    assert chosen(bundled, begun=begun) == begun


def test_the_number_of_rows_stays_though_bench_has_found_another_meanwhile(
    bundled: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = chosen(bundled)
    monkeypatch.setattr(ready, "kept_rows", lambda *words: 7)
    assert chosen(bundled).rows == 7
    assert chosen(bundled, begun=begun) == begun
    engine = make_engine(bundled, begun=begun)
    assert engine.wants_rows > 7


@pytest.mark.parametrize(
    ("begun", "now", "taken"),
    [
        (Mixing.equal_lengths, Mixing.padded, Mixing.equal_lengths),
        (Mixing.padded, Mixing.equal_lengths, Mixing.equal_lengths),
        (Mixing.alone, Mixing.alone, Mixing.alone),
        ("no such way", Mixing.padded, Mixing.padded),
    ],
)
def test_rows_share_batches_as_they_were_begun_where_that_is_right_here(
    bundled: Model, monkeypatch: pytest.MonkeyPatch, begun: str, now: Mixing, taken: Mixing
) -> None:
    monkeypatch.setattr(ladder, "read_verdict", lambda model, engine: now)
    rule, _ = ladder.find_rule(bundled, begun)
    assert rule.mixing is taken


def test_another_worker_that_was_quicker_decides(bundled: Model) -> None:
    agreed = chosen(bundled, EngineOptions("reference"))
    engine = make_engine(bundled, agree=lambda choice: agreed)
    assert isinstance(engine, ReferenceEngine)


def test_scores_are_made_with_the_kernels_that_the_run_was_begun_with(fresh: Callable[[], Model]) -> None:
    model, said = fresh(), list[str]()
    choices: list[EngineChoice] = []
    make_scoring_engine(model, agree=lambda choice: choices.append(choice) or choice)
    [first] = choices
    assert replace(first, bits="", processor="") == EngineChoice(
        "scoring", PACKED, "padded", 4096, torch.get_num_threads(), bits=""
    )
    begun = replace(first, kernels=PLAIN, rows=7)
    engine = make_scoring_engine(model, begun=begun, agree=lambda choice: begun, say=said.append)
    assert isinstance(engine, ScoringEngine)
    assert engine.network.kernels == PLAIN
    assert not said  # how many rows share a forward changes nothing
    make_scoring_engine(model, agree=lambda choice: replace(first, threads=99), say=said.append)
    assert "threads 99, now" in said[0]


def test_another_engine_is_refused_in_16_bits_only(bundled: Model) -> None:
    begun = chosen(bundled)
    refuse_other_engine(begun, EngineOptions("reference"), "float32")
    refuse_other_engine(begun, EngineOptions("continuous"), "bfloat16")
    refuse_other_engine(None, EngineOptions("reference"), "bfloat16")
    with pytest.raises(OutputError, match="started with engine continuous, and in bfloat16 reference gives other"):
        refuse_other_engine(begun, EngineOptions("reference"), "bfloat16")


def test_what_cannot_stay_is_said_in_one_line(bundled: Model) -> None:
    begun = EngineChoice("continuous", FUSED, "slots", 128, 2)
    now = EngineChoice("continuous", PLAIN, "slots", 128, 1)
    line = why_different(begun, now, "bfloat16", is_exact=False)
    changed = "kernels fused, now plain; threads 2, now 1"
    assert line == f"the run was started with {changed}: in bfloat16 the remaining rows may differ"
    assert why_different(begun, begun, "bfloat16", is_exact=False) is None
    assert why_different(begun, replace(begun, rows=7, share_prefixes=False), "bfloat16", is_exact=False) is None
    scoring = replace(begun, engine="scoring")  # after a shared prompt a choice's sums differ
    assert why_different(scoring, replace(scoring, rows=7), "bfloat16", is_exact=False) is None
    assert "share prefixes" in str(
        why_different(scoring, replace(scoring, share_prefixes=False), "bfloat16", is_exact=False)
    )
    inexact = replace(begun, bits="may depend on the batch: exactness is off")
    assert "rows 128, now 7" in str(why_different(inexact, replace(inexact, rows=7), "bfloat16", is_exact=False))
    assert why_different(begun, now, "float32", is_exact=True) is None
    other = replace(now, engine="reference")
    line = str(why_different(begun, other, "float32", is_exact=True))
    assert "engine continuous, now reference" in line
    assert "its tokens are the same, and log-probabilities up to rounding" in line


def test_a_choice_comes_back_from_json_and_nothing_else_does() -> None:
    choice = EngineChoice("continuous", FUSED, "slots", 128, None)
    assert EngineChoice.from_dict(choice.to_dict()) == choice
    for other in (None, {}, [], "continuous", {**choice.to_dict(), "more": 1}, {"engine": "continuous"}):
        assert EngineChoice.from_dict(other) is None
