"""Measure a model on this machine: engines, dtypes and batch sizes against its ceilings; recommend and keep settings.

Draws nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batchgen.bench.advice import find_bests, find_gain, find_quantised_gain, recommend
from batchgen.bench.facts import WORKLOADS, BenchReport, Ceiling, Point, Task
from batchgen.bench.keep import keep
from batchgen.bench.sweep import sweep
from batchgen.bench.workload import differing_share
from batchgen.engines.choice import CONTINUOUS
from batchgen.engines.int8.support import check_int8
from batchgen.errors import first_line, is_out_of_memory
from batchgen.planning.kinds import MOST_ROWS_ACCELERATOR
from batchgen.records import EngineOptions, precision_of

if TYPE_CHECKING:
    from batchgen.bench.lab import Lab
    from batchgen.model import Checkpoint

__all__ = ["BenchReport", "Plan", "keep", "make_plan", "measure", "open_labs"]

OpenLab = Callable[[str, str], "Lab"]  # precision, engine

# bfloat16 is measured if it multiplies matrices more than this many times as fast as float32.
FAST = 1.2
USUAL_ROWS = (1, 8, 32, 64, 128, 256)
# Shares of the time per engine: settings are for the first one.
SHARES = {"continuous": 2, "reference": 1}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure."""

    model: str
    device: str
    dtypes: tuple[str, ...]
    engines: tuple[str, ...]
    rows: tuple[int, ...]
    most_rows: int  # the most that auto may choose
    max_new_tokens: int
    seconds: float
    bfloat16_ratio: float | None = None  # relative to float32's rate of matrix products, if bfloat16 is skipped for it
    quantize: str | None = None  # also measure linear layers in this, for each dtype

    def tasks(self, precision: str, engine: str) -> list[Task]:
        """The tasks of one lab, from the fewest rows up."""
        return [Task(precision, engine, workload, rows) for rows in self.rows for workload in WORKLOADS]

    @property
    def parts(self) -> list[tuple[str, str]]:
        """Precision and engine of each lab, the most informative first; only slots run quantised layers."""
        quantised = [precision_of(dtype, self.quantize) for dtype in self.dtypes if self.quantize]
        return [
            (precision, engine)
            for engine in self.engines
            for precision in (*self.dtypes, *(quantised if engine == "continuous" else ()))
        ]


def make_plan(
    checkpoint: Checkpoint,
    *,
    device: str = "auto",
    dtypes: tuple[str, ...] = ("auto",),
    engine: str = "auto",
    rows: tuple[int, ...] = (),
    max_new_tokens: int = 32,
    seconds: float = 60.0,
    quantize: str | None = None,
) -> Plan:
    """Turn options into a plan for a model on this machine; without `rows`, the device's usual batch sizes are used.

    Raises `UsageError` and `ModelError`.
    """
    from batchgen.bench.workload import make_rows
    from batchgen.engines import choose_engine
    from batchgen.model.weights import choose_device

    chosen_device = choose_device(device)
    check_int8(EngineOptions(engine, quantize=quantize), chosen_device.type, checkpoint.outline)
    on = str(chosen_device)
    most_rows = CONTINUOUS.most_rows.get(on, MOST_ROWS_ACCELERATOR)
    chosen = choose_engine(engine, checkpoint.outline)[0]
    engines = (chosen, "reference") if engine == "auto" else (chosen,)
    make_rows("ragged", 1, max_new_tokens, checkpoint)  # fails if there is no room for prompts
    auto, ratio = _auto_dtypes(checkpoint, on) if "auto" in dtypes else ((), None)
    names = [name for asked in dtypes for name in (auto if asked == "auto" else (asked,))]
    return Plan(
        checkpoint.name,
        on,
        tuple(dict.fromkeys(names)),
        tuple(dict.fromkeys(engines)),
        tuple(sorted(set(rows))) or tuple(number for number in USUAL_ROWS if number <= most_rows),
        most_rows,
        max_new_tokens,
        seconds,
        None if "bfloat16" in names else ratio,
        quantize,
    )


def _auto_dtypes(checkpoint: Checkpoint, device: str) -> tuple[tuple[str, ...], float | None]:
    """float32, and bfloat16 if it is fast on this machine; and bfloat16's rate relative to float32's, if it runs."""
    import torch

    from batchgen.bench.ceilings import matmul_gflops

    on = torch.device(device)
    try:
        exact, coarse = (matmul_gflops(dtype, checkpoint.config, on) for dtype in ("float32", "bfloat16"))
    except RuntimeError:  # a device without bfloat16
        return ("float32",), None
    return ("float32", "bfloat16") if coarse > FAST * exact else ("float32",), coarse / exact


def open_labs(checkpoint: Checkpoint, plan: Plan) -> OpenLab:
    """A function that opens a lab with this model, loaded again for each dtype and engine."""
    from batchgen.bench.lab import ModelLab

    return lambda dtype, engine: ModelLab(checkpoint, plan.device, dtype, engine, plan.max_new_tokens)


@dataclass(slots=True)
class _Findings:
    points: list[Point] = field(default_factory=list)
    ceilings: dict[str, Ceiling] = field(default_factory=dict)
    answers: dict[str, list[list[int]]] = field(default_factory=dict)


def measure(
    plan: Plan,
    open_lab: OpenLab,
    *,
    clock: Callable[[], float] = time.perf_counter,
    on_task: Callable[[Task], None] = lambda task: None,
) -> BenchReport:
    """Measure as much of the plan as its time allows; failures are recorded, and the rest continues."""
    found = _Findings()
    end = clock() + plan.seconds
    parts = plan.parts
    for i, (precision, engine) in enumerate(parts):
        share = SHARES[engine] / sum(SHARES[later] for _, later in parts[i:])
        part_end = clock() + share * (end - clock())
        tasks = plan.tasks(precision, engine)
        on_task(tasks[0])
        try:
            lab = open_lab(precision, engine)
            _look_around(found, lab, precision, plan)
        except Exception as error:  # noqa: BLE001 - a precision that does not load or run is a finding
            problem = "memory" if is_out_of_memory(error) else first_line(error)
            found.points += [Point(task, problem=problem) for task in tasks]
            continue
        found.points += sweep(tasks, lab.run, part_end - clock(), clock=clock, on_task=on_task)
        del lab  # before the next one loads
    return _report(plan, found)


def _look_around(found: _Findings, lab: Lab, precision: str, plan: Plan) -> None:
    """Measure what is needed once per precision: the ceiling, and answers if precisions are compared."""
    if precision not in found.ceilings:
        found.ceilings[precision] = lab.ceiling()
        if "float32" in plan.dtypes and (plan.quantize or "bfloat16" in plan.dtypes):
            found.answers[precision] = lab.answer_words()


def _report(plan: Plan, found: _Findings) -> BenchReport:
    bests = find_bests(found.points, plan.most_rows)
    exact = found.answers.get("float32")
    differing = {name: differing_share(exact, answers) for name, answers in found.answers.items() if exact}
    gain, quantised = find_gain(bests, differing, "bfloat16"), find_quantised_gain(bests, differing)
    return BenchReport(
        model=plan.model,
        device=plan.device,
        max_new_tokens=plan.max_new_tokens,
        points=tuple(found.points),
        ceilings=tuple(found.ceilings.values()),
        bests=bests,
        gain=gain,
        quantised=quantised,
        advice=recommend(bests, gain, plan.bfloat16_ratio, quantised),
    )
