from __future__ import annotations

from batchgen.formats.rows import Row, to_requests
from batchgen.formats.seen_ids import Occurrences, SeenIds
from batchgen.records import RowId, SamplingParams


def counted(*ids: RowId | None) -> list[int]:
    counts = Occurrences()
    return [counts.next(index, row_id) for index, row_id in enumerate(ids)]


def test_ids_are_compared_also_where_they_are_odd() -> None:
    seen = SeenIds()
    ids = ["", "\0", "a", "a ", "\ud800", "\udfff", "é", "e\u0301"]
    assert [seen.place_of(custom_id, f"x:{n}") for n, custom_id in enumerate(ids)] == [None] * len(ids)
    assert [seen.place_of(custom_id, "later") for custom_id in ids] == [f"x:{n}" for n in range(len(ids))]


def test_each_row_of_an_id_has_its_own_number() -> None:
    assert counted("a", "b", "a", "a", "b", "") == [0, 0, 1, 2, 1, 0]


def test_ids_that_are_written_the_same_are_the_same() -> None:
    assert counted("7", 7, 7.0, "7.0") == [0, 1, 0, 1]


def test_a_row_without_an_id_goes_by_its_index_on_both_sides_of_it() -> None:
    assert counted(None, None, "1", "01", "4", None, None) == [0, 0, 1, 0, 0, 0, 0]
    assert counted("1", None, None, "2", "3") == [0, 1, 0, 1, 0]


def test_rows_without_ids_keep_nothing() -> None:
    counts = Occurrences()
    assert not any(counts.next(index, None) for index in range(1000))
    assert counts._counts is None


def test_a_row_that_fails_is_counted_too() -> None:
    rows = [Row("x", "a"), Row("", "a", error="broken"), Row("x", "a")]
    assert [request.occurrence for request in to_requests(rows, SamplingParams())] == [0, 1, 2]


def test_numbers_too_long_for_an_index_are_ids_like_any_other() -> None:
    assert counted(None, "9" * 400, "9" * 400, "²", "²") == [0, 0, 1, 0, 1]
