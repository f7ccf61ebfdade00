"""The plan is what a run does: the same windows, batches and padding; and it keeps no rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from batchgen.cli import app
from batchgen.engines import make_engine
from batchgen.engines.choice import KINDS
from batchgen.machine.speeds import Settings, Speed, write_settings
from batchgen.model import Checkpoint, Model, open_model
from batchgen.pipeline import Pipeline
from batchgen.planning.forecast import MOST_LISTED, Forecast, Padding, forecast, in_input_order
from batchgen.planning.kinds import EngineKind
from batchgen.planning.memory import batch_bytes
from batchgen.records import EngineOptions, Request, SamplingParams, Sequence
from tests.support.engines import limits_of
from tests.support.families import config_of
from tests.support.models import model_of
from tests.support.rows import requests_of

# One token each in GPT-2's vocabulary.
WORDS = "one two three four five six seven eight nine ten"


def of_length(num_tokens: int) -> str:
    return " ".join((WORDS.split() * 100)[:num_tokens])


def forecast_of(
    checkpoint: Checkpoint, lengths: list[int], num_rows: int | None = None, *, has_slots: bool = False, **sampling: Any
) -> Forecast:
    limits = limits_of(num_rows=num_rows, has_slots=has_slots)
    return forecast(checkpoint, requests_of(map(of_length, lengths), **sampling), limits, kind_of(has_slots))


def kind_of(has_slots: bool) -> EngineKind:
    return KINDS["continuous" if has_slots else "reference"]


def test_columns_and_pads_are_counted(checkpoint: Checkpoint) -> None:
    plan = forecast_of(checkpoint, [3, 9, 3, 9, 3, 9], num_rows=2)  # windows of 2 and 4 rows
    assert plan.rows == 6
    assert plan.prompt_tokens == 36
    assert plan.planned == Padding(batches=3, columns=42, pads=6)
    assert plan.in_input_order == Padding(batches=3, columns=54, pads=18)
    assert plan.in_input_order.share == 1 / 3


def test_lengths_are_counted_in_bins_that_double(checkpoint: Checkpoint) -> None:
    plan = forecast_of(checkpoint, [2, 3, 3, 17])
    assert [(bin.low, bin.high, bin.rows) for bin in plan.histogram] == [
        (2, 3, 3), (4, 7, 0), (8, 15, 0), (16, 31, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("engine", "num_rows", "family"),
    [("reference", 50, ""), ("continuous", 16, ""), ("continuous", 6, "falcon_h1")],  # its prompts are scanned alone
)
def test_the_plan_is_what_a_run_does(
    bundled: Model, checkpoint: Checkpoint, engine: str, num_rows: int, family: str
) -> None:
    model = model_of(config_of(family), checkpoint) if family else bundled
    requests = requests_of([of_length(1 + i * 7 % 40) for i in range(num_rows)], max_new_tokens=2)
    runner = make_engine(model, EngineOptions(engine, share_prefixes=False))
    limits = runner._backoff.limits  # type: ignore[attr-defined]
    pipeline = Pipeline(model.checkpoint, runner)
    list(pipeline.run(requests))
    stats, plan = pipeline.stats(), forecast(model.checkpoint, requests, limits, KINDS[engine])
    assert family == "" or plan.planned.batches == num_rows
    assert plan.planned == Padding(stats.batches, stats.prompt_tokens + stats.pad_tokens, stats.pad_tokens)
    assert plan.decode_work == stats.decode_work
    assert plan.largest is not None
    assert plan.largest.memory.total == stats.predicted_batch_bytes


def test_the_largest_batch_is_the_one_that_needs_most(checkpoint: Checkpoint) -> None:
    plan = forecast_of(checkpoint, [400, 3, 3, 3], num_rows=1)
    assert plan.largest is not None
    assert (plan.largest.rows, plan.largest.columns) == (1, 400)


def test_over_long_rows_are_named(checkpoint: Checkpoint) -> None:
    params = SamplingParams(max_new_tokens=50)
    rows = [
        Request(0, "a", of_length(3), params, source="f.txt:1"),
        Request(1, "b", of_length(1000), params, source="f.txt:3"),
    ]
    plan = forecast(checkpoint, rows, limits_of(num_rows=16), kind_of(False))
    assert plan.num_bad_rows == 1
    bad = plan.bad_rows[0]
    assert (bad.id, bad.source, bad.num_prompt_tokens) == ("b", "f.txt:3", 1000)
    assert bad.error.startswith("f.txt:3: the prompt has 1000 tokens; with 50 new ones")
    assert plan.planned.columns == 3


def test_truncated_rows_run(checkpoint: Checkpoint) -> None:
    requests = requests_of([of_length(1000)], max_new_tokens=50)
    plan = forecast(checkpoint, requests, limits_of(num_rows=16), kind_of(False), too_long="truncate")
    assert (plan.num_bad_rows, plan.planned.columns, plan.prompt_tokens) == (0, 974, 1000)


def test_of_many_bad_rows_only_the_number_is_kept(checkpoint: Checkpoint) -> None:
    plan = forecast(checkpoint, requests_of([""] * (MOST_LISTED + 5)), limits_of(num_rows=16), kind_of(False))
    assert (len(plan.bad_rows), plan.num_bad_rows) == (MOST_LISTED, MOST_LISTED + 5)
    assert plan.largest is None


def test_samples_are_planned_but_counted_as_one_row(checkpoint: Checkpoint) -> None:
    plan = forecast_of(checkpoint, [5, 5], temperature=1.0, num_samples=3)
    assert (plan.rows, plan.prompt_tokens, plan.planned.columns) == (2, 10, 30)


def test_time_comes_from_prefill_and_steps(checkpoint: Checkpoint) -> None:
    plan = forecast_of(checkpoint, [10, 10], max_new_tokens=5)
    assert plan.seconds(Speed(prefill_per_s=10, decode_per_s=100, date="")) == 20 / 10 + 4 * (2 + 48) / 100


def test_input_order_is_cut_where_memory_ends() -> None:
    params = SamplingParams()
    rows = [Sequence(Request(i, str(i), "", params), 0, [7] * length) for i, length in enumerate([9, 200, 200, 9, 9])]
    limits = limits_of(batch_bytes(limits_of(), rows[1:3]))
    assert [len(batch) for batch in in_input_order(rows, limits)] == [2, 2, 1]


# Slots.


def test_prefills_take_no_more_rows_than_there_are_slots(checkpoint: Checkpoint) -> None:
    plan = forecast_of(checkpoint, [3, 9, 3, 9, 3, 9], num_rows=2, has_slots=True)  # windows of 2 and 4 rows
    assert plan.planned == Padding(batches=3, columns=42, pads=6)
    assert plan.in_input_order == Padding(batches=3, columns=54, pads=18)


def test_long_prompts_are_prefilled_a_few_at_a_time(checkpoint: Checkpoint) -> None:
    plan = forecast_of(checkpoint, [400] * 4, has_slots=True)
    assert plan.planned == plan.in_input_order == Padding(batches=2, columns=1600, pads=0)


def test_slots_are_filled_by_the_first_windows_together(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "batchgen.planning.windows.HEAVIEST_WINDOW", 16 * len(of_length(9))
    )  # windows of at most 17 rows
    plan = forecast_of(checkpoint, [9] * 40, has_slots=True)
    assert plan.largest is not None
    assert (plan.largest.rows, plan.largest.columns) == (40, 9)


def test_no_more_slots_are_filled_than_there_are(checkpoint: Checkpoint) -> None:
    plan = forecast_of(checkpoint, [9] * 200, has_slots=True)
    assert plan.largest is not None
    assert plan.largest.rows == 64


def test_no_more_slots_are_filled_than_memory_allows(checkpoint: Checkpoint) -> None:
    limits = limits_of(limits_of(has_slots=True).memory.estimate(5, 9, SamplingParams()).total, has_slots=True)
    plan = forecast(checkpoint, requests_of([of_length(9)] * 40), limits, kind_of(True))
    assert plan.largest is not None
    assert (plan.largest.rows, plan.largest.memory.total) == (5, limits.budget_bytes)


def test_a_slot_never_waits(checkpoint: Checkpoint) -> None:
    plan = forecast_of(checkpoint, [9] * 7, num_rows=2, has_slots=True, max_new_tokens=11)
    assert plan.decode_work == 70 + 35 * 48  # 7 rows of 10 steps, two at a time


def test_no_row_ends_before_its_own_steps(checkpoint: Checkpoint) -> None:
    requests = [
        replace(r, sampling=SamplingParams(max_new_tokens=n)) for r, n in zip(requests_of("ab"), (2, 41), strict=True)
    ]
    plan = forecast(checkpoint, requests, limits_of(has_slots=True), kind_of(True))
    assert plan.decode_work == 41 + 40 * 48


def test_nothing_in_slots_takes_nothing(checkpoint: Checkpoint) -> None:
    plan = forecast_of(checkpoint, [], has_slots=True)
    assert (plan.largest, plan.decode_work, plan.planned.batches) == (None, 0, 0)


# The command.


def plan(*args: str | Path, env: dict[str, str] | None = None) -> Result:
    result = CliRunner().invoke(app, ["plan", "--model", "bundled", *map(str, args)], env=env)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("My dog is\n\nIt will rain in the\n" + of_length(1000) + "\n")
    return path


def test_the_screen_names_everything(prompts: Path, tmp_path: Path) -> None:
    result = plan(prompts, env={"COLUMNS": "80", "XDG_CACHE_HOME": str(tmp_path)})
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0] == "3 rows, 1 blank line skipped, 1,008 prompt tokens, model bundled, cpu, float32"
    assert max(map(len, lines)) <= 80
    for expected in (
        "Tokens per prompt", "planned    in input order", "prefills",
        "Memory with 2 slots filled, prompts of up to 5 tokens", "packed output", "KV cache", "left by ",
        "for the slots", "1 row cannot run", f"{prompts}:4:", "unknown: no run of this model",
    ):  # fmt: skip
        assert expected.replace(" ", "") in result.stdout.replace(" ", "").replace("\n", ""), expected


def test_the_screen_of_batches_speaks_of_batches(prompts: Path) -> None:
    result = plan(prompts, "--engine", "reference", env={"COLUMNS": "80"})
    for expected in ("batches ", "Memory of the largest batch, 2 rows of 5 columns", "for a batch"):
        assert expected in result.stdout
    assert "slots" not in result.stdout
    assert "packed" not in result.stdout


@pytest.mark.parametrize(
    ("options", "engine"),
    [([], "continuous"), (["--engine", "reference"], "reference"), (["--num-beams", "2"], "reference")],
    ids=str,
)
def test_the_plan_is_for_the_engine_that_would_run(options: list[str], engine: str) -> None:
    result = plan("-p", "My dog is", "--json", *options)
    assert json.loads(result.stdout)["engine"] == engine
    assert result.stderr == ""


def test_an_engine_that_does_not_apply_is_refused() -> None:
    result = plan("-p", "My dog is", "--engine", "continuous", "--num-beams", "2")
    assert result.exit_code == 2
    assert "it has no beam search" in result.stderr


def test_a_tied_output_layer_counts_again_where_it_may_be_packed() -> None:
    slots, batches = (json.loads(plan("-p", "x", "--json", "--engine", name).stdout) for name in ("auto", "reference"))
    assert (slots["weights_bytes"], batches["packed_bytes"]) == (batches["weights_bytes"], 0)
    assert 0 < slots["packed_bytes"] < slots["weights_bytes"]


def test_json_has_every_fact(prompts: Path, tmp_path: Path) -> None:
    facts = json.loads(plan(prompts, "--json", env={"XDG_CACHE_HOME": str(tmp_path)}).stdout)
    assert (facts["rows"], facts["blank_lines"], facts["num_bad_rows"]) == (3, 1, 1)
    assert facts["planned"] == {"batches": 1, "columns": 10, "pads": 2, "share": 0.2}
    assert facts["largest"]["memory"]["total"] > facts["largest"]["memory"]["kv_cache"] > 0
    assert facts["weights_bytes"] > 40_000_000
    assert facts["bounds"][0]["available_bytes"] == facts["available_bytes"] > facts["batch_budget_bytes"]
    assert facts["bad_rows"][0]["num_prompt_tokens"] == 1000
    assert facts["seconds"] is None


def test_a_plan_needs_no_weights(tmp_path: Path, folders: dict[str, Path]) -> None:
    for file in folders["llama"].iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    facts = json.loads(plan("-p", "My dog is", "--model", tmp_path, "--json").stdout)
    network = open_model(str(folders["llama"]), device="cpu").network  # its own: engines pack shared ones
    assert facts["weights_bytes"] == sum(weight.nbytes for weight in network.parameters())


def test_the_users_own_bound_is_named(prompts: Path) -> None:
    facts = json.loads(plan(prompts, "--memory", "50%", "--json").stdout)
    assert facts["bounds"][0]["name"] == "--memory 50%"
    assert facts["available_bytes"] <= facts["bounds"][1]["available_bytes"] // 2 + 1


def test_a_time_is_known_after_a_run(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchgen.machine.speeds.LEAST_TELLING_S", 0)
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = ["run", "-p", "My dog is", "--model", "bundled", "--max-new-tokens", "3", "--quiet"]
    CliRunner().invoke(app, command, env=env)
    assert not (tmp_path / "cache" / "batchgen" / "speeds.json").exists()  # without -o no speed is kept
    CliRunner().invoke(app, [*command, "-o", str(tmp_path / "out.jsonl")], env=env)
    assert json.loads(plan(prompts, "--json", env=env).stdout)["seconds"] > 0
    assert "at most" in plan(prompts, env=env).stdout


def test_the_slots_are_those_that_bench_found_best(tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    write_settings(Settings(rows=2, tokens_per_s=1.0, date=""), "bundled", "cpu", "float32", env)
    facts = json.loads(plan("-p", "one", "-p", "two", "-p", "three", "--json", env=env).stdout)
    assert facts["largest"]["rows"] == 2


def test_nothing_to_plan_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    result = plan(tmp_path / "empty.txt")
    assert result.exit_code == 0
    assert "0 rows, 1 blank line skipped" in result.stdout
    assert "nothing to do" in result.stdout


def test_contradictory_options_are_refused(prompts: Path) -> None:
    result = plan(prompts, "--top-p", "0.9")
    assert result.exit_code == 2
    assert "--top-p 0.9 needs --temperature above 0" in result.stderr
