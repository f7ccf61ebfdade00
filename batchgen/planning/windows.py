"""Windows over a stream: how many rows are read before the next ones run."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

LAST_WINDOW = 4096
PATIENCE_S = 0.2
HEAVIEST_WINDOW = 2**24  # characters in its rows; only very long rows reach this limit
_END = object()


class _Ahead(queue.Queue[object]):
    """Items that were read ahead; the queue also counts as full if they weigh too much together."""

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
    """Cuts a stream into lists of `first`, 2 `first`, 4 `first`, … items, up to `last` rounded down to whole batches.

    A source that stays silent for `patience_s` closes the window being filled, so that a slow producer gets its answers
    at once. A window also closes when its items weigh enough, as measured by `weigh`. A thread reads ahead by at most
    one window; its errors are raised here, after the items before them.
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
        self._end: object = None  # the last thing read: `_END`, or an error
        self._closed = threading.Event()
        self._ahead = _Ahead(self._last, weigh)
        threading.Thread(target=_read_ahead, args=(items, self._ahead, self._closed), daemon=True).start()

    def take(self, *, wait: bool = True) -> list[T] | None:
        """Return the next window, or None at the end of the stream.

        Without `wait`, it is whatever has arrived by now, possibly nothing.
        """
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
        """Stop reading ahead."""
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
    """Wait for room and put the item; return False if nobody reads any more."""
    while not closed.is_set():
        try:
            ahead.put(item, timeout=PATIENCE_S)
        except queue.Full:
            continue
        return True
    return False


def _fill(ahead: _Ahead, size: int, patience_s: float | None) -> list[object]:
    """Return up to `size` items; fewer if the source falls silent. Without patience, return only items already there.

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
