"""How fast a run goes and how long it will still take. Knows nothing about the run or who is shown the numbers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from batchgen.records import Result

RECENT_S = 15.0  # the time over which `recent_tokens_per_s` is measured
SAMPLE_S = 1.0
# Before the first result, at least this share of all tokens is needed to estimate the time left: a run begins with what
# is done once, such as compiling.
TELLING_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run is. `done`, `failed` and `total` (None if unknown) count `unit`: rows, or samples of rows.

    `kept` of the done ones existed when the run began. Tokens are those of this run.
    """

    unit: str
    done: int
    total: int | None
    kept: int
    failed: int
    new_tokens: int
    elapsed_s: float
    tokens_per_s: float
    recent_tokens_per_s: float
    seconds_left: float | None


class Pace:
    """Counts a run's steps and results. It counts tokens, so that progress moves at each step.

    `total` is the number of results to come, or None if unknown; `num_kept` results existed when the run began.
    """

    def __init__(self, max_new_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_new_tokens = max_new_tokens
        self.total: int | None = None
        self.num_kept = 0
        self.num_results = self.num_failed = self.num_tokens = 0
        self.prompt_tokens = self.output_tokens = 0  # of finished results
        self._in_flight = 0
        self._clock = clock
        self._started = clock()
        self._samples = deque([(self._started, 0)])

    def begin(self, total: int | None, num_kept: int) -> None:
        """Start the clock; loading time is not counted."""
        self.total, self.num_kept = total, num_kept
        self._started = self._clock()
        self._samples = deque([(self._started, 0)])

    def on_step(self, num_tokens: int) -> None:
        """Count one token for each of `num_tokens` rows; a negative number takes tokens back."""
        self.num_tokens += num_tokens
        self._in_flight += num_tokens
        now = self._clock()
        if now - self._samples[-1][0] >= SAMPLE_S:
            self._samples.append((now, self.num_tokens))
            while len(self._samples) > 2 and now - self._samples[1][0] >= RECENT_S:
                self._samples.popleft()

    def on_result(self, result: Result) -> None:
        self.num_results += 1
        self.num_failed += result.error is not None
        self.prompt_tokens += result.num_prompt_tokens
        self.output_tokens += result.num_output_tokens
        self._in_flight = max(0, self._in_flight - result.num_output_tokens)

    def track(self, results: Iterable[Result]) -> Iterator[Result]:
        """Pass on results and count them."""
        for result in results:
            self.on_result(result)
            yield result

    @property
    def elapsed_s(self) -> float:
        return max(self._clock() - self._started, 1e-9)

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second since the start."""
        return self.num_tokens / self.elapsed_s

    @property
    def recent_tokens_per_s(self) -> float:
        """Tokens per second over the last seconds."""
        since, tokens = self._samples[0]
        passed_s = self._clock() - since
        return max(0, self.num_tokens - tokens) / passed_s if passed_s > 0 else 0.0

    @property
    def done_tokens(self) -> int:
        """Tokens for a progress bar: every finished result counts as `max_new_tokens`."""
        return self.num_results * self.max_new_tokens + self._in_flight

    @property
    def total_tokens(self) -> int | None:
        return None if self.total is None else self.total * self.max_new_tokens

    @property
    def seconds_left(self) -> float | None:
        """The estimated time left; None if it cannot be estimated yet."""
        total, done = self.total_tokens, self.done_tokens
        if not total or not done or (not self.num_results and done < TELLING_SHARE * total):
            return None
        return max(0.0, (total - done) / done * self.elapsed_s)

    def progress(self, unit: str) -> RunProgress:
        """Return the current progress."""
        return RunProgress(
            unit=unit,
            done=self.num_kept + self.num_results,
            total=None if self.total is None else self.num_kept + self.total,
            kept=self.num_kept,
            failed=self.num_failed,
            new_tokens=self.num_tokens,
            elapsed_s=self.elapsed_s,
            tokens_per_s=self.tokens_per_s,
            recent_tokens_per_s=self.recent_tokens_per_s,
            seconds_left=self.seconds_left,
        )
