from __future__ import annotations

from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from batchgen.records import Result, RunStats
from batchgen.render.grid import GridLine, column_widths, elide, fold_grid
from batchgen.render.progress import ProgressReport
from batchgen.render.screen import Screen, summary
from batchgen.render.table import ResultTable
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


def progress_of(clock: Clock, *, quiet: bool = False) -> tuple[ProgressReport, StringIO]:
    stream = StringIO()
    screen = Screen(quiet=quiet, console=Console(file=stream))
    return ProgressReport(screen, total_rows=10, max_new_tokens=4, clock=clock), stream


def test_a_short_run_says_nothing_on_the_way() -> None:
    clock = Clock()
    progress, stream = progress_of(clock)
    clock.now = 4.9
    progress.on_step(4)
    assert stream.getvalue() == ""


def test_a_long_run_says_every_few_seconds_how_far_it_is() -> None:
    clock = Clock()
    progress, stream = progress_of(clock)
    clock.now = 5.0
    progress.on_step(8)
    progress.on_step(2)
    assert stream.getvalue() == "batchgen: 0 of 10 rows, 2 tokens/s, about 20 s left\n"
    clock.now = 10.0
    progress.on_result(result_of())
    assert len(stream.getvalue().splitlines()) == 2


def test_quiet_says_nothing_even_of_a_long_run() -> None:
    clock = Clock()
    progress, stream = progress_of(clock, quiet=True)
    clock.now = 60.0
    progress.on_step(8)
    assert stream.getvalue() == ""


def test_the_summary_says_what_was_done() -> None:
    stats = RunStats(
        rows=1200, errors=2, blank_lines=1, batches=20, prompt_tokens=900, output_tokens=3000, pad_tokens=100,
        prefill_s=1.0, decode_s=2.0, wall_s=4.0, peak_bytes=1,
    )  # fmt: skip
    assert summary(stats, "gpt2", "continuous on cpu (2 threads)", "float32") == (
        "1,200 rows, 2 errors, 1 blank line skipped, 900 prompt + 3,000 new tokens, 1,000.0 tokens/s, padding 10%, "
        "20 batches, model gpt2, float32, continuous on cpu (2 threads), 4.0 s"
    )
