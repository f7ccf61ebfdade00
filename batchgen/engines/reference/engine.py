"""The reference engine: one call of `generate` per batch, paused after each forward.

`generate` runs the forwards. The next token and the end of a row are decided here, so that pads never count and a row's
tokens do not depend on its batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

from batchgen.engines.reference.paused import PausedCall
from batchgen.engines.reference.processors import BeamPenalties, Choice, Finished
from batchgen.engines.reference.queue import BatchQueue
from batchgen.engines.reference.rules import BatchRule, Mixing
from batchgen.engines.reference.schedule import first_window
from batchgen.engines.sampling.sampler import Sampler
from batchgen.errors import failures_in_one_line, is_out_of_memory
from batchgen.model import Model
from batchgen.model.padding import pad
from batchgen.planning.backoff import Backoff
from batchgen.planning.batches import plan_batches, step_work
from batchgen.planning.memory import BatchLimits
from batchgen.records import Batch, EngineStats, Sequence


@dataclass(slots=True, eq=False)
class _Running:
    """The current batch: its rows, those that were not returned yet, and its paused `generate`."""

    rows: list[Sequence]
    left: list[Sequence]
    call: PausedCall
    is_prefilled: bool = False


class ReferenceEngine:
    """Runs sequences in planned batches.

    A step is one forward; a batch that runs out of memory runs again in halves.
    """

    def __init__(
        self,
        model: Model,
        limits: BatchLimits,
        sampler: Sampler,
        *,
        rule: BatchRule | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self.model = model
        self.rule = rule or BatchRule(Mixing.padded, model.checkpoint.pad_token_id)
        self.sampler = sampler
        self._backoff = backoff or Backoff(limits)
        self._first_window = first_window(limits)
        self._queue = BatchQueue(self._backoff)
        self._batch: _Running | None = None
        self._batches = self._decode_work = self._new_tokens = 0
        self._prefill_s = self._decode_s = 0.0

    # The engine protocol.

    @property
    def wants_rows(self) -> int:
        """One batch, once all rows are done: the next window is planned as a whole."""
        return self._first_window if self.is_idle else 0

    @property
    def is_idle(self) -> bool:
        return not (self._queue or self._batch)

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            engine="reference",
            batches=self._batches,
            new_tokens=self._new_tokens,
            prefill_s=self._prefill_s,
            decode_s=self._decode_s,
            decode_work=self._decode_work,
            host_syncs=self.sampler.host_syncs,
            peak_bytes=self._backoff.peak_bytes,
            predicted_bytes=self._backoff.predicted_bytes,
            measured_bytes=self._backoff.measured_bytes,
        )

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue rows in batches of rows that the rule lets run together, with the same maximum number of tokens.

        `generate` keeps feeding a finished row until the last row of its batch ends.
        """
        groups: dict[Hashable, list[Sequence]] = {}
        for sequence in sequences:
            groups.setdefault((sequence.sampling.max_new_tokens, self.rule.key(sequence)), []).append(sequence)
        for alike in groups.values():
            self._queue.add(plan_batches(alike, self._backoff.limits))

    def step(self) -> list[Sequence]:
        if self._batch is None:
            if not self._queue:
                return []
            rows = self._queue.take()
            if rows[0].is_finished:
                return rows
            self._batch = _Running(rows, list(rows), PausedCall(lambda pause: self._generate(rows, pause)))
        batch, started = self._batch, time.perf_counter()
        ran_out = False
        try:
            goes_on = batch.call.advance()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            ran_out, goes_on = True, False
        if ran_out:  # not in the `except`: the traceback keeps the failed forward's tensors alive
            self._batch = batch.call = None  # type: ignore[assignment]
            self._new_tokens -= self._queue.give_way(batch.rows)
        else:
            self._count(batch, time.perf_counter() - started, is_over=not goes_on)
        finished = [row for row in batch.left if row.is_finished]
        batch.left = [row for row in batch.left if not row.is_finished]
        return finished

    def close(self) -> None:
        """Drop the current batch and the queue."""
        if self._batch:
            self._batch.call.abandon()
        self._batch = None
        self._queue.clear()
        self._backoff.end()

    def _count(self, batch: _Running, seconds: float, *, is_over: bool) -> None:
        self._new_tokens += sum(row.error is None for row in batch.left)
        if batch.is_prefilled:
            self._decode_s += seconds
        else:
            self._prefill_s += seconds
            self._backoff.begin_steps()
        batch.is_prefilled = True
        if is_over:
            self._batch = None
            self._batches += 1
            num_steps = max(row.num_output_tokens for row in batch.rows) - 1
            self._decode_work += max(0, num_steps) * step_work(len(batch.rows))
            self._queue.done()

    # Runs in the call's thread.

    def _generate(self, rows: list[Sequence], pause: Callable[[], None]) -> None:
        batch = pad(rows, self.rule.pad_token_id)
        for sequence in rows:
            sequence.batch_index, sequence.padded_length = self._batches, batch.input_ids.shape[1]
        rows_columns = "in a batch of {} rows of {} columns".format(*batch.input_ids.shape)
        with torch.inference_mode(), failures_in_one_line(rows_columns):
            if rows[0].sampling.num_beams > 1:
                self._search(batch, pause)
            else:
                self._call_generate(batch, [Choice(batch, self.sampler, self.model)], pause)

    def _search(self, batch: Batch, pause: Callable[[], None]) -> None:
        """Run `generate`'s own beam search; only the penalties are ours, because its own would count pads."""
        checkpoint = self.model.checkpoint
        num_beams = batch.sequences[0].sampling.num_beams
        output_ids = self._call_generate(
            batch,
            [BeamPenalties(batch, num_beams, self.model)],
            pause,
            num_beams=num_beams,
            eos_token_id=sorted(checkpoint.eos_token_ids) or None,
        )
        for sequence, tokens in zip(batch.sequences, output_ids.tolist(), strict=True):
            for token in tokens:
                if not sequence.is_finished:
                    self.sampler.append(sequence, token)

    def _call_generate(
        self, batch: Batch, processors: Iterable[LogitsProcessor], pause: Callable[[], None], **options: object
    ) -> torch.Tensor:
        """Return the generated ids `[B, T_new]`, padded on the right."""
        output = self.model.network.generate(
            **self.model.inputs(batch.input_ids, batch.attention_mask, batch.position_ids),
            generation_config=GenerationConfig(
                max_new_tokens=max(s.sampling.max_new_tokens for s in batch.sequences),
                do_sample=False,
                use_cache=True,
                pad_token_id=self.model.checkpoint.pad_token_id,
                disable_compile=True,
                **options,
            ),
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=StoppingCriteriaList([Finished(batch, pause)]),
        )
        return output[:, batch.input_ids.shape[1] :]  # type: ignore[no-any-return]
