"""Engine of engines: worker processes on one machine, each with the model, over one queue of rows.

A worker that dies is replaced, and its unfinished rows run again. This process loads no weights.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from batchgen.engines import choose_engine
from batchgen.engines.pool.parts import DEATHS_ALONE, LEAST_ROWS, Part, Parts
from batchgen.engines.pool.worker import Answer, Key, ModelRecipe, Recipe, Report, Totals, key_of, work
from batchgen.errors import ModelError, UsageError
from batchgen.machine.limits import MemoryLimit, share_of
from batchgen.model.weights import check_room, choose_device
from batchgen.planning.batches import MOST_ROWS, MOST_ROWS_ACCELERATOR
from batchgen.planning.memory import FIRST_WINDOW
from batchgen.records import Sequence

if TYPE_CHECKING:
    import torch

    from batchgen.model import Checkpoint

POLL_S = 0.05  # how often the input and the user are asked while all workers are busy
PATIENCE_S = 2.0  # for a worker that is told to end
# Starts of one worker that may fail, and deaths of any since the last row was finished.
MOST_FAILED_STARTS = 3
MOST_DEATHS_IN_VAIN = 32


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How the input is to be cut."""

    first_window: int


@dataclass(slots=True)
class PoolMemory:
    """The workers' memory as the pipeline asks for it."""

    limits: PoolLimits
    peak_bytes: int = 0
    predicted_bytes: int = 0
    measured_bytes: int | None = None


def choose_devices(name: str, num_workers: int | None = None) -> list[torch.device]:
    """The device of each worker: as many workers as are asked for, else one for each device that `name` lists.

    `auto` is every CUDA device, where there are some. One worker means that the run needs no pool.
    """
    import torch

    names = [part.strip() for part in name.split(",")]
    if name == "auto" and num_workers != 1 and torch.cuda.device_count() > 1:
        names = [f"cuda:{index}" for index in range(torch.cuda.device_count())][:num_workers]
    devices = [choose_device(name) for name in names]
    count = num_workers or len(devices)
    if count < len(devices):
        raise UsageError(f"--workers {count} leaves devices of --device {name} without one: name fewer devices")
    if len({device.type for device in devices}) > 1:
        raise UsageError(f"--device {name}: the devices of one run must be of one kind")
    return [devices[number % len(devices)] for number in range(count)]


def make_pool(
    checkpoint: Checkpoint,
    devices: list[torch.device],
    dtype: str,
    *,
    name: str = "auto",
    num_rows: int | None = None,
    num_beams: int = 1,
    exact: bool = True,
    share: bool = True,
    on_step: Callable[[int], None] = lambda num_tokens: None,
    should_stop: Callable[[], bool] = lambda: False,
    memory: MemoryLimit | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> PoolEngine:
    """A worker on each of `devices`, with the options of `make_engine`."""
    choose_engine(name, checkpoint.config, num_beams)  # refuses here what every worker would refuse
    recipe = ModelRecipe(checkpoint.name, checkpoint.folder, "cpu", dtype, name, num_rows, num_beams, exact, share)
    recipes = share_out(recipe, devices, memory)
    for device in set(devices):
        check_room(checkpoint, device, dtype, num_copies=devices.count(device))
    part_rows = num_rows or MOST_ROWS.get(devices[0].type, MOST_ROWS_ACCELERATOR)
    return PoolEngine(
        recipes, part_rows, is_fixed=num_rows is not None, on_step=on_step, should_stop=should_stop, say=say
    )


def share_out(recipe: ModelRecipe, devices: list[torch.device], memory: MemoryLimit | None) -> list[ModelRecipe]:
    """The recipe on each of `devices`. Workers on one device share its memory and its cores."""
    num_workers = len(devices)
    return [
        replace(
            recipe,
            device=str(device),
            memory=share_of(memory, num_workers, devices.count(device)),
            num_threads=num_threads(num_workers) if device.type == "cpu" else None,
        )
        for device in devices
    ]


def num_threads(num_workers: int) -> int:
    """A worker's share of the CPUs that this process may use, unless the user's environment says how many."""
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = os.environ.get("OMP_NUM_THREADS", "")
    return int(own) if own.isdecimal() and int(own) else max(1, num_cpus // num_workers)


class PoolEngine:
    """Runs each recipe in a process of its own; yields each sequence when it is finished.

    Parts have `part_rows` rows at most, or, where that `is_fixed`, wherever so many are there. Counts are sums over
    workers, times their mean: what the pool makes in a second is what its workers make together.
    """

    def __init__(
        self,
        recipes: Iterable[Recipe],
        part_rows: int,
        *,
        is_fixed: bool = False,
        on_step: Callable[[int], None] = lambda num_tokens: None,
        should_stop: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._seats = [_Seat(recipe) for recipe in recipes]
        num_workers = len(self._seats)
        self._parts = Parts(num_workers, part_rows, part_rows if is_fixed else LEAST_ROWS)
        self._limits = PoolLimits(num_workers * (part_rows if is_fixed else min(FIRST_WINDOW, part_rows)))
        self.on_step = on_step
        self.should_stop = should_stop
        self._say = say
        self._has_said: set[str] = set()
        self._deaths_in_vain = 0

    # What the pipeline asks for.

    @property
    def name(self) -> str:
        inner = next((totals.engine for totals in self._totals if totals.engine), "engine")
        return f"{inner} in {len(self._seats)} workers"

    @property
    def is_busy(self) -> bool:
        """Whether rows are in hand, which should not wait for more to arrive."""
        return bool(self._parts) or any(seat.rows for seat in self._seats)

    @property
    def _totals(self) -> list[Totals]:
        return [totals for seat in self._seats for totals in [*seat.past, seat.totals]]

    @property
    def num_batches(self) -> int:
        return sum(totals.num_batches for totals in self._totals)

    @property
    def decode_work(self) -> int:
        return sum(totals.decode_work for totals in self._totals)

    @property
    def prefill_s(self) -> float:
        return sum(totals.prefill_s for totals in self._totals) / len(self._seats)

    @property
    def decode_s(self) -> float:
        return sum(totals.decode_s for totals in self._totals) / len(self._seats)

    @property
    def backoff(self) -> PoolMemory:
        """Peaks of the workers together; estimates of the worker whose batch was the largest."""
        measured = [totals.measured_bytes for totals in self._totals if totals.measured_bytes is not None]
        return PoolMemory(
            self._limits,
            peak_bytes=sum(max(totals.peak_bytes for totals in [*seat.past, seat.totals]) for seat in self._seats),
            predicted_bytes=max(totals.predicted_bytes for totals in self._totals),
            measured_bytes=max(measured, default=None),
        )

    def generate(self, windows: Iterable[list[Sequence]]) -> Iterator[Sequence]:
        source = iter(windows)
        more = True
        try:
            while more or self.is_busy:
                if more and self._parts.wants_more:
                    window = next(source, None)
                    more = window is not None
                    yield from (sequence for sequence in window or [] if sequence.is_finished)
                    self._parts.add(sequence for sequence in window or [] if not sequence.is_finished)
                if self.should_stop():
                    raise KeyboardInterrupt
                self._hand_out()
                yield from self._collect()
            self._dismiss()
        finally:
            for seat in self._seats:
                seat.hang_up()
            for seat in self._seats:
                seat.close()

    # One turn: workers that want rows get some, and what they have finished is taken in.

    def _hand_out(self) -> None:
        for seat in self._seats:
            if self._parts and not seat.is_running and not seat.is_given_up:
                seat.start()
            if seat.is_free and (part := self._parts.take(is_idle=not seat.rows)):
                seat.give(part)

    def _collect(self) -> Iterator[Sequence]:
        """Rows that workers have finished, or that have failed with them."""
        connections = {seat.connection: seat for seat in self._seats if seat.is_running}
        for connection in wait(connections, POLL_S) if self.is_busy else []:
            seat = connections[connection]  # type: ignore[index]
            report = seat.receive()
            if report is None:
                yield from self._replace(seat)
            else:
                yield from self._take_in(report, seat)

    def _take_in(self, report: Report, seat: _Seat) -> Iterator[Sequence]:
        for line in report.said:
            if line not in self._has_said:  # workers of one kind have the same to say
                self._has_said.add(line)
                self._say(line)
        if report.failure:
            raise report.failure
        self.on_step(report.num_tokens)
        for answer in report.answers:
            self._deaths_in_vain = 0
            row = seat.finish(answer)
            if row.batch_index is not None:  # each worker counts its own from 0
                row.batch_index = row.batch_index * len(self._seats) + self._seats.index(seat)
            yield row

    def _replace(self, seat: _Seat) -> Iterator[Sequence]:
        """After a worker died: its rows go back to the queue, and a new worker starts when there is work for it."""
        part, had_started = seat.part, seat.has_reported
        rows, how = seat.bury()
        self._deaths_in_vain += 1
        self._give_up_if_hopeless(seat, how)
        if part is None or not rows:
            return
        if not had_started:
            self._parts.put_back(part)
            return
        self.on_step(-seat.drop_tokens())
        failed = self._parts.lose(rows, part.deaths)
        self._say(f"a worker process died ({how}); unfinished rows that run again: {len(rows) - len(failed)}")
        for row in failed:
            died = f"{DEATHS_ALONE} worker processes died ({how}) while they ran this row alone"
            row.fail(row.request.located(f"{died}: leave it out, or try --engine reference"))
            yield row

    def _give_up_if_hopeless(self, seat: _Seat, how: str) -> None:
        alive = [other for other in self._seats if not other.is_given_up]
        if not alive:
            raise ModelError(f"worker processes die while they start ({how}): try fewer --workers")
        if seat.is_given_up:
            self._say(f"a worker process died {MOST_FAILED_STARTS} times while it started: going on with {len(alive)}")
        if self._deaths_in_vain >= MOST_DEATHS_IN_VAIN:
            raise ModelError(
                f"worker processes died {self._deaths_in_vain} times ({how}) without finishing a row: "
                "try --workers 1, which shows why"
            )

    def _dismiss(self) -> None:
        """All rows are finished: workers end by themselves, and send their last counts."""
        for seat in self._seats:
            seat.dismiss()
        for seat in self._seats:
            while seat.is_running and seat.connection.poll(PATIENCE_S) and (report := seat.receive()):
                for _ in self._take_in(report, seat):
                    pass


class _Seat:
    """A place for a worker: its process, the rows that it has, and what it and those before it have done."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.rows: dict[Key, Sequence] = {}
        self.part: Part | None = None  # the last that it was given
        self.wants = self.has_reported = self.is_running = False
        self.totals = Totals()
        self.past: list[Totals] = []
        self._first_batch = self._tokens_in_hand = self._failed_starts = 0
        self._process: BaseProcess | None = None

    @property
    def is_given_up(self) -> bool:
        return self._failed_starts >= MOST_FAILED_STARTS

    @property
    def is_free(self) -> bool:
        """Whether it may have rows: it asks for some, and has none that must be alone."""
        return self.wants and not (self.rows and self.part and self.part.is_suspect)

    def start(self) -> None:
        context = get_context("spawn")  # a fork would copy this process's threads and locks, and cannot use CUDA
        self.connection, other_end = context.Pipe()
        self._process = context.Process(target=work, args=(other_end, self.recipe), daemon=True)
        with _without_interrupts():
            self._process.start()
        other_end.close()  # so that the pipe ends with the worker
        self.is_running = self.wants = True  # what it is given waits in the pipe while it loads

    def give(self, part: Part) -> None:
        self.rows |= {key_of(row): row for row in part.rows}
        self.part, self.wants = part, False
        with suppress(OSError):  # it has just died; the other direction will say so
            self.connection.send([_slim(row) for row in part.rows])

    def receive(self) -> Report | None:
        """What the worker sends; None where it has died."""
        try:
            report: Report = self.connection.recv()
        except (EOFError, OSError):
            self.is_running = False
            return None
        self.totals = report.totals
        self.wants |= report.wants and self.has_reported  # the first time it was taken for granted
        self.has_reported = True
        self._tokens_in_hand += report.num_tokens
        return report

    def finish(self, answer: Answer) -> Sequence:
        row = self.rows.pop(answer.key)
        row.output_ids, row.finish_reason, row.error = answer.output_ids, answer.finish_reason, answer.error
        row.padded_length = answer.padded_length
        row.batch_index = None if answer.batch_index is None else self._first_batch + answer.batch_index
        self._tokens_in_hand -= len(answer.output_ids)
        return row

    def bury(self) -> tuple[list[Sequence], str]:
        """The dead worker's unfinished rows, as they were given, and how it ended."""
        self.close()
        self._failed_starts = 0 if self.has_reported else self._failed_starts + 1
        self._first_batch += self.totals.num_batches + 1
        self.past.append(self.totals)
        rows, self.rows = list(self.rows.values()), {}
        self.totals, self.part, self.wants, self.has_reported = Totals(), None, False, False
        assert self._process
        return rows, _how_ended(self._process.exitcode)

    def drop_tokens(self) -> int:
        """How many tokens were made of rows that start again."""
        dropped, self._tokens_in_hand = self._tokens_in_hand, 0
        return max(0, dropped)

    def dismiss(self) -> None:
        """Tells the worker that no more rows will come."""
        if self.is_running:
            with suppress(OSError):
                self.connection.send(None)

    def hang_up(self) -> None:
        """Ends the worker: it does not outlive its pipe."""
        if self._process:
            self.connection.close()

    def close(self) -> None:
        """Ends the worker, and waits until it has ended."""
        if not self._process:
            return
        self.hang_up()
        self._process.join(PATIENCE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.is_running = False


def _slim(row: Sequence) -> Sequence:
    """What an engine needs of a row: not its text and columns."""
    return replace(row, request=replace(row.request, prompt="", metadata={}))


def _how_ended(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"{name}, as when memory runs out" if name == "SIGKILL" else name


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """What starts in here never sees a Ctrl-C, also before it can say that it does not want to."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
