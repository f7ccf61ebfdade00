"""The pool: worker processes on one machine, each with its own model, over one queue of rows.

A worker that dies is replaced, and its unfinished rows run again. This process loads no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

from batchgen.engines import Agree
from batchgen.engines.choice import KINDS, choose_engine
from batchgen.engines.pool.devices import share_out
from batchgen.engines.pool.parts import DEATHS_ALONE, LEAST_ROWS, Parts
from batchgen.engines.pool.seat import MOST_FAILED_STARTS, PATIENCE_S, Seat
from batchgen.engines.pool.worker import ModelRecipe, Recipe, WorkReport
from batchgen.engines.reference.schedule import FIRST_WINDOW
from batchgen.errors import ModelError
from batchgen.model.weights import check_room, check_shares
from batchgen.planning.kinds import MOST_ROWS_ACCELERATOR
from batchgen.records import EngineChoice, EngineOptions, EngineStats, Sequence

if TYPE_CHECKING:
    import torch

    from batchgen.model import Checkpoint

POLL_S = 0.05  # how often input and user are checked while all workers are busy
MOST_DEATHS_IN_VAIN = 32  # deaths of any workers since the last row was finished


def make_pool(
    checkpoint: Checkpoint,
    devices: list[torch.device],
    dtype: str,
    options: EngineOptions,
    *,
    num_beams: int = 1,
    scores: bool = False,
    begun: EngineChoice | None = None,
    agree: Agree = lambda choice: choice,
    say: Callable[[str], None] = lambda line: None,
) -> PoolEngine:
    """Return a pool with a worker on each of `devices`; options as in `make_engine`.

    All workers use the first choice that `agree` returns.
    """
    choose_engine(options.engine, checkpoint.outline, num_beams)  # fails early for what every worker would refuse
    recipe = ModelRecipe(
        checkpoint.name, checkpoint.folder, "cpu", dtype, options, num_beams, begun=begun, scores=scores
    )
    recipes = share_out(recipe, devices)
    if options.memory:
        check_shares(checkpoint, devices[0], dtype, options.memory, len(devices))
    for device in set(devices):
        check_room(checkpoint, device, dtype, num_copies=devices.count(device))
    part_rows = options.batch_size or KINDS["reference"].most_rows.get(devices[0].type, MOST_ROWS_ACCELERATOR)
    return PoolEngine(recipes, part_rows, is_fixed=options.batch_size is not None, agree=agree, say=say)


class PoolEngine:
    """Runs each recipe in its own process.

    Parts have at most `part_rows` rows; if that `is_fixed`, exactly as many while there are enough. Counts are sums
    over workers and times are means: tokens per second are those of all workers together.
    """

    def __init__(
        self,
        recipes: Iterable[Recipe],
        part_rows: int,
        *,
        is_fixed: bool = False,
        agree: Agree = lambda choice: choice,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._seats = [Seat(recipe) for recipe in recipes]
        num_workers = len(self._seats)
        self._parts = Parts(num_workers, part_rows, part_rows if is_fixed else LEAST_ROWS)
        self._first_window = num_workers * (part_rows if is_fixed else min(FIRST_WINDOW, part_rows))
        self._new_tokens = 0
        self._agree = agree
        self._agreed: EngineChoice | None = None
        self._say = say
        self._has_said: set[str] = set()
        self._deaths_in_vain = 0

    # The engine protocol.

    @property
    def wants_rows(self) -> int:
        """A part for each worker, once fewer rows than that are queued."""
        return self._first_window if self._parts.wants_more else 0

    @property
    def is_idle(self) -> bool:
        return not (self._parts or any(seat.rows for seat in self._seats))

    @property
    def stats(self) -> EngineStats:
        """Peaks are summed over workers; estimates are those of the worker with the largest batch."""
        all_of = [stats for seat in self._seats for stats in [*seat.past, seat.totals]]
        measured = [stats.measured_bytes for stats in all_of if stats.measured_bytes is not None]
        inner = next((stats.engine for stats in all_of if stats.engine), "engine")
        return EngineStats(
            engine=f"{inner} in {len(self._seats)} workers",
            batches=sum(stats.batches for stats in all_of),
            new_tokens=self._new_tokens,
            prefill_s=sum(stats.prefill_s for stats in all_of) / len(self._seats),
            decode_s=sum(stats.decode_s for stats in all_of) / len(self._seats),
            decode_work=sum(stats.decode_work for stats in all_of),
            host_syncs=sum(stats.host_syncs for stats in all_of),
            peak_bytes=sum(max(stats.peak_bytes for stats in [*seat.past, seat.totals]) for seat in self._seats),
            predicted_bytes=max(stats.predicted_bytes for stats in all_of),
            measured_bytes=max(measured, default=None),
            drafted_tokens=sum(stats.drafted_tokens for stats in all_of),
            accepted_tokens=sum(stats.accepted_tokens for stats in all_of),
        )

    def add(self, sequences: Iterable[Sequence]) -> None:
        self._parts.add(sequences)

    def step(self) -> list[Sequence]:
        """Give rows to the workers that want some, and collect what they have finished."""
        self._hand_out()
        return list(self._collect())

    def close(self) -> None:
        """End the workers; if all rows are finished, let them exit by themselves and send their last counts."""
        if self.is_idle:
            self._dismiss()
        for seat in self._seats:
            seat.hang_up()
        for seat in self._seats:
            seat.close()

    def _hand_out(self) -> None:
        for seat in self._seats:
            if self._parts and not seat.is_running and not seat.is_given_up:
                seat.start()
            if seat.is_free and (part := self._parts.take(is_idle=not seat.rows)):
                seat.give(part)

    def _collect(self) -> Iterator[Sequence]:
        """Yield rows that workers finished, or that failed with them."""
        connections = {seat.connection: seat for seat in self._seats if seat.is_running}
        for connection in wait(connections, POLL_S) if not self.is_idle else []:
            seat = connections[connection]  # type: ignore[index]
            report = seat.receive()
            if report is None:
                yield from self._replace(seat)
            else:
                yield from self._take_in(report, seat)

    def _take_in(self, report: WorkReport, seat: Seat) -> Iterator[Sequence]:
        for line in report.said:
            if line not in self._has_said:  # workers of the same kind report the same lines
                self._has_said.add(line)
                self._say(line)
        if report.failure:
            raise report.failure
        if report.choice:
            self._agreed = self._agreed or self._agree(report.choice)
            seat.answer(self._agreed)
        self._new_tokens += report.num_tokens
        for answer in report.answers:
            self._deaths_in_vain = 0
            row = seat.finish(answer)
            if row.batch_index is not None:  # each worker counts its batches from 0
                row.batch_index = row.batch_index * len(self._seats) + self._seats.index(seat)
            yield row

    def _replace(self, seat: Seat) -> Iterator[Sequence]:
        """Handle a worker's death: its rows go back to the queue, and a new worker starts when there is work for it."""
        part, had_started = seat.part, seat.has_reported
        rows, how = seat.bury()
        self._deaths_in_vain += 1
        self._give_up_if_hopeless(seat, how)
        if part is None or not rows:
            return
        if not had_started:
            self._parts.put_back(part)
            return
        self._new_tokens -= seat.drop_tokens()
        failed = self._parts.lose(rows, part.deaths)
        self._say(f"a worker process died ({how}); rows that run again: {len(rows) - len(failed)}")
        for row in failed:
            died = f"{DEATHS_ALONE} worker processes died ({how}) while they ran this row alone"
            row.fail(f"{died}: remove it, or try --engine reference")
            yield row

    def _give_up_if_hopeless(self, seat: Seat, how: str) -> None:
        alive = [other for other in self._seats if not other.is_given_up]
        if not alive:
            raise ModelError(f"worker processes die during startup ({how}): try fewer --workers")
        if seat.is_given_up:
            self._say(f"a worker process died {MOST_FAILED_STARTS} times during startup: continuing with {len(alive)}")
        if self._deaths_in_vain >= MOST_DEATHS_IN_VAIN:
            raise ModelError(
                f"worker processes died {self._deaths_in_vain} times ({how}) without finishing a row: "
                "try --workers 1, which shows why"
            )

    def _dismiss(self) -> None:
        """Let workers exit by themselves once all rows are finished, and collect their last counts."""
        for seat in self._seats:
            seat.dismiss()
        for seat in self._seats:
            while seat.is_running and seat.connection.poll(PATIENCE_S) and (report := seat.receive()):
                for _ in self._take_in(report, seat):
                    pass
