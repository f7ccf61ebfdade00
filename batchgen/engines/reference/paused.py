"""A call that is paused between its steps, because transformers' `generate` does not return control while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable


class _AbandonedError(BaseException):
    """Ends a call that will not be resumed."""


class PausedCall:
    """Runs `call(pause)` in its own thread.

    Each `pause()` in it returns control to the caller until the next `advance`.

    Only one side runs at a time: it is a coroutine built from a thread, because the called function is not a generator.
    """

    def __init__(self, call: Callable[[Callable[[], None]], None]) -> None:
        self._call = call
        self._go, self._came = threading.Semaphore(0), threading.Semaphore(0)
        self._is_over = self._is_abandoned = False
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="generate", daemon=True).start()

    def advance(self) -> bool:
        """Run the call to its next pause, or return False if it has ended. Raises what the call raised."""
        self._go.release()
        self._came.acquire()
        if (error := self._error) is not None:
            self._error = None
            try:
                raise error
            finally:
                del error  # it references the call's frames, and these its tensors
        return not self._is_over

    def abandon(self) -> None:
        """End the call where it is paused, and wait until it has ended."""
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
