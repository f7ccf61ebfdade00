"""Engine `reference`: transformers' own `generate`, one call a batch.

The oracle that other engines are held to. `generate` runs the forwards; which token comes next, and when a row is
finished, is decided here, so that pads never count and a row's tokens do not depend on its batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from batchgen.engines.sampling.sampler import OnLogits, Sampler, append_token, forbidden_tokens, penalize_repetition
from batchgen.errors import ModelError, failures_in_one_line
from batchgen.model import Checkpoint, Model
from batchgen.model.padding import pad
from batchgen.planning.backoff import Backoff
from batchgen.planning.batches import plan_batches, step_work
from batchgen.planning.memory import BatchLimits
from batchgen.records import Batch, Sequence


class ReferenceEngine:
    """Runs sequences in planned batches; yields each batch's sequences when all of them are finished.

    `on_step` is told how many tokens each step made, `on_logits` the logits that they are chosen from (but for beams).
    `should_stop` is asked at each step; a yes drops the batch in hand and raises `KeyboardInterrupt`. `exact` decides
    near ties again, from an unpadded forward of the row alone. `backoff` splits a batch that does not fit.
    """

    def __init__(
        self,
        model: Model,
        limits: BatchLimits,
        *,
        exact: bool = True,
        on_step: Callable[[int], None] = lambda num_tokens: None,
        on_logits: OnLogits = lambda logits, sequences: None,
        should_stop: Callable[[], bool] = lambda: False,
        backoff: Backoff | None = None,
    ) -> None:
        self.model = model
        self.backoff = backoff or Backoff(limits)
        self.exact = exact
        self.on_step = on_step
        self.on_logits = on_logits
        self.should_stop = should_stop
        self.num_batches = self.decode_work = 0
        self.prefill_s = self.decode_s = 0.0

    name = "reference"
    is_busy = False  # a window is done before the next one is asked for

    def generate(self, windows: Iterable[list[Sequence]]) -> Iterator[Sequence]:
        for window in windows:
            yield from (sequence for sequence in window if sequence.is_finished)
            for rows in self._plan([sequence for sequence in window if not sequence.is_finished]):
                for part in self.backoff.run(rows, self._run_together):
                    if self.should_stop():
                        raise KeyboardInterrupt
                    yield from part

    def _plan(self, sequences: list[Sequence]) -> Iterator[list[Sequence]]:
        """Batches of rows that may make equally many tokens: `generate` steps a finished row on, to the last one's."""
        by_length: dict[int, list[Sequence]] = {}
        for sequence in sequences:
            by_length.setdefault(sequence.sampling.max_new_tokens, []).append(sequence)
        for alike in by_length.values():
            yield from plan_batches(alike, self.backoff.limits)

    def _run_together(self, rows: list[Sequence]) -> None:
        batch = pad(rows, self.model.checkpoint.pad_token_id)
        for sequence in rows:
            sequence.batch_index, sequence.padded_length = self.num_batches, batch.input_ids.shape[1]
        rows_columns = "in a batch of {} rows of {} columns".format(*batch.input_ids.shape)
        with torch.inference_mode(), failures_in_one_line(rows_columns):
            self._run(batch)
        self.num_batches += 1

    def _run(self, batch: Batch) -> None:
        started = time.perf_counter()
        watch = _Watch(batch, self.model, self.on_step)
        if batch.sequences[0].sampling.num_beams > 1:
            self._search(batch, watch)
        else:
            self._decode(batch, watch)
        prefilled = watch.first_step_at or time.perf_counter()
        self.prefill_s += prefilled - started
        self.decode_s += time.perf_counter() - prefilled
        num_steps = max(sequence.num_output_tokens for sequence in batch.sequences) - 1
        self.decode_work += num_steps * step_work(len(batch.sequences))

    def _decode(self, batch: Batch, watch: LogitsProcessor) -> None:
        recompute = self.model.logits_alone if self.exact else None
        sampler = Sampler(self.model.checkpoint.eos_token_ids, recompute, self.on_logits)
        self._call_generate(batch, [watch, _Choice(batch, sampler, self.model.checkpoint)])

    def _search(self, batch: Batch, watch: LogitsProcessor) -> None:
        """Beam search is `generate`'s own; only the penalties are ours, since its own would count pads."""
        checkpoint = self.model.checkpoint
        num_beams = batch.sequences[0].sampling.num_beams
        output_ids = self._call_generate(
            batch,
            [watch, _BeamPenalties(batch, num_beams, checkpoint.eos_token_ids)],
            num_beams=num_beams,
            eos_token_id=sorted(checkpoint.eos_token_ids) or None,
        )
        for sequence, tokens in zip(batch.sequences, output_ids.tolist(), strict=True):
            for token in tokens:
                if not sequence.is_finished:
                    append_token(sequence, token, checkpoint.eos_token_ids, checkpoint.tokenizer)

    def _call_generate(self, batch: Batch, processors: list[LogitsProcessor], **options: object) -> torch.Tensor:
        """Generated ids `[B, T_new]`, padded on the right."""
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
            stopping_criteria=StoppingCriteriaList([_Finished(batch, self.should_stop)]),
        )
        return output[:, batch.input_ids.shape[1] :]  # type: ignore[no-any-return]


class _Watch(LogitsProcessor):
    """Notes when the prefill was over, reports each step, and refuses a model that gives NaN. Changes nothing."""

    def __init__(self, batch: Batch, model: Model, on_step: Callable[[int], None]) -> None:
        self.batch = batch
        self.model = model
        self.on_step = on_step
        self.first_step_at: float | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.first_step_at is None:
            self.first_step_at = time.perf_counter()
            if bool(scores.isnan().any()):
                raise ModelError(self.model.nan_message)
        self.on_step(sum(not sequence.is_finished for sequence in self.batch.sequences))
        return scores


class _Choice(LogitsProcessor):
    """The last processor: chooses each row's token, and leaves `generate` no other."""

    def __init__(self, batch: Batch, sampler: Sampler, checkpoint: Checkpoint) -> None:
        self.sequences = batch.sequences
        self.sampler = sampler
        self.checkpoint = checkpoint

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        checkpoint = self.checkpoint
        live = [row for row, sequence in enumerate(self.sequences) if not sequence.is_finished]
        rows = [self.sequences[row] for row in live]
        tokens = self.sampler.choose(scores if len(live) == len(scores) else scores[live], rows)
        for sequence, token in zip(rows, tokens, strict=True):
            append_token(sequence, token, checkpoint.eos_token_ids, checkpoint.tokenizer)
        forced = torch.full((len(scores),), checkpoint.pad_token_id)
        forced[live] = torch.tensor(tokens)
        scores.fill_(-torch.inf)  # [B, V]
        scores[range(len(scores)), forced] = 0
        return scores


class _BeamPenalties(LogitsProcessor):
    """Repetition penalty, n-gram bans and minimum length for beams, on each beam's real tokens."""

    def __init__(self, batch: Batch, num_beams: int, eos_token_ids: Iterable[int]) -> None:
        self.batch = batch
        self.num_beams = num_beams
        self.eos_token_ids = eos_token_ids
        self.padded_length = batch.input_ids.shape[1]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        num_new = input_ids.shape[1] - self.padded_length
        for row, ids in enumerate(input_ids):  # [B * beams, T]
            sequence = self.batch.sequences[row // self.num_beams]
            params = sequence.sampling
            real = ids[self.padded_length - sequence.num_prompt_tokens :]
            if params.repetition_penalty != 1:
                penalty = torch.tensor([params.repetition_penalty], device=scores.device)
                penalize_repetition(scores[row : row + 1], [real.tolist()], penalty)
            scores[row, forbidden_tokens(params, real.tolist(), num_new, self.eos_token_ids)] = -torch.inf
        return scores


class _Finished(StoppingCriteria):
    """Which rows are finished: those whose sequence says so, and all of them when the user asks to stop."""

    def __init__(self, batch: Batch, should_stop: Callable[[], bool]) -> None:
        self.batch = batch
        self.should_stop = should_stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        stop = self.should_stop()
        beams = len(input_ids) // len(self.batch.sequences)
        finished = [stop or sequence.is_finished for sequence in self.batch.sequences for _ in range(beams)]
        return torch.tensor(finished, device=input_ids.device)  # [B] or [B * beams]
