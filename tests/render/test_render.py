from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from batchgen.records import Result, RunStats
from batchgen.render.grid import GridLine, column_widths, elide, fold_grid
from batchgen.render.progress import ProgressReport
from batchgen.render.screen import Screen, overrun, summary
from batchgen.render.table import ResultTable
from batchgen.runs.pace import Pace
from batchgen.text import escape
from tests.support.models import EOS


def result_of(index: int = 0, num_tokens: int = 3, padded_length: int | None = 5, **changes: object) -> Result:
    values: dict[str, object] = {
        "index": index, "id": str(index), "sample_index": 0, "prompt": f"prompt {index}", "text": f" text {index}",
        "finish_reason": "length", "num_prompt_tokens": num_tokens, "num_output_tokens": 2, "error": None,
        "metadata": {}, "model": "bundled", "input_ids": tuple(range(num_tokens)), "output_ids": (1, 2),
        "batch_index": 0, "padded_length": padded_length,
    }  # fmt: skip
    return Result(**(values | changes))  # type: ignore[arg-type]


def table_of(*results: Result, width: int = 80, all_ids: bool = False) -> list[str]:
    stream = StringIO()
    ResultTable(Console(file=stream, width=width), EOS, all_ids=all_ids).write(results)
    return stream.getvalue().splitlines()


# The table.


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize("num_columns", [1, 8, 16])
def test_rows_up_to_sixteen_columns_print_every_id(num_columns: int, width: int) -> None:
    ids = tuple(range(1000, 1000 + num_columns))
    result = result_of(num_tokens=num_columns, padded_length=num_columns, input_ids=ids)
    text = "\n".join(table_of(result, width=width))
    assert all(str(i) in text for i in ids)


def test_wider_rows_are_elided_in_the_middle_and_keep_their_counts() -> None:
    text = "\n".join(table_of(result_of(num_tokens=100, padded_length=123)))
    assert "23 pads + 100 tokens = 123 columns; 2 new (length)" in text
    assert "…" in text
    assert " 99 " in text
    assert " 50 " not in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_line_has_the_width_of_the_terminal(width: int) -> None:
    results = [result_of(i, num_tokens=i + 1, padded_length=30, text=" word" * 60) for i in range(25)]
    assert {len(line) for line in table_of(*results, width=width)} == {width}


def test_after_twenty_rows_only_continuations_are_printed() -> None:
    lines = table_of(*(result_of(i) for i in range(22)))
    assert sum("input_ids" in line for line in lines) == 20
    assert any("text 21" in line for line in lines)


def test_ids_of_all_rows_can_be_asked_for() -> None:
    assert sum("input_ids" in line for line in table_of(*(result_of(i) for i in range(22)), all_ids=True)) == 22


def test_the_table_has_one_top_and_one_bottom() -> None:
    lines = table_of(result_of(0), result_of(1))
    assert [line[0] for line in lines if line[0] in "╭╰"] == ["╭", "╰"]
    assert lines[0][0] == "╭"
    assert lines[-1][0] == "╰"


def test_no_rows_draw_nothing() -> None:
    assert table_of() == []


def test_an_error_stands_in_place_of_the_text() -> None:
    failed = result_of(padded_length=None, finish_reason="error", error="too long", text="")
    assert "error: too long" in "\n".join(table_of(failed))


def test_what_a_constraint_forced_is_marked() -> None:
    result = result_of(text='{"a":7}', forced=((0, 5), (6, 7)))
    stream = StringIO()
    ResultTable(Console(file=stream, width=160, force_terminal=True, color_system="standard"), EOS).write([result])
    assert "6 characters forced" in stream.getvalue()
    assert '\x1b[2;32m{"a":' in stream.getvalue()
    assert "\x1b[1;32m7" in stream.getvalue()


def test_a_long_prompt_shows_its_end() -> None:
    lines = table_of(result_of(prompt="x" * 500 + " the end"))
    assert len(lines) < 12
    assert "the end" in "".join(lines)


def test_markup_in_a_prompt_is_text() -> None:
    assert "[/foo][red]a" in "".join(table_of(result_of(prompt="[/foo][red]a")))


# Escaping.


@given(st.text())
def test_nothing_dangerous_survives_escaping(text: str) -> None:
    import unicodedata

    bad = [c for c in escape(text) if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"]
    assert bad == []


def test_ordinary_text_is_left_alone() -> None:
    assert escape("naïve 日本 🐕\n\ttabs") == "naïve 日本 🐕\n\ttabs"


# Grids.


def line_of(cells: list[str]) -> GridLine:
    return GridLine("label", cells, [""] * len(cells))


@given(st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=40), st.integers(6, 60))
def test_folds_fit_and_keep_every_cell(cells: list[str], width: int) -> None:
    line = line_of(cells)
    texts = [text.plain for _, text in fold_grid([line], column_widths([line]), width)]
    assert all(len(text) <= width for text in texts)
    assert " ".join(texts).split() == cells


def test_folds_are_even() -> None:
    line = line_of(["12345"] * 16)
    assert [len(text.plain.split()) for _, text in fold_grid([line], [5] * 16, 59)] == [8, 8]


def test_columns_of_wide_characters_line_up() -> None:
    lines = [line_of(["日本", "b"]), line_of(["a", "b"])]
    widths = column_widths(lines)
    assert widths == [4, 1]
    assert [text.cell_len for _, text in fold_grid(lines, widths, 40)] == [6, 6]


def test_eliding_keeps_both_ends() -> None:
    assert elide(line_of([str(i) for i in range(30)]), 6).cells == ["0", "1", "…", "27", "28", "29"]


# Progress and summary.


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def progress_of(
    clock: Clock, *, quiet: bool = False, as_json: bool = False, unit: str = "row", num_kept: int = 0
) -> tuple[ProgressReport, StringIO]:
    stream = StringIO()
    screen = Screen(quiet=quiet, as_json=as_json, console=Console(file=stream))
    return ProgressReport(screen, 10, max_new_tokens=4, clock=clock, unit=unit, num_kept=num_kept), stream


def test_a_short_run_says_nothing_on_the_way() -> None:
    clock = Clock()
    progress, stream = progress_of(clock)
    clock.now = 4.9
    progress.on_step(4)
    assert stream.getvalue() == ""


def test_a_log_gets_a_line_soon_and_then_one_a_minute() -> None:
    clock = Clock()
    progress, stream = progress_of(clock)
    clock.now = 5.0
    progress.on_step(8)
    progress.on_step(2)
    assert stream.getvalue() == "batchgen: 0:00:05: 0 of 10 rows, 2 tokens/s, about 0:00:20 left\n"
    for clock.now in range(6, 3600):
        progress.on_step(0)
    assert len(stream.getvalue().splitlines()) == 60
    assert "0:59:05: 0 of 10 rows" in stream.getvalue()


def test_samples_are_counted_as_samples() -> None:
    clock = Clock()
    progress, stream = progress_of(clock, unit="sample")
    clock.now = 5.0
    progress.on_step(10)
    assert "0 of 10 samples, 2 tokens/s" in stream.getvalue()


def test_quiet_says_nothing_even_of_a_long_run() -> None:
    clock = Clock()
    progress, stream = progress_of(clock, quiet=True)
    clock.now = 60.0
    progress.on_step(8)
    assert stream.getvalue() == ""


def test_failed_rows_are_in_the_line() -> None:
    clock = Clock()
    progress, stream = progress_of(clock, num_kept=3)
    clock.now = 5.0
    progress.on_result(result_of(error="x.txt:1: the prompt is empty", num_output_tokens=0))
    assert "4 of 13 rows, 1 failed, 0 tokens/s, about 0:00:45 left" in stream.getvalue()


def test_the_first_tokens_after_compiling_say_nothing_of_the_time_left() -> None:
    clock = Clock()
    pace = Pace(max_new_tokens=100, clock=clock)
    pace.begin(10, 0)
    clock.now = 60.0
    pace.on_step(10)
    assert pace.seconds_left is None
    clock.now = 64.0
    pace.on_step(40)
    assert pace.seconds_left == pytest.approx(64 * 19)
    pace.on_result(result_of(num_output_tokens=5))
    assert pace.seconds_left == pytest.approx(64 * (1000 - 145) / 145)


def test_json_is_an_object_a_second_and_a_last_one() -> None:
    clock = Clock()
    progress, stream = progress_of(clock, as_json=True, num_kept=3)
    with progress:
        for tenths in range(25):
            clock.now = tenths / 10
            progress.on_step(1)
        for _ in progress.track([result_of()] * 10):
            pass
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [round(event["elapsed_s"], 1) for event in events] == [0, 1, 2, 2.4]
    assert {event["event"] for event in events} == {"progress"}
    assert events[1] | {"done": 3, "total": 13, "kept": 3, "failed": 0, "unit": "row", "new_tokens": 11} == events[1]
    assert (events[-1]["done"], events[-1]["seconds_left"]) == (13, 0)


def test_what_is_said_to_programs_is_json_too() -> None:
    stream = StringIO()
    screen = Screen(as_json=True, console=Console(file=stream, force_terminal=True))
    screen.say("wrote out.jsonl")
    screen.error("2 of 3 rows failed")
    said = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert said == [{"event": "message", "text": "wrote out.jsonl"}, {"event": "error", "text": "2 of 3 rows failed"}]
    assert not screen.is_live


def test_the_summary_says_what_was_done() -> None:
    stats = RunStats(
        rows=1200, errors=2, blank_lines=1, batches=20, prompt_tokens=900, output_tokens=3000, pad_tokens=100,
        prefill_s=1.0, decode_s=2.0, wall_s=4.0, peak_bytes=1,
    )  # fmt: skip
    assert summary(stats, "gpt2", "continuous on cpu (2 threads)", "float32") == (
        "1,200 rows, 2 errors, 1 blank line skipped, 900 prompt + 3,000 new tokens, 1,000.0 tokens/s, padding 10%, "
        "20 batches, model gpt2, float32, continuous on cpu (2 threads), 4.0 s"
    )


def stats_of(**changes: Any) -> RunStats:
    counts = dict.fromkeys(("rows", "errors", "blank_lines", "batches", "prompt_tokens", "output_tokens"), 0)
    times: dict[str, Any] = {"pad_tokens": 0, "prefill_s": 0.0, "decode_s": 0.0, "wall_s": 0.0, "peak_bytes": 0}
    return RunStats(**counts | times | changes)


def test_a_long_run_s_time_is_in_hours() -> None:
    assert summary(stats_of(wall_s=11_107.2), "gpt2", "reference on cpu", "float32").endswith(", 3:05:07")


MIB = 1 << 20


@pytest.mark.parametrize(
    ("predicted", "measured", "is_remarked"),
    [(31, 142, True), (31, 60, False), (1000, 1100, False), (1000, 1300, True), (31, None, False), (0, 900, False)],
)
def test_a_peak_far_beyond_the_prediction_is_remarked(predicted: int, measured: int | None, is_remarked: bool) -> None:
    peak = None if measured is None else measured * MIB
    remark = overrun(stats_of(predicted_batch_bytes=predicted * MIB, measured_batch_bytes=peak))
    assert (remark is not None) == is_remarked


def test_the_summary_has_the_peak_beside_its_prediction() -> None:
    stats = stats_of(predicted_batch_bytes=31 * MIB, measured_batch_bytes=30 * MIB)
    assert "peak 30 MiB (predicted 31 MiB)" in summary(stats, "gpt2", "reference on cpu", "float32")


def test_rows_are_counted_on_a_terminal_as_they_pass() -> None:
    stream = StringIO()
    screen = Screen(console=Console(file=stream, force_terminal=True))
    with screen.waiting("planning") as waiting:
        assert list(waiting.counted(iter(range(600)), "planning")) == list(range(600))
    assert "planning: 512 rows" in stream.getvalue()


def test_elsewhere_nothing_is_said_of_them() -> None:
    stream = StringIO()
    with Screen(console=Console(file=stream)).waiting("planning") as waiting:
        assert len(list(waiting.counted(range(600), "planning"))) == 600
    assert stream.getvalue() == ""
