"""Ctrl-C and SIGTERM: the first ends the run soon, the second at once."""

from __future__ import annotations

import os
import signal
from types import FrameType

from batchgen.machine.last_words import withdraw_last_words

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
# How long a step may continue after the first signal before it is aborted.
GRACE_S = 0.5


class Interrupts:
    """Inside `with`, signals set `signum`; engines call `stop_requested` at each step.

    Before `start_steps` a signal raises `KeyboardInterrupt` at once, because there is nothing to finish yet.
    """

    def __init__(self) -> None:
        self.signum: signal.Signals | None = None
        self.was_raised = False  # whether KeyboardInterrupt was raised: errors that code makes of it are not reported
        self._in_steps = False

    def __enter__(self) -> Interrupts:
        self._previous = {number: signal.signal(number, self._on_signal) for number in EXIT_CODES}
        return self

    def __exit__(self, *_: object) -> None:
        self.end_steps()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def start_steps(self) -> None:
        self._in_steps = True

    def end_steps(self) -> None:
        """End the steps: cancel the grace period of a first signal, since the remaining work is short."""
        self._in_steps = False
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)

    def stop_requested(self) -> bool:
        return self.signum is not None

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.signum or signal.SIGINT]

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.signum is not None:
            if os.isatty(2):
                os.write(2, b"\r\x1b[2K\x1b[?25h")  # wipe the bar, show the cursor
            withdraw_last_words()
            os._exit(EXIT_CODES[signal.Signals(number)])
        self.signum = signal.Signals(number)
        if not self._in_steps or not hasattr(signal, "setitimer"):
            self.was_raised = True
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, _raise_interrupt)
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)


def _raise_interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
