"""Windows over a stream: how many rows are read before the next ones run."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

LAST_WINDOW = 4096
PATIENCE_S = 0.2
HEAVIEST_WINDOW = 2**24  # characters of its rows: few have rows so long that it matters
_END = object()


class _Ahead(queue.Queue[object]):
    """Items that were read ahead; full also where they weigh too much together."""

    def __init__(self, maxsize: int, weigh: Callable[[Any], int]) -> None:
        super().__init__(maxsize)
        self.weight = 0
        self._weigh = weigh

    def weigh(self, item: object) -> int:
        return 0 if item is _END or isinstance(item, BaseException) else self._weigh(item)

    def _qsize(self) -> int:
        return self.maxsize if self.weight > HEAVIEST_WINDOW else super()._qsize()

    def _put(self, item: object) -> None:
        super()._put(item)
        self.weight += self.weigh(item)

    def _get(self) -> object:
        item = super()._get()
        self.weight -= self.weigh(item)
        return item


class Windows(Generic[T]):
    """Cuts a stream into lists of `first`, 2 `first`, 4 `first`, … items, up to `last` or what of it is whole batches.

    A source that stays silent for `patience_s` closes the window it was filling, so that a slow producer gets its
    answers at once. A window closes too when its items `weigh` enough. A thread reads ahead by at most one window; its
    errors are raised here, after the items before.
    """

    def __init__(
        self,
        items: Iterable[T],
        first: int,
        last: int = LAST_WINDOW,
        patience_s: float = PATIENCE_S,
        weigh: Callable[[T], int] = lambda item: 0,
    ) -> None:
        self._last = max(first, last // first * first)
        self._size = first
        self._patience_s = patience_s
        self._end: object = None  # what came last: `_END`, or an error
        self._closed = threading.Event()
        self._ahead = _Ahead(self._last, weigh)
        threading.Thread(target=_read_ahead, args=(items, self._ahead, self._closed), daemon=True).start()

    def take(self, *, wait: bool = True) -> list[T] | None:
        """The next window; without `wait` what has arrived by now, even nothing. None at the end of the stream."""
        if self._end is None:
            window = _fill(self._ahead, self._size, self._patience_s if wait else None)
            if window and (window[-1] is _END or isinstance(window[-1], BaseException)):
                self._end = window.pop()
            if window:
                self._size = min(2 * self._size, self._last)
            if window or self._end is None:
                return window  # type: ignore[return-value]
        if isinstance(self._end, BaseException):
            raise self._end
        return None

    def close(self) -> None:
        """Stops reading ahead."""
        self._closed.set()


def _read_ahead(items: Iterable[object], ahead: _Ahead, closed: threading.Event) -> None:
    try:
        for item in items:
            if not _put(ahead, item, closed):
                return
        _put(ahead, _END, closed)
    except BaseException as error:  # noqa: BLE001 - raised again where the windows are read
        _put(ahead, error, closed)


def _put(ahead: _Ahead, item: object, closed: threading.Event) -> bool:
    """Waits for room; False when nobody reads any more."""
    while not closed.is_set():
        try:
            ahead.put(item, timeout=PATIENCE_S)
        except queue.Full:
            continue
        return True
    return False


def _fill(ahead: _Ahead, size: int, patience_s: float | None) -> list[object]:
    """Up to `size` items; fewer when the source falls silent, without patience only those that are there.

    The end or an error comes as the last item.
    """
    window: list[object] = []
    weight = 0
    while len(window) < size and weight <= HEAVIEST_WINDOW:
        try:
            item = ahead.get(block=patience_s is not None, timeout=patience_s)
        except queue.Empty:
            if window or patience_s is None:
                break
            continue
        window.append(item)
        weight += ahead.weigh(item)
        if item is _END or isinstance(item, BaseException):
            break
    return window
