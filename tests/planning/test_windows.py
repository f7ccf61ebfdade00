"""Windows over a stream: how many rows are read before the next ones run."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.errors import InputError
from batchgen.planning.windows import Windows

PATIENT = 600.0  # seconds: no window closes before it is full, however busy the machine is
DEADLINE = 600.0  # seconds after which something that has not come is a failure


def windows(items: Iterable[Any], first: int, *options: int, **named: Any) -> Iterator[list[Any]]:
    """Yield all windows of a stream; its thread ends with the loop over them."""
    cut = Windows(items, first, *options, **named)
    try:
        yield from iter(cut.take, None)
    finally:
        cut.close()


@pytest.mark.parametrize(
    ("num_items", "sizes"),
    [(0, []), (1, [1]), (2, [2]), (3, [2, 1]), (6, [2, 4]), (14, [2, 4, 8]), (31, [2, 4, 8, 8, 8, 1])],
)
def test_windows_double_up_to_the_last(num_items: int, sizes: list[int]) -> None:
    assert [len(window) for window in windows(range(num_items), first=2, last=8, patience_s=PATIENT)] == sizes


@given(num_items=st.integers(0, 50), first=st.integers(1, 8), last=st.integers(1, 16))
def test_windows_keep_every_item_in_order(num_items: int, first: int, last: int) -> None:
    cut = list(windows(range(num_items), first, last, patience_s=PATIENT))
    assert list(itertools.chain(*cut)) == list(range(num_items))
    assert all(cut)


def test_windows_are_whole_batches_of_the_given_size() -> None:
    first = 48
    sizes = [len(window) for window in windows(range(20_000), first, patience_s=PATIENT)]
    assert [size % 48 for size in sizes[:-1]] == [0] * (len(sizes) - 1)


def test_windows_do_not_shrink() -> None:
    first = 5000
    sizes = [len(window) for window in windows(range(12_000), first, patience_s=PATIENT)]
    assert sizes == [5000, 5000, 2000]


def test_a_window_closes_when_its_items_are_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchgen.planning.windows.HEAVIEST_WINDOW", 10)
    items = [1, 1, 20, 1, 4, 4, 4, 4, 30]
    cut = list(windows(items, first=4, patience_s=PATIENT, weigh=int))
    assert list(itertools.chain(*cut)) == items
    assert cut == [[1, 1, 20], [1, 4, 4, 4], [4, 30]]


def test_no_more_is_read_ahead_than_a_window_weighs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchgen.planning.windows.HEAVIEST_WINDOW", 10)
    num_read = itertools.count()
    items = (next(num_read) * 0 + 11 for _ in range(1000))
    for number, window in enumerate(windows(items, first=1, patience_s=PATIENT, weigh=int)):
        assert window == [11]
        if number == 5:
            break
    assert next(num_read) <= 10


def test_a_source_that_falls_silent_closes_its_window() -> None:
    more = threading.Event()

    def source() -> Iterator[str]:
        yield "at once"
        assert more.wait(DEADLINE)
        yield "later"

    cut = windows(source(), first=8, patience_s=0.01)
    assert next(cut) == ["at once"]
    more.set()
    assert list(cut) == [["later"]]


def test_a_busy_reader_gets_what_is_there_even_nothing() -> None:
    more = threading.Event()

    def source() -> Iterator[str]:
        yield "at once"
        assert more.wait(DEADLINE)
        yield "later"

    cut = Windows(source(), first=1, patience_s=PATIENT)
    assert cut.take() == ["at once"]
    assert cut.take(wait=False) == []
    more.set()
    assert cut.take() == ["later"]
    assert cut.take() is None


def test_a_source_that_is_always_late_loses_nothing() -> None:
    cut = list(windows(range(100), first=2, last=2, patience_s=0))
    assert list(itertools.chain(*cut)) == list(range(100))


@pytest.mark.parametrize("error", [InputError("gone"), KeyboardInterrupt(), RuntimeError("a bug")], ids=repr)
def test_an_error_of_the_source_comes_after_the_items_before_it(error: BaseException) -> None:
    def source() -> Iterator[int]:
        yield from range(3)
        raise error

    cut = windows(source(), first=2, patience_s=PATIENT)
    assert (next(cut), next(cut)) == ([0, 1], [2])
    with pytest.raises(type(error)) as caught:
        next(cut)
    assert caught.value is error


def test_an_error_before_any_item_is_raised() -> None:
    def source() -> Iterator[int]:
        raise InputError("gone")
        yield

    with pytest.raises(InputError, match="gone"):
        next(windows(source(), first=2, patience_s=PATIENT))


def test_an_endless_source_is_read_at_most_a_window_ahead() -> None:
    taken: list[int] = []
    reader: list[threading.Thread] = []
    ahead = threading.Event()

    def source() -> Iterator[int]:
        reader.append(threading.current_thread())
        for number in itertools.count():
            taken.append(number)
            if number == 6:  # two delivered, four in the queue, one being read
                ahead.set()
            yield number

    cut = windows(source(), first=2, last=4, patience_s=PATIENT)
    assert next(cut) == [0, 1]
    assert ahead.wait(DEADLINE)
    cut.close()
    reader[0].join(DEADLINE)
    assert taken == list(range(7))


def test_the_reading_thread_ends_with_its_reader() -> None:
    reader: list[threading.Thread] = []

    def source() -> Iterator[int]:
        reader.append(threading.current_thread())
        yield from itertools.count()

    for _ in windows(source(), first=2, last=4, patience_s=PATIENT):
        break
    reader[0].join(DEADLINE)
    assert not reader[0].is_alive()
