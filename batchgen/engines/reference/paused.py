"""A call that is paused between its steps: transformers' `generate` gives no control away while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable


class _AbandonedError(BaseException):
    """Ends a call that nobody will resume."""


class PausedCall:
    """Runs `call(pause)` in a thread of its own; each `pause()` in it hands control back, until the next `advance`.

    One side runs at a time: it is a coroutine, made of a thread, since what is called is no generator.
    """

    def __init__(self, call: Callable[[Callable[[], None]], None]) -> None:
        self._call = call
        self._go, self._came = threading.Semaphore(0), threading.Semaphore(0)
        self._is_over = self._is_abandoned = False
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="generate", daemon=True).start()

    def advance(self) -> bool:
        """Runs the call to its next pause; False where it has ended. Raises what it raised."""
        self._go.release()
        self._came.acquire()
        if (error := self._error) is not None:
            self._error = None
            try:
                raise error
            finally:
                del error  # it holds the call's frames, and they its tensors
        return not self._is_over

    def abandon(self) -> None:
        """Ends the call where it is paused, and waits until it has ended."""
        if not self._is_over:
            self._is_abandoned = True
            self._go.release()
            self._came.acquire()

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._is_abandoned:
                self._call(self._pause)
        except _AbandonedError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by `advance`
            self._error = error
        self._is_over = True
        self._came.release()

    def _pause(self) -> None:
        self._came.release()
        self._go.acquire()
        if self._is_abandoned:
            raise _AbandonedError
