"""`bench`: what is swept, what is concluded, printed and kept. Uses a fake lab and a fake clock, except for one run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner, Result

import batchgen.bench
import batchgen.bench.ceilings
from batchgen.bench import Plan, keep, make_plan, measure
from batchgen.bench.advice import find_best, find_gain, recommend, where_it_stops
from batchgen.bench.ceilings import linear_sizes, matmul_gflops, measure_ceiling
from batchgen.bench.facts import BenchReport, Best, Ceiling, Gain, Point, Sample, Task
from batchgen.bench.sweep import MOST_RUNS, NoMemoryError, sweep
from batchgen.bench.workload import differing_share, make_rows, ragged_lengths, word_rows
from batchgen.cli import app
from batchgen.cli.bench import parse_rows
from batchgen.engines import finish_all, make_engine
from batchgen.engines.int8.support import why_no_int8
from batchgen.errors import ModelError, UsageError
from batchgen.machine.speeds import kept_rows, read_gain, read_speed
from batchgen.model import Checkpoint, Model
from batchgen.records import EngineOptions
from batchgen.render.bench import print_report, round_up
from tests.support.processes import PATIENCE_S

CEILING = Ceiling("float32", gflops=100.0, gbytes_per_s=10.0, flops_per_token=20_000_000, bytes_per_step=40_000_000)
PLAN = Plan("some/model", "cpu", ("float32",), ("continuous",), (1, 8, 32, 64, 128), 128, 32, 60.0)
COMMAND = sys.modules["batchgen.cli.bench"]  # the package exports the function under this name
# Tokens/s by rows: more than 64 gain nothing.
RATES = {1: 100.0, 8: 600.0, 32: 1500.0, 64: 1980.0, 128: 2000.0}
TIMES = {"float32": 1.0, "bfloat16": 2.0, "int8 and float32": 2.5, "int8 and bfloat16": 3.0}


class FakeLab:
    """Rows run at `RATES`, some dtypes faster by `TIMES`, `reference` half as fast; time passes only in here."""

    def __init__(self, clock: FakeClock, dtype: str, engine: str) -> None:
        self.clock = clock
        self.dtype = dtype
        self.times = TIMES[dtype] * (0.5 if engine == "reference" else 1.0)

    def run(self, task: Task) -> Sample:
        seconds = 32 * task.rows / (RATES[task.rows] * self.times)
        self.clock.now += seconds
        return Sample(32 * task.rows, seconds, 32 * task.rows, seconds / 4, seconds / 2, 1000)

    def ceiling(self) -> Ceiling:
        return replace(CEILING, dtype=self.dtype)

    def answer_words(self) -> list[list[int]]:
        return [[1, 2, 3, 4], [5, 6] if self.dtype == "float32" else [5, 7]]


class FakeClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def measured(**changes: Any) -> BenchReport:
    clock = FakeClock()
    return measure(replace(PLAN, **changes), lambda dtype, engine: FakeLab(clock, dtype, engine), clock=clock)


BOTH = {"dtypes": ("float32", "bfloat16"), "engines": ("continuous", "reference")}


# Workloads.


def test_fixed_rows_are_alike_and_hold_no_eos(checkpoint: Checkpoint) -> None:
    rows = make_rows("fixed", 5, 16, checkpoint)
    assert [row.num_prompt_tokens for row in rows] == [32] * 5
    assert not {token for row in rows for token in row.input_ids} & checkpoint.eos_token_ids
    assert [row.input_ids for row in rows] == [row.input_ids for row in make_rows("fixed", 5, 16, checkpoint)]


@pytest.mark.parametrize("num_rows", [2, 16, 256])
def test_ragged_lengths_have_the_same_spread_however_few(num_rows: int) -> None:
    prompts, outputs = zip(*ragged_lengths(num_rows, 32), strict=True)
    assert min(prompts) >= 3
    assert max(prompts) <= 200
    assert mean(outputs) == pytest.approx(32.5, abs=0.5)
    assert max(outputs) <= 64


@pytest.mark.parametrize("engine", ["reference", "continuous"])
def test_rows_end_where_the_workload_says_on_every_engine(bundled: Model, engine: str) -> None:
    rows = make_rows("ragged", 2, 3, bundled.checkpoint)
    endless = replace(bundled, checkpoint=replace(bundled.checkpoint, eos_token_ids=frozenset()))
    runs = make_engine(endless, EngineOptions(engine, batch_size=2))
    assert len(list(finish_all(runs, rows))) == len(rows)
    assert [row.num_output_tokens for row in rows] == [end for _, end in ragged_lengths(len(rows), 3)]


def test_a_model_without_room_for_the_rows_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(UsageError, match="leaves no room for prompts"):
        make_rows("fixed", 1, 1000, checkpoint)


def test_the_words_are_thirty_two_prompts(checkpoint: Checkpoint) -> None:
    prompts = [row.request.prompt for row in word_rows(4, checkpoint)]
    assert len(set(prompts)) == 32


def test_what_follows_a_difference_differs() -> None:
    assert differing_share([[1, 2, 3, 4], [5, 6]], [[1, 2, 9, 4], [5]]) == pytest.approx(3 / 6)
    assert differing_share([[1]], [[1]]) == 0


# The sweep.


def test_all_points_run_in_turn_as_often_as_time_allows() -> None:
    seen: list[Task] = []
    clock = FakeClock()
    tasks = replace(PLAN, rows=(1, 8)).tasks("float32", "continuous")
    points = sweep(tasks, FakeLab(clock, "float32", "continuous").run, 100, clock=clock, on_task=seen.append)
    assert seen == tasks * MOST_RUNS
    assert [point.rate for point in points] == pytest.approx([100.0, 100.0, 600.0, 600.0])


def test_what_would_take_too_long_is_left_out() -> None:
    points = measured(seconds=3.2).points
    assert [point.task.rows for point in points if point.rate] == [1, 1, 8, 8, 32, 32]
    assert {point.problem for point in points if not point.rate} == {"no time"}


def test_a_point_that_fails_is_told_and_the_rest_goes_on() -> None:
    def run(task: Task) -> Sample:
        if task.rows == 8:
            raise ModelError("the model failed")
        if task.rows == 32:
            raise NoMemoryError("out of memory with 32 rows")
        if task.rows == 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Sample(100, 1.0)

    points = sweep(PLAN.tasks("float32", "continuous"), run, 100, clock=FakeClock())
    problems = {point.task.rows: point.problem for point in points}
    assert problems == {1: None, 8: "ModelError: the model failed", 32: "memory", 64: "memory", 128: None}


def test_ctrl_c_is_no_point() -> None:
    def run(task: Task) -> Sample:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(PLAN.tasks("float32", "continuous"), run, 100)


def test_a_dtype_that_does_not_load_leaves_the_others() -> None:
    clock = FakeClock()

    def open_lab(dtype: str, engine: str) -> FakeLab:
        if dtype == "bfloat16":
            raise ModelError("the weights need more")
        return FakeLab(clock, dtype, engine)

    report = measure(replace(PLAN, dtypes=BOTH["dtypes"]), open_lab, clock=clock)
    assert report.recommended
    assert report.recommended.rows == 64
    assert report.gain is None
    assert {p.problem for p in report.points if p.task.dtype == "bfloat16"} == {"ModelError: the weights need more"}


# The advice.


def best_of(rates: dict[int, float | None], most_rows: int = 128) -> Best | None:
    points = [
        Point(
            Task("float32", "continuous", workload, rows), *([(Sample(int(rate), 1.0),)] if rate else [(), "no time"])
        )
        for rows, rate in rates.items()
        for workload in ("fixed", "ragged")
    ]
    return find_best(points, "float32", "continuous", most_rows)


def test_the_fewest_rows_within_three_percent_are_best() -> None:
    best = best_of({1: 100, 8: 900, 64: 1990, 128: 2000})
    assert best == Best("float32", "continuous", 64, pytest.approx(1990), pytest.approx(100), 128)
    assert best.times == pytest.approx(19.9)
    assert where_it_stops(best).startswith(
        "batching stops paying off at 64 rows, 19.9 times as fast as one row at a time"
    )


def test_where_batching_does_not_pay_it_says_so() -> None:
    best = best_of({1: 100, 8: 90})
    assert best
    assert where_it_stops(best).startswith("batching does not pay off here")


@pytest.mark.parametrize(("most_rows", "is_settled"), [(8, True), (128, False)])
def test_the_most_rows_tried_are_settled_where_no_more_may_be_taken(most_rows: int, is_settled: bool) -> None:
    best = best_of({1: 100, 8: 900, 64: None}, most_rows)
    assert best
    assert (best.rows, best.is_settled, best.had_time) == (8, is_settled, False)
    assert "still paid off at the largest batch size measured, 8" in where_it_stops(best)
    assert best.is_known == is_settled
    advice = recommend([best], None)
    said = "(larger batches need more --seconds)" if is_settled else "no advice: there was time for 8 rows at most"
    assert said in advice
    assert advice.startswith("use ") == is_settled


def test_nothing_measured_is_said() -> None:
    assert best_of({1: None}) is None
    assert recommend([], None).startswith("nothing could be measured")


def test_float32_is_recommended_and_what_bfloat16_would_gain_is_said() -> None:
    report = measured(**BOTH, seconds=600.0)
    assert report.gain == Gain(pytest.approx(2.0), pytest.approx(1 / 6))
    assert report.advice == (
        "use --engine continuous --dtype float32 --batch-size 64, for about 1,980 tokens/s; "
        "--dtype bfloat16 is 2.0 times as fast, and changes 17% of greedy tokens"
    )


def test_a_bfloat16_that_gains_nothing_is_not_advised() -> None:
    best = best_of({1: 100})
    assert best
    assert recommend([best], Gain(0.9, 0.5)).endswith("; bfloat16 is no faster here")
    assert find_gain([best], {"bfloat16": 0.5}, "bfloat16") is None


def test_a_bfloat16_that_was_left_out_is_explained() -> None:
    best = best_of({1: 100})
    assert best
    assert recommend([best], None, 0.31).endswith(
        "; bfloat16 was skipped: its matrix products run at 0.31 of float32's speed here"
    )
    assert "bfloat16" not in recommend([best], None)


# Ceilings.


def test_each_linear_layer_counts_once(bundled: Model) -> None:
    network = SimpleNamespace(modules=lambda: iter([torch.nn.Linear(3, 5), torch.nn.Embedding(9, 9)]))
    assert linear_sizes(network) == (15, 60)  # type: ignore[arg-type]


def test_the_ceiling_is_the_lower_one() -> None:
    assert (CEILING.matmul_rate, CEILING.bandwidth_rate(4)) == (5000.0, 1000.0)
    assert (CEILING.rate(4), CEILING.rate(100)) == (1000.0, 5000.0)


def test_the_matmul_rate_is_of_the_models_own_layer(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batchgen.bench.ceilings, "_fastest", lambda work, device, clock: 0.001)
    rate = matmul_gflops("float32", checkpoint.config, torch.device("cpu"))
    num_in = checkpoint.config.hidden_size
    assert rate == pytest.approx(2 * 128 * num_in * 4 * num_in / 0.001 / 1e9)


# The plan.


def test_auto_sweeps_bfloat16_where_it_is_fast(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    for rate, dtypes, told in ((300.0, ("float32", "bfloat16"), None), (110.0, ("float32",), 1.1)):
        rates = {"float32": 100.0, "bfloat16": rate}
        monkeypatch.setattr(batchgen.bench.ceilings, "matmul_gflops", lambda dtype, *_, rates=rates: rates[dtype])
        plan = make_plan(checkpoint, device="cpu")
        assert (plan.dtypes, plan.bfloat16_ratio) == (dtypes, told)
        assert (plan.engines, plan.rows) == (("continuous", "reference"), (1, 8, 32, 64, 128))


def test_the_rows_of_the_command_line() -> None:
    assert (parse_rows("1, 64"), parse_rows("auto")) == ((1, 64), ())
    for wrong in ("", "0", "1,x", "-1", "5000", ",".join("1" * 13)):
        with pytest.raises(UsageError, match="--rows"):
            parse_rows(wrong)


# What is kept.


def test_the_next_run_finds_rows_and_speed_and_doctor_the_gain(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    report = keep(measured(**BOTH, seconds=600.0), environ)
    assert report.kept
    assert kept_rows("some/model", "cpu", "float32", environ) == 64
    assert kept_rows("some/model", "cuda", "float32", environ) is None
    speed = read_speed("some/model", "cpu", "float32", "continuous", environ)
    assert speed
    assert speed.prefill_per_s == pytest.approx(4 * 1980)
    gain = read_gain("cpu", environ)
    assert gain
    assert (gain.model, gain.times) == ("some/model", pytest.approx(2.0))


def test_a_sweep_cut_short_is_not_kept(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    assert not keep(measured(seconds=3.2), environ).kept
    assert kept_rows("some/model", "cpu", "float32", environ) is None


def test_auto_takes_the_kept_rows(bundled: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep(replace(measured(seconds=600.0), model="bundled"))
    assert make_engine(bundled, EngineOptions("continuous")).wants_rows == 64
    assert make_engine(bundled, EngineOptions("continuous", batch_size=5)).wants_rows == 5


# The screen.


def drawn(report: BenchReport, width: int = 80) -> list[str]:
    console = Console(file=StringIO(), width=width)
    print_report(console, report, [report.advice])
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_it_fits_eighty_columns_with_every_rate_and_both_ceilings() -> None:
    lines = drawn(measured(**BOTH, seconds=600.0))
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for part in ("1,980", "3,960", "990", "─── matmul 100 GFLOP/s", "··· reads 10 GB/s"):
        assert part in text
    assert len([line for line in lines if line.startswith("Against rows")]) == 2


def test_a_taller_bar_is_a_higher_rate() -> None:
    lines = [line for line in drawn(measured(seconds=600.0)) if "│" in line]
    heights = [sum(line[9:].ljust(60)[12 * n + 3] in "▁▂▃▄▅▆▇█" for line in lines) for n in range(5)]
    assert heights == sorted(heights)
    assert heights[0] < heights[2] < heights[4]


def test_problems_are_named_in_the_table_and_below() -> None:
    report = measured(seconds=3.2)
    failed = replace(report.points[0], samples=(), problem="ModelError: it is \x1b[31mbroken")
    text = "\n".join(drawn(replace(report, points=(failed, *report.points[1:]))))
    assert "no time" in text
    assert "failed" in text
    assert "continuous, float32, 1 row, fixed: ModelError: it is \\x1b[31mbroken" in text


@pytest.mark.parametrize("number", [1, 12])
def test_any_number_of_rows_fits(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuple(range(1, number + 1))
    monkeypatch.setattr(sys.modules[__name__], "RATES", {n: 100.0 * n for n in rows})
    assert max(map(len, drawn(measured(rows=rows, seconds=600.0)))) <= 80


def test_the_axis_has_round_numbers() -> None:
    assert [round_up(value) for value in (1.0, 1.1, 8.1, 2539 / 9)] == [1.0, 1.5, 10.0, 300.0]


# Quantized layers.


def test_quantised_layers_are_measured_in_slots_beside_each_dtype() -> None:
    report = measured(**BOTH, quantize="int8", seconds=600.0)
    parts = {(point.task.dtype, point.task.engine) for point in report.points}
    quantised = {("int8 and float32", "continuous"), ("int8 and bfloat16", "continuous")}
    assert parts == quantised | {(dtype, engine) for dtype in BOTH["dtypes"] for engine in BOTH["engines"]}
    assert report.quantised == Gain(pytest.approx(3.0), pytest.approx(1 / 6), "int8 and bfloat16")
    assert report.bests[0].dtype == "float32"
    assert report.advice.endswith(
        "--dtype bfloat16 --quantize int8 is 3.0 times as fast, and changes 17% of greedy tokens"
    )
    assert (report.summary()["quantized"], report.summary()["quantized_times"]) == ("int8 and bfloat16", 3.0)


def test_without_float32_the_fastest_is_recommended_with_its_flags() -> None:
    report = measured(dtypes=("bfloat16",), quantize="int8", seconds=600.0)
    assert report.quantised is None
    assert "--dtype bfloat16 --quantize int8 --batch-size 64" in report.advice


def test_the_best_rows_of_quantised_layers_are_their_own(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    keep(measured(quantize="int8", seconds=600.0), environ)
    assert kept_rows("some/model", "cpu", "int8 and float32", environ) == 64
    assert read_speed("some/model", "cpu", "int8 and float32", "continuous", environ)


def test_int8_has_ceilings_of_its_own(bundled: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    if why_no_int8("cpu"):
        pytest.skip("this processor multiplies no 8-bit integers")
    monkeypatch.setattr(batchgen.bench.ceilings, "MEASURE_S", 0.001)
    ceiling = measure_ceiling("int8 and bfloat16", (1000, 4000), bundled.checkpoint.config, bundled.device)
    assert (ceiling.dtype, ceiling.bytes_per_step) == ("int8 and bfloat16", 1000)
    assert ceiling.gflops > 0


# The command.


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", "--model", "bundled", "--device", "cpu", *arguments])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(COMMAND, "measure", lambda plan, open_lab, on_task: measured(seconds=600.0))


@pytest.mark.usefixtures("fake")
def test_the_last_line_is_json() -> None:
    result = bench("--dtype", "float32")
    assert (result.exit_code, result.stderr) == (0, "")
    settings = json.loads(result.stdout.splitlines()[-1])
    assert (settings["rows"], settings["tokens_per_s"], settings["kept"]) == (64, 1980.0, True)
    assert "batching stops paying off at 64 rows" in " ".join(result.stdout.split())


@pytest.mark.usefixtures("fake")
def test_json_is_one_line_with_all_points() -> None:
    [line] = bench("--dtype", "float32", "--json").stdout.splitlines()
    facts = json.loads(line)
    assert [point["rows"] for point in facts["points"]] == [1, 1, 8, 8, 32, 32, 64, 64, 128, 128]
    assert facts["ceilings"][0]["gflops"] == 100.0


def test_where_nothing_runs_it_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    empty = replace(measured(), points=(), bests=())
    monkeypatch.setattr(COMMAND, "measure", lambda plan, open_lab, on_task: empty)
    assert bench("--dtype", "float32", "--json").exit_code == 1


def test_ctrl_c_ends_it_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> BenchReport:
        raise KeyboardInterrupt

    monkeypatch.setattr(COMMAND, "measure", interrupted)
    result = bench("--dtype", "float32")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize("arguments", [("--rows", "x"), ("--device", "toaster"), ("--max-new-tokens", "1000")], ids=str)
def test_what_makes_no_sense_is_one_line(arguments: tuple[str, str]) -> None:
    result = bench(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("batchgen: error: ")


def test_help_loads_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was loaded')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from batchgen.cli import app; app(['bench', '--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Measure engines, dtypes and batch sizes" in done.stdout


def test_a_small_bench_of_the_bundled_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(batchgen.bench.ceilings, "MEASURE_S", 0.001)
    result = bench("--dtype", "float32", "--rows", "1,2", "--max-new-tokens", "2", "--seconds", "1", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    facts = json.loads(result.stdout)
    assert {point["engine"] for point in facts["points"]} == {"continuous", "reference"}
    assert {point["tokens_per_s"] is not None for point in facts["points"] if point["rows"] == 1} == {True}
    assert facts["ceilings"][0]["matmul_tokens_per_s"] > 0
