"""A lab: one model, loaded in one dtype for one engine, that runs tasks."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from batchgen.bench.ceilings import linear_sizes, measure_ceiling
from batchgen.bench.facts import Ceiling, Sample, Task
from batchgen.bench.sweep import NoMemoryError
from batchgen.bench.workload import make_rows, without_eos, word_rows
from batchgen.engines import finish_all, make_engine
from batchgen.errors import ModelError
from batchgen.machine.process import reuse_blocks
from batchgen.model import Model
from batchgen.model.weights import load_model
from batchgen.planning.backoff import release
from batchgen.records import EngineOptions, EngineStats, Sequence, parts_of_precision

if TYPE_CHECKING:
    from batchgen.model import Checkpoint

WARM_UP_TOKENS = 2


class Lab(Protocol):
    """What a bench needs from a model and an engine; a fake lab needs neither."""

    def run(self, task: Task) -> Sample:
        """Run a task once. Raises `NoMemoryError`, or whatever the model raises."""
        ...

    def ceiling(self) -> Ceiling: ...

    def answer_words(self) -> list[list[int]]:
        """Greedy output ids of each prompt of `word_rows`."""
        ...


class ModelLab:
    """A lab with a real model; loading it also warms up."""

    def __init__(self, checkpoint: Checkpoint, device: str, precision: str, engine: str, max_new_tokens: int) -> None:
        release()  # frees the memory of the last lab
        self.precision = precision
        dtype, quantize = parts_of_precision(precision)
        self.options = EngineOptions(engine, quantize=quantize)
        self.max_new_tokens = max_new_tokens
        self.model = load_model(replace(checkpoint, outline=copy.deepcopy(checkpoint.outline)), device, dtype)
        self.endless = replace(self.model, checkpoint=without_eos(self.model.checkpoint))
        self._sizes = linear_sizes(self.model.network)
        self._generate(self.endless, make_rows("fixed", 2, WARM_UP_TOKENS, checkpoint), 2)

    def run(self, task: Task) -> Sample:
        rows = make_rows(task.workload, task.rows, self.max_new_tokens, self.model.checkpoint)
        started = time.perf_counter()
        stats = self._generate(self.endless, rows, task.rows)
        seconds = time.perf_counter() - started
        return Sample(
            tokens=sum(row.num_output_tokens for row in rows),
            seconds=seconds,
            prefill_columns=sum(row.padded_length or 0 for row in rows),
            prefill_s=stats.prefill_s,
            decode_s=stats.decode_s,
            decode_work=stats.decode_work,
        )

    def ceiling(self) -> Ceiling:
        return measure_ceiling(self.precision, self._sizes, self.model.checkpoint.config, self.model.device)

    def answer_words(self) -> list[list[int]]:
        rows = word_rows(self.max_new_tokens, self.model.checkpoint)
        self._generate(self.model, rows, len(rows))
        return [row.output_ids for row in rows]

    def _generate(self, model: Model, rows: list[Sequence], num_rows: int) -> EngineStats:
        said: list[str] = []
        options = replace(self.options, batch_size=num_rows)
        engine = make_engine(model, options, is_owned=True, reuse_blocks=reuse_blocks, say=said.append)
        for _ in finish_all(engine, rows):
            pass
        stats = engine.stats
        engine.close()
        if said:
            raise NoMemoryError(said[0])
        if error := next((row.error for row in rows if row.error), None):
            raise ModelError(error)
        return stats
