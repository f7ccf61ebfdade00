"""`verify`: identical, rounding, bug; planted bugs; negative controls; other people's loops."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import copy
from dataclasses import fields, replace
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import MiniMaxConfig

from batchgen import Model, check_padding, open_model
from batchgen.cli.verify import _maker
from batchgen.engines import Engine, make_engine, make_scoring_engine
from batchgen.engines.continuous.engine import ContinuousEngine
from batchgen.engines.reference.engine import ReferenceEngine
from batchgen.errors import InputError
from batchgen.model import Checkpoint
from batchgen.model.padding import pad
from batchgen.proof.mistakes import generate_as_is, pad_right, without_mask
from batchgen.proof.verify import (
    Controls,
    ErrorBound,
    LogitRecorder,
    Oracle,
    RowCheck,
    ScoreCheck,
    VerifyReport,
    check_engine,
    check_scores,
    greedily,
    measure_error,
    pick_rows,
    run_controls,
    spread,
    verify_rows,
)
from batchgen.proof.verify.bit_check import BitCheck, Parting, Way
from batchgen.proof.verify.bits import behind_opening, compare_bits
from batchgen.proof.verify.facts import DifferenceBin, histogram
from batchgen.proof.verify.rows import Departure, find_departure, verdict_of
from batchgen.records import EngineOptions, Sequence
from batchgen.render.verify import print_report
from batchgen.text import short_number
from tests.support.command import invoke
from tests.support.engines import FakeEngine
from tests.support.long_rope import CONFIGS as LONG_ROPE
from tests.support.models import ARCHITECTURES, EOS, QWEN2, SMALL, WITH_SLOTS, decide_alone, model_of
from tests.support.rows import RAIN, encoded, ragged_prompts, requests_of

PROMPTS = [*ragged_prompts(4, seed=3, longest=12), "the", "the a", "the"]
BOUND = ErrorBound(1e-5, 1e-4)
MINIMAX = MiniMaxConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
    head_dim=16, num_local_experts=2, num_experts_per_tok=1, block_size=8, max_position_embeddings=512,
    layer_types=["linear_attention", "full_attention"], **SMALL,
)  # fmt: skip


@pytest.fixture
def model_named(folders: dict[str, Path], checkpoint: Checkpoint) -> Callable[[str], Model]:
    """Return a random model of its own, so that no engine can change the oracle's."""

    def make(name: str) -> Model:
        return open_model(str(folders[name]), device="cpu") if name in folders else model_of(QWEN2, checkpoint)

    return make


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(open_model("bundled", device="cpu"))


def verify(model: Model, oracle: Oracle, **options: Any) -> tuple[VerifyReport, list[Sequence]]:
    """Verify the prompts, five rows at a time."""
    requests = requests_of(PROMPTS, max_new_tokens=3)
    chosen = EngineOptions(batch_size=5, **options)
    return verify_rows(model, oracle, requests, lambda on_logits: make_engine(model, chosen, on_logits=on_logits))


def check(model: Model, oracle: Oracle, plant: Callable[[Engine], None], **options: Any) -> list[RowCheck]:
    """Check an engine with a planted bug."""
    recorder, rows = LogitRecorder(), encoded(PROMPTS, model, max_new_tokens=3)
    bound = measure_error(oracle, oracle.model, pick_rows(rows, 4))
    engine = make_engine(model, EngineOptions(batch_size=4, **options), on_logits=recorder.on_logits)
    plant(engine)
    return list(check_engine(engine, recorder, oracle, rows, bound))


# Scores.


def check_scored(model: Model, oracle: Oracle, plant: Callable[[Engine], None] = lambda engine: None) -> ScoreCheck:
    engine, rows = make_scoring_engine(model, EngineOptions(batch_size=4)), encoded(PROMPTS, model)
    plant(engine)
    return check_scores(engine, oracle, rows, ErrorBound(2e-5, 6e-4), model.dtype_name)


def test_scores_in_batches_are_those_of_each_row_alone(oracle: Oracle) -> None:
    found = check_scored(oracle.model, oracle)
    lengths = [len(row.input_ids) for row in encoded(PROMPTS, oracle.model)]
    assert (found.num_rows, found.has_bug, found.allowed) == (sum(length > 1 for length in lengths), False, 1e-4)
    assert found.num_tokens == sum(lengths) - len(lengths)
    assert 0 < found.max_difference < 1e-4


def test_a_score_that_sees_its_pads_is_a_bug(oracle: Oracle) -> None:
    def shift(engine: Engine) -> None:
        """Score every token by what follows another one."""
        engine.network = copy(engine.network)
        hidden = engine.network.hidden
        engine.network.hidden = lambda rows, columns, *cache: hidden(rows, columns, *cache).roll(1, dims=1)

    found = check_scored(oracle.model, oracle, shift)
    assert found.has_bug
    report = VerifyReport(
        "bundled", "scoring", "cpu", "float32", 4, BOUND, Controls(0, 0, "absolute", ()), scores=found
    )
    assert report.has_bug
    assert report.to_dict()["scores"]["has_bug"]
    console = Console(file=(written := StringIO()), width=80)
    print_report(console, report)
    assert "more than the allowed 1e-4" in written.getvalue()


# Every engine, every kind of positions.


@pytest.mark.parametrize(
    ("architecture", "engine"),
    [
        *((name, "reference") for name in [*ARCHITECTURES, "qwen2"]),
        *((name, "continuous") for name in WITH_SLOTS),
    ],
)
def test_batches_change_nothing(model_named: Callable[[str], Model], architecture: str, engine: str) -> None:
    oracle = Oracle(model_named(architecture))
    report, failed = verify(model_named(architecture), oracle, engine=engine)
    assert (report.engine, failed, report.most_rows) == (engine, [], 5)
    assert report.count("identical") == len(PROMPTS)
    assert 0 < report.max_difference < report.bound.allowed < 1e-2
    assert report.controls.can_see_mistakes


@pytest.mark.parametrize("engine", ["reference", "continuous"])
@pytest.mark.parametrize("name", ["phi3", "llama"])
def test_rows_on_both_sides_of_long_ropes_limit_are_identical(name: str, engine: str, checkpoint: Checkpoint) -> None:
    model = model_of(LONG_ROPE[name], checkpoint)
    requests = requests_of([" ".join(["the a dog"] * count) for count in (1, 9, 12, 13, 14, 25, 30)], max_new_tokens=9)
    chosen = EngineOptions(engine, batch_size=5)
    report, failed = verify_rows(
        model, Oracle(model), requests, lambda on_logits: make_engine(model, chosen, on_logits=on_logits)
    )
    assert (report.engine, failed, report.count("identical")) == (engine, [], len(requests))
    assert report.bound.measured < 1e-4
    assert report.controls.can_see_mistakes


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("gpt2", "absolute"), ("opt", "absolute"), ("llama", "rotary"), ("gpt_neox", "rotary"), ("qwen2", "rotary"),
     ("bloom", "alibi")],
)  # fmt: skip
def test_what_forgotten_positions_do_depends_on_their_kind(
    model_named: Callable[[str], Model], architecture: str, kind: str
) -> None:
    model = model_named(architecture)
    controls = run_controls(Oracle(model), encoded(PROMPTS, model, max_new_tokens=3))
    moved = {control.name: control.max_difference for control in controls.controls}
    assert controls.positions == model.checkpoint.position_kind == kind
    if kind == "alibi":
        assert "without position ids" not in moved
    else:
        assert (moved["without position ids"] > 0.1) == (kind == "absolute")


# Planted bugs.


class WithoutPositions(Model):
    """Positions that count pads."""

    def inputs(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor) -> Any:
        if input_ids.shape[1] > 1:
            position_ids = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        return super().inputs(input_ids, attention_mask, position_ids)


class WithoutMask(Model):
    """Pads that count as tokens."""

    def inputs(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor) -> Any:
        return super().inputs(input_ids, torch.ones_like(attention_mask), position_ids)


def plant_in(kind: type[Model]) -> Callable[[Engine], None]:
    def plant(engine: Engine) -> None:
        holder: Any = engine.slot_model if isinstance(engine, ContinuousEngine) else engine
        assert isinstance(engine, ContinuousEngine | ReferenceEngine)
        holder.model = kind(**{field.name: getattr(holder.model, field.name) for field in fields(Model)})

    return plant


@pytest.mark.parametrize(
    ("engine", "mistake"),
    [
        ("reference", WithoutPositions),
        ("reference", WithoutMask),
        ("continuous", WithoutPositions),  # its layers know the rows' columns and take no mask
    ],
)
def test_a_planted_mistake_is_a_bug_in_every_padded_row(oracle: Oracle, engine: str, mistake: type[Model]) -> None:
    model = open_model("bundled", device="cpu")
    checks = check(model, oracle, plant_in(mistake), engine=engine, exact=False)
    assert len(checks) == len(PROMPTS)
    for row in checks:
        if row.differences:  # not answered with another row's tokens
            assert (row.verdict == "bug") == (row.num_pads > 0), row
    assert sum(row.verdict == "bug" for row in checks) > 2


def test_a_mistake_that_changes_no_token_is_still_a_bug(oracle: Oracle) -> None:
    model = open_model("bundled", device="cpu")

    def plant(engine: Engine) -> None:
        assert isinstance(engine, ReferenceEngine)
        record = engine.sampler.on_logits
        engine.sampler.on_logits = lambda logits, rows: record(logits + 0.01, rows)

    checks = check(model, oracle, plant, engine="reference")
    assert all(row.tokens_equal and row.verdict == "bug" for row in checks)


def test_tokens_alone_are_enough_to_find_a_bug(oracle: Oracle) -> None:
    rows = encoded(RAIN, oracle.model, max_new_tokens=3)
    checks = list(check_engine(FakeEngine(), LogitRecorder(), oracle, rows, BOUND))
    assert [row.verdict for row in checks] == ["bug"] * 3
    assert all(row.max_difference is None and row.first_differing_step is not None for row in checks)


# Verdicts.


@pytest.mark.parametrize(
    ("departure", "difference", "verdict"),
    [
        (None, 2e-5, "identical"),
        (None, 2e-4, "bug"),
        (None, float("inf"), "bug"),
        (Departure(3, 5e-5, 7, 5e-5), 2e-5, "rounding"),
        (Departure(3, 5e-5, 7, 0.3), 2e-5, "bug"),
        (Departure(3, 0.3, 7, 0.3), 0.0, "bug"),
    ],
)
def test_what_rounding_explains_is_no_bug(departure: Departure | None, difference: float, verdict: str) -> None:
    assert verdict_of(departure, difference, BOUND) == verdict


def test_the_first_departure_is_told_and_the_worst_one_counts() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.0], [2.0, 1.9, 0.0], [5.0, 0.0, 4.0]])
    assert find_departure(logits, [0, 0, 0]) is None
    departure = find_departure(logits, [0, 1, 1])
    assert departure is not None
    assert (departure.step, departure.expected, departure.worst) == (1, 0, 5.0)
    assert departure.margin == pytest.approx(0.1)


def test_a_tie_is_no_departure() -> None:
    assert find_departure(torch.tensor([[1.0, 1.0, 0.0]]), [1]) is None


def test_sixteen_bits_round_and_are_no_bug() -> None:
    model = open_model("bundled", device="cpu", dtype="bfloat16")
    oracle = Oracle(open_model("bundled", device="cpu"))
    report, _ = verify(model, oracle)
    assert report.dtype == "bfloat16"
    assert report.count("bug") == 0
    assert report.bound.measured > 1e-3


def test_the_error_is_measured_without_padding(oracle: Oracle) -> None:
    bound = measure_error(oracle, oracle.model, encoded(PROMPTS, oracle.model, max_new_tokens=3))
    assert 0 < bound.measured < 1e-4
    assert 10 * bound.measured < bound.allowed < 1e-2


def test_the_error_is_measured_with_a_cache_of_the_models_own(checkpoint: Checkpoint) -> None:
    model = model_of(MINIMAX, checkpoint, "eager")
    bound = measure_error(Oracle(model), model, encoded(PROMPTS, model, max_new_tokens=3))
    assert 0 < bound.measured < 1e-3


def test_a_row_that_starts_again_is_recorded_from_its_step(oracle: Oracle) -> None:
    recorder = LogitRecorder()
    [row] = encoded(["My dog is"], oracle.model, max_new_tokens=3)
    for logit in (1.0, 2.0):
        recorder.on_logits(torch.full((1, 3), logit), [row])
    assert [step.tolist() for step in recorder.take(row)] == [[2.0] * 3]
    assert recorder.take(row) == []


# Controls.


def test_every_mistake_breaks_and_what_is_right_holds(oracle: Oracle) -> None:
    controls = run_controls(oracle, encoded(PROMPTS, oracle.model, max_new_tokens=3))
    assert {control.name: control.broke for control in controls.controls} == {
        "as batchgen pads": False,
        "another pad token": False,
        "without the mask": True,
        "padded right": True,
        "without position ids": True,
    }
    assert controls.can_see_mistakes
    assert controls.controls[1].total_variation == pytest.approx(controls.controls[0].total_variation, abs=1e-6)


def test_without_pads_nothing_can_be_seen(oracle: Oracle) -> None:
    controls = run_controls(oracle, encoded(["My dog is", "My cat is"], oracle.model, max_new_tokens=3))
    assert (controls.num_padded, controls.can_see_mistakes) == (0, False)


def test_rows_are_picked_from_the_shortest_to_the_longest(oracle: Oracle) -> None:
    rows = encoded(["the " * n for n in range(40, 0, -1)], oracle.model, max_new_tokens=3)
    picked = [row.num_prompt_tokens for row in pick_rows(rows)]
    assert len(picked) == 8
    assert (picked[0], picked[-1]) == (min(map(len, (r.input_ids for r in rows))), max(len(r.input_ids) for r in rows))


def test_samples_are_spread_over_the_input() -> None:
    assert spread(list(range(100)), 4) == [0, 33, 66, 99]
    assert spread(list(range(3)), 4) == [0, 1, 2]
    assert spread(list(range(3)), 1) == [2]


# The report.


def report_of(*rows: RowCheck, most_rows: int = 32, dtype: str = "float32") -> VerifyReport:
    return VerifyReport("bundled", "continuous", "cpu", dtype, most_rows, BOUND, Controls(0, 0, "absolute", ()), rows)


def row_check(verdict: str, *differences: float, index: int = 0) -> RowCheck:
    return RowCheck(str(index), index, "p", verdict, len(differences), differences=differences)  # type: ignore[arg-type]


def test_the_summary_is_a_sentence_to_quote() -> None:
    rows = [row_check("identical", 1e-6, 1.1e-5)] * 500
    assert report_of(*rows).summary == "500 rows, batches of 32, float32: 500 identical, max logit difference 1.1e-5"


def test_the_summary_counts_what_is_not_identical() -> None:
    report = report_of(row_check("rounding", 0.31), row_check("bug", 4.0), most_rows=2, dtype="bfloat16")
    assert report.summary == "2 rows, batches of 2, bfloat16: 0 identical, 1 rounding, 1 bug, max logit difference 4"
    assert report.has_bug


def test_a_report_is_json() -> None:
    report = json.loads(json.dumps(report_of(row_check("bug", float("inf"))).to_dict(), allow_nan=False))
    assert report["rows"][0]["max_difference"] is None
    assert report["counts"] == {"identical": 0, "rounding": 0, "bug": 1}


def test_the_histogram_has_no_gaps() -> None:
    assert histogram([2e-6, 3e-5, float("inf")]) == [
        DifferenceBin(1e-6, 3e-6, 1), DifferenceBin(3e-6, 1e-5, 0), DifferenceBin(1e-5, 3e-5, 0),
        DifferenceBin(3e-5, 1e-4, 1), DifferenceBin(float("inf"), float("inf"), 1),
    ]  # fmt: skip


@pytest.mark.parametrize(("number", "text"), [(0.5, "0.5"), (1.0, "1"), (12.34, "12"), (5.96e-8, "6e-8")])
def test_numbers_have_two_figures(number: float, text: str) -> None:
    assert short_number(number) == text


def test_rows_are_verified_greedily_whatever_they_ask_for() -> None:
    requests, changed = greedily(requests_of(RAIN, temperature=1.0, max_new_tokens=4), 4)
    assert changed == 3
    assert all(request.sampling.is_greedy for request in requests)


# The command.


def test_the_command_prints_the_sentence_and_the_controls(tmp_path: Path) -> None:
    (tmp_path / "rain.txt").write_text("".join(f"{prompt}\n" for prompt in RAIN))
    result = invoke("verify", tmp_path, "--model", "bundled", "--max-new-tokens", 4)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("3 rows, batches of 3, float32: 3 identical, max logit difference ")
    assert max(map(len, lines)) <= 80
    outcomes = {line[:24].strip(): line.split()[-1] for line in lines if line.strip().endswith("changed")}
    assert outcomes == {
        "as batchgen pads": "unchanged", "another pad token": "unchanged",
        "without the mask": "changed", "padded right": "changed", "without position ids": "changed",
    }  # fmt: skip


def test_a_bug_is_exit_code_4_and_named(monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]) -> None:
    def make_broken(*arguments: Any, **options: Any) -> Engine:
        engine = make_engine(*arguments, **options)
        plant_in(WithoutPositions)(engine)
        return engine

    monkeypatch.setattr(import_module("batchgen.cli.verify"), "make_engine", make_broken)
    prompts = [part for prompt in RAIN for part in ("-p", prompt)]
    result = invoke("verify", *prompts, "--model", folders["gpt2"], "--max-new-tokens", 4)
    assert result.exit_code == 4
    assert "2 bug" in result.stdout
    assert "row 2: bug" in result.stdout


def test_the_command_says_what_it_cannot_see_and_what_cannot_run(folders: dict[str, Path]) -> None:
    prompts = ("-p", "My dog is", "-p", "My cat is", "-p", "")
    result = invoke("verify", *prompts, "--model", folders["gpt2"], "--max-new-tokens", 2)
    assert result.exit_code == 0
    assert "verify cannot detect mistakes on this input" in result.stdout
    assert "1 row could not be run, the first with id 2: the prompt is empty" in result.stderr


def test_json_and_a_sample(tmp_path: Path, folders: dict[str, Path]) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "rain " * n, "sampling": {"temperature": 1}} for n in range(1, 10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = invoke("verify", path, "--model", folders["gpt2"], "--max-new-tokens", 2, "--sample", 3, "--json")
    report = json.loads(result.stdout)
    assert [row["index"] for row in report["rows"]] == [0, 4, 8]
    assert report["summary"].startswith("3 rows, batches of 3")
    assert (report["scores"]["num_rows"], report["scores"]["has_bug"]) == (3, False)
    assert len(report["rows"][0]["differences"]) == 2
    assert "3 rows with their own options are verified greedily" in result.stderr


def test_nothing_to_verify_is_an_error(oracle: Oracle) -> None:
    with pytest.raises(InputError, match="nothing to verify: 1 rows, none of which can be run, the first because"):
        verify_rows(oracle.model, oracle, requests_of([""]), lambda on_logits: FakeEngine())


# Other people's loops.


def loop(model: Model, pads: Callable[..., Any], max_new_tokens: int = 6) -> Callable[[list[str]], torch.Tensor]:
    """The usual loop: tokenize, pad in some way, generate, and return whole rows."""

    def run(prompts: list[str]) -> torch.Tensor:
        batch = pads(encoded(prompts, model, max_new_tokens=3), model.checkpoint.pad_token_id)
        new = generate_as_is(model, batch, max_new_tokens)
        width = max(map(len, new))
        filled = torch.tensor([ids + [EOS] * (width - len(ids)) for ids in new])
        return torch.cat([batch.input_ids, filled], 1)

    return run


def test_a_loop_that_pads_left_is_identical(oracle: Oracle) -> None:
    checks = check_padding(loop(oracle.model, pad), RAIN, oracle.model, max_new_tokens=6)
    assert [row.verdict for row in checks] == ["identical"] * 3


@pytest.mark.parametrize("pads", [pad_right, lambda rows, token: without_mask(pad(rows, token))])
def test_a_loop_that_pads_wrongly_has_bugs(oracle: Oracle, pads: Callable[..., Any]) -> None:
    checks = check_padding(loop(oracle.model, pads), RAIN, oracle.model, max_new_tokens=6)
    assert [row.verdict for row in checks] == ["bug", "identical", "bug"]
    assert checks[2].first_differing_step is not None
    assert checks[2].token != checks[2].expected


def test_new_tokens_alone_will_do(oracle: Oracle) -> None:
    model = oracle.model
    checks = check_padding(
        lambda prompts: [generate_as_is(model, pad([row], EOS), 6)[0] for row in encoded(prompts, model)],
        RAIN, model, max_new_tokens=6,
    )  # fmt: skip
    assert [row.verdict for row in checks] == ["identical"] * 3


def test_texts_will_do_with_their_prompts_or_without(oracle: Oracle) -> None:
    rows = encoded(RAIN, oracle.model, max_new_tokens=3)
    outputs = generate_as_is(oracle.model, pad(rows, EOS), 6)
    texts = [oracle.model.checkpoint.tokenizer.decode(ids) for ids in outputs]
    wholes = [prompt + text for prompt, text in zip(RAIN, texts, strict=True)]
    for answers in (texts, wholes):
        checks = check_padding(lambda prompts, answers=answers: answers, RAIN, oracle.model, max_new_tokens=6)
        assert [row.verdict for row in checks] == ["identical"] * 3


def test_a_text_is_told_where_it_departs(oracle: Oracle) -> None:
    right = decide_alone(oracle.model, "My dog is", 3)
    decode = oracle.model.checkpoint.tokenizer.decode
    text = decode(right[:2]) + " or not"
    [row] = check_padding(lambda prompts: [text], ["My dog is"], oracle.model, max_new_tokens=6)
    assert (row.verdict, row.first_differing_step, row.token) == ("bug", 2, None)
    assert row.expected == decode(right[2:])


def test_a_row_that_ends_early_has_chosen_eos(oracle: Oracle) -> None:
    first = decide_alone(oracle.model, "My dog is", 2)
    [row] = check_padding(lambda prompts: [first], ["My dog is"], oracle.model, max_new_tokens=6)
    assert (row.verdict, row.first_differing_step, row.token) == ("bug", 2, None)


def test_what_follows_an_eos_does_not_count(oracle: Oracle) -> None:
    first = int(oracle.logits(encoded(["My dog is"], oracle.model, max_new_tokens=3)[0].input_ids, 1).argmax())
    checkpoint = replace(oracle.model.checkpoint, eos_token_ids=frozenset({first}))
    model = replace(oracle.model, checkpoint=checkpoint)
    [row] = check_padding(lambda prompts: [[first, 1, 2, 3]], ["My dog is"], model, max_new_tokens=6)
    assert (row.verdict, row.num_steps) == ("identical", 1)


def test_another_number_of_outputs_is_an_error(oracle: Oracle) -> None:
    with pytest.raises(InputError, match="gave 1 outputs for 3 prompts"):
        check_padding(lambda prompts: ["x"], RAIN, oracle.model)


def test_a_prompt_that_cannot_run_is_an_error(oracle: Oracle) -> None:
    with pytest.raises(InputError, match=r"prompts\[1\]: the prompt is empty"):
        check_padding(lambda prompts: ["x", "x"], ["a", ""], oracle.model)


# The same bits in other ways.


def test_rows_in_slots_have_the_same_bits_in_other_ways(tiny_models: dict[str, Model]) -> None:
    model = tiny_models["llama"]

    def maker(**options: Any) -> Callable[[Any], Engine]:
        return lambda on_logits: make_engine(model, EngineOptions(**options), on_logits=on_logits)

    others = {"one at a time": maker(batch_size=1), "without shared prefixes": maker(share_prefixes=False)}
    found = compare_bits(maker(batch_size=4), others, encoded(PROMPTS[:5], model, max_new_tokens=3))
    assert found.num_rows == 5
    assert [(way.name, way.num_different, way.max_difference) for way in found.ways] == [
        (name, 0, 0.0) for name in others
    ]
    assert found.is_identical


def test_rows_with_other_bits_are_counted_and_measured(tiny_models: dict[str, Model]) -> None:
    model, other = tiny_models["llama"], tiny_models["gpt2"]
    found = compare_bits(
        lambda on_logits: make_engine(model, on_logits=on_logits),
        {"another model": lambda on_logits: make_engine(other, on_logits=on_logits)},
        encoded(PROMPTS[:3], model, max_new_tokens=2),
    )
    [way] = found.ways
    assert way.num_different == 3
    assert (way.max_difference or 0) > 0.1
    assert not found.is_identical
    assert replace(report_of(), bits=found).to_dict()["bits"]["ways"][0]["name"] == "another model"


class AddRows(torch.nn.Module):
    """Mixes the number of rows into their states `[B, T, E]`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1e-5 * len(x)


def parting_at(layer: int, checkpoint: Checkpoint) -> Model:
    """Return a model of two layers, one of which depends on its batch."""
    model = model_of(ARCHITECTURES["llama"], checkpoint)
    mlp = model.network.model.layers[layer].mlp
    mlp.down_proj = torch.nn.Sequential(mlp.down_proj, AddRows())
    return model


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize(("engine", "layer"), [("continuous", 0), ("continuous", 1), ("reference", 0)])
def test_the_layer_that_parts_first_is_named(layer: int, engine: str, checkpoint: Checkpoint) -> None:
    model = parting_at(layer, checkpoint)

    def maker(**options: Any) -> Callable[[Any], Engine]:
        return lambda on_logits: make_engine(model, EngineOptions(engine, **options), on_logits=on_logits)

    found = compare_bits(
        maker(batch_size=9),
        {"one at a time": maker(batch_size=1)},
        encoded(PROMPTS[:5], model, max_new_tokens=3),
        alone=maker(batch_size=1, share_prefixes=False),
    )
    assert [way.name for way in found.ways] == ["one at a time", "behind a shared prefix"]
    for way in found.ways:
        assert way.num_different == 5
        assert way.parting is not None
        assert (way.parting.layer, way.parting.token) == (f"model.layers.{layer}", 0)
        assert way.parting.max_difference == pytest.approx(4e-5, abs=4e-6)
    assert not found.is_promised  # if the trial does not notice it, nothing will
    console = Console(file=(written := StringIO()), width=200)
    print_report(console, replace(report_of(), bits=found))
    assert f"5 rows with other bits, by up to {short_number(found.ways[0].max_difference)}; first at model" in (
        written.getvalue()
    )


def test_other_bits_are_a_bug_where_the_same_ones_are_promised() -> None:
    way = Way("one at a time", 2, 1e-5, Parting("model.layers.3", 0, 2e-7))
    console = Console(file=(written := StringIO()), width=200)
    for is_promised in (False, True):
        report = replace(report_of(), rows=(), bits=BitCheck(8, (way,), is_promised))
        assert report.has_bug == is_promised
        assert report.to_dict()["bits"]["ways"][0]["parting"]["layer"] == "model.layers.3"
        print_report(console, report)
    assert "first at model.layers.3 for token 0, by up to 2e-7" in written.getvalue()
    assert written.getvalue().count("This is a bug: runs of this model say") == 1


def test_rows_too_long_for_a_common_opening_run_without_one(oracle: Oracle) -> None:
    rows = encoded(PROMPTS[:4], oracle.model, max_new_tokens=3)
    lengths = [row.num_prompt_tokens for row in rows]
    led = behind_opening(rows, n_positions=64 + sorted(lengths)[1] + 3)
    assert len(led) == sum(length <= sorted(lengths)[1] for length in lengths)
    assert len({tuple(row.input_ids[:64]) for row in led}) == 1


# The same bits in somebody else's loop.


def loop_of(model: Model, *, cache: bool = True) -> Callable[[list[str]], Any]:
    tokenizer = model.checkpoint.tokenizer
    tokenizer.pad_token = tokenizer.eos_token

    def loop(prompts: list[str]) -> Any:
        batch = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
        options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "use_cache": cache}
        return model.network.generate(**batch, **options, pad_token_id=tokenizer.pad_token_id)

    return loop


@pytest.mark.parametrize("cache", [True, False])
def test_a_loops_layer_that_parts_first_is_named(cache: bool, checkpoint: Checkpoint) -> None:
    model = parting_at(0, checkpoint)
    prompts = [*PROMPTS[:3], PROMPTS[0]]
    checks = check_padding(loop_of(model, cache=cache), prompts, model, max_new_tokens=3, bits=True)
    assert all("other bits one at a time: first at model.layers.0 for token 0" in check.bits for check in checks)
    assert checks[0].to_dict()["bits"] == checks[0].bits


def test_a_loop_that_runs_each_row_alone_is_bit_identical(oracle: Oracle) -> None:
    loop = loop_of(oracle.model)
    alone = lambda prompts: [loop([prompt])[0].tolist() for prompt in prompts]  # noqa: E731
    checks = check_padding(alone, PROMPTS[:3], oracle.model, max_new_tokens=3, bits=True)
    assert {check.bits for check in checks} == {"bit-identical"}
    assert {check.bits for check in check_padding(alone, PROMPTS[:2], oracle.model, max_new_tokens=3)} == {None}


def test_bits_need_the_models_own_network(oracle: Oracle) -> None:
    with pytest.raises(InputError, match="pass the Model that the loop uses"):
        check_padding(lambda prompts: [[5] for _ in prompts], ["the"], oracle.model, max_new_tokens=1, bits=True)


def test_the_same_line_of_several_engines_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("batchgen.cli.verify.make_engine", lambda *_, say, **__: say("slower"))
    make: Any = _maker(None, EngineOptions(), said.append)  # type: ignore[arg-type]
    make(None)
    make(None)
    assert said == ["slower"]
