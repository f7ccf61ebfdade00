"""The pipeline: Requests in, Results out, in input order.

Request -> encode -> Sequence -> engine -> Sequence (finished) -> Result
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from operator import attrgetter
from typing import Protocol

from batchgen.engines import Engine
from batchgen.engines.sampling.trying import Trials
from batchgen.errors import InputError
from batchgen.formats.json_values import parse_answer
from batchgen.model import Checkpoint
from batchgen.model.chat import Chat, begin_answers
from batchgen.model.padding import encode
from batchgen.model.passages import PassageEncoder
from batchgen.model.replies import forced_parts, read_reply
from batchgen.model.scored_texts import row_score
from batchgen.model.token_texts import told_logprobs
from batchgen.planning.windows import Windows
from batchgen.records import Request, Result, RunStats, ScoringOptions, Sequence, TooLong
from batchgen.text import name_row

# How a truncated row is marked: next to the row's own columns, under names that no column is likely to have.
TRUNCATED = "batchgen_truncated_tokens"
DROPPED = "batchgen_dropped_messages"


class ResultStore(Protocol):
    """What the pipeline needs from a store: it keeps results as they finish and knows those of earlier runs."""

    @property
    def done(self) -> Container[tuple[int, int]]:
        """(index, sample_index) of the stored results of incomplete rows."""
        ...

    def unfinished(self, requests: Iterable[Request]) -> Iterator[Request]:
        """Yield the requests that still have samples to run."""
        ...

    def add(self, result: Result) -> None: ...

    def forget(self, index: int) -> None:
        """Mark a row as not read yet."""
        ...


class Pipeline:
    """Runs requests through an engine, window by window, and counts what passes through.

    With `strict`, the first failed row raises `InputError`. `should_stop` is called before each step of the engine; if
    it returns true, `KeyboardInterrupt` is raised. `on_step` receives the number of tokens made by each step. With
    `scoring`, the engine scores the rows and generates nothing.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: Engine,
        *,
        too_long: TooLong = "error",
        parse_special: bool = False,
        strict: bool = False,
        should_stop: Callable[[], bool] = lambda: False,
        on_step: Callable[[int], None] = lambda num_tokens: None,
        chat: Chat | None = None,
        scoring: ScoringOptions | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.chat = chat = chat or Chat({}, lambda: checkpoint.codec)
        self._passages: PassageEncoder | None = None
        if scoring:
            self._passages = PassageEncoder(checkpoint, chat, too_long, parse_special, scoring.stride)
        self.engine = engine
        self.strict = strict
        self.too_long = too_long
        self.parse_special = parse_special
        self.should_stop = should_stop
        self.on_step = on_step
        self.first_error: Result | None = None
        self._trials = Trials()
        self._rows = self._errors = self._blank_lines = self._prompt_tokens = self._output_tokens = self._pad_tokens = 0
        self._started = time.perf_counter()

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Yield a Result for every row (and sample) in input order, each as soon as all before it are finished."""
        order = InOrder()
        for finished in self._drive(requests, order.waiting.extend):
            self._check(finished)
            for sequence in order.pop(finished):
                yield self._count(to_result(sequence, self.checkpoint, self.chat))
        assert not order.waiting, "an engine did not finish every row"

    def run_into(self, store: ResultStore, requests: Iterable[Request]) -> Iterator[Result]:
        """Add a Result to the store for every row (and sample) that it lacks, and yield it, as rows finish."""
        waiting: set[int] = set()
        for finished in self._drive(store.unfinished(requests), lambda rows: waiting.update(map(id, rows)), store.done):
            waiting.remove(id(finished))
            if self.strict and finished.error:
                store.forget(finished.request.index)
            self._check(finished)
            result = to_result(finished, self.checkpoint, self.chat)
            store.add(result)
            yield self._count(result)
        assert not waiting, "an engine did not finish every row"

    def _drive(
        self,
        requests: Iterable[Request],
        on_window: Callable[[list[Sequence]], object],
        done: Container[tuple[int, int]] = (),
    ) -> Iterator[Sequence]:
        """Loop over the engine: pass in windows when it wants rows, run a step, yield finished sequences."""
        engine = self.engine
        windows = Windows(requests, first=engine.wants_rows, weigh=attrgetter("weight"))
        has_more = True
        try:
            while has_more or not engine.is_idle:
                if has_more and engine.wants_rows:
                    window = windows.take(wait=engine.is_idle)
                    has_more = window is not None
                    sequences = self._encode(window or [], done)
                    on_window(sequences)
                    yield from (sequence for sequence in sequences if sequence.is_finished)
                    engine.add([sequence for sequence in sequences if not sequence.is_finished])
                if self.should_stop():
                    raise KeyboardInterrupt
                yield from self._step()
        finally:
            windows.close()
            engine.close()
            self._trials.close()

    def _step(self) -> list[Sequence]:
        before = self.engine.stats.new_tokens
        finished = self.engine.step()
        if made := self.engine.stats.new_tokens - before:
            self.on_step(made)
        return finished

    def _encode(self, window: list[Request], done: Container[tuple[int, int]]) -> list[Sequence]:
        """Return the sequences of a window's requests that are not done yet."""
        if self._passages:
            rows = self._passages.encode(window)
            return [row for row in rows if (row.request.index, row.sample_index) not in done]
        sequences = encode(
            list(map(self._trials.checked, window)),
            self.checkpoint.codec,
            n_positions=self.checkpoint.n_positions,
            vocab_size=self.checkpoint.vocab_size,
            too_long=self.too_long,
            parse_special=self.parse_special,
            chat=self.chat,
        )
        begin_answers(self.chat, sequences)
        return [s for s in sequences if (s.request.index, s.sample_index) not in done]

    def count_blank_line(self) -> None:
        self._blank_lines += 1

    def stats(self) -> RunStats:
        """Return the counts and times so far."""
        engine = self.engine.stats
        return RunStats(
            rows=self._rows,
            errors=self._errors,
            blank_lines=self._blank_lines,
            batches=engine.batches,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            pad_tokens=self._pad_tokens,
            prefill_s=engine.prefill_s,
            decode_s=engine.decode_s,
            wall_s=time.perf_counter() - self._started,
            decode_work=engine.decode_work,
            peak_bytes=engine.peak_bytes,
            predicted_batch_bytes=engine.predicted_bytes,
            measured_batch_bytes=engine.measured_bytes,
            drafted_tokens=engine.drafted_tokens,
            accepted_tokens=engine.accepted_tokens,
        )

    def _check(self, finished: Sequence) -> None:
        """End a strict run at its first failed row."""
        if self.strict and finished.error:
            row = name_row(finished.request.id)
            raise InputError(f"{row} failed, and --strict stops the run: {finished.error}")

    def _count(self, result: Result) -> Result:
        self._rows += result.sample_index == 0
        if result.finish_reason == "error":
            self._errors += 1
            self.first_error = self.first_error or result
        if result.padded_length is not None:
            self._prompt_tokens += result.num_prompt_tokens
            self._output_tokens += result.num_output_tokens
            self._pad_tokens += result.num_pads
        return result


class InOrder:
    """Restores the input order of sequences, whatever the order in which an engine finishes them."""

    def __init__(self) -> None:
        self.waiting: deque[Sequence] = deque()
        self._done: set[int] = set()

    def pop(self, finished: Sequence) -> Iterator[Sequence]:
        """Mark a sequence as finished; yield the finished sequences at the front of the queue."""
        self._done.add(id(finished))
        while self.waiting and id(self.waiting[0]) in self._done:
            self._done.remove(id(self.waiting[0]))
            yield self.waiting.popleft()


def to_result(sequence: Sequence, checkpoint: Checkpoint, chat: Chat) -> Result:
    """Make the Result of a finished sequence; a conversation's answer is split into its parts."""
    request = sequence.request
    if request.scored:
        return _scored_result(sequence, checkpoint)
    reply = read_reply(sequence, checkpoint, chat)
    constraint = request.sampling.constraint
    is_json = constraint is not None and constraint.is_json
    logprobs = None
    if request.sampling.logprobs is not None and sequence.finish_reason != "error":
        with_texts = request.endpoint is not None  # OpenAI's format names alternatives by their text
        logprobs = told_logprobs(checkpoint.codec, sequence.output_ids, sequence.logprobs, with_texts=with_texts)
    return Result(
        index=request.index,
        id=request.id,
        sample_index=sequence.sample_index,
        prompt=request.prompt,
        text=reply.text,
        finish_reason=sequence.finish_reason or "error",
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_output_tokens=sequence.num_output_tokens,
        error=sequence.error,
        metadata=request.metadata | _cut(sequence),
        model=checkpoint.name,
        input_ids=tuple(sequence.input_ids),
        output_ids=tuple(sequence.output_ids),
        batch_index=sequence.batch_index,
        padded_length=sequence.padded_length,
        source=request.source,
        messages=[message.to_dict() for message in request.messages] or None,
        reasoning=reply.reasoning,
        tool_calls=reply.tool_calls,
        endpoint=request.endpoint,
        cumulative_logprob=logprobs.total if logprobs else None,
        logprobs=logprobs,
        parsed=parse_answer(reply.answer) if is_json and sequence.finish_reason == "stop" else None,
        is_json=is_json,
        forced=forced_parts(sequence, checkpoint, reply.text),
    )


def _cut(sequence: Sequence) -> dict[str, int]:
    """Count the tokens and messages that were cut from a row because it was too long."""
    counts = {TRUNCATED: sequence.num_truncated_tokens, DROPPED: sequence.num_dropped_messages}
    return {name: count for name, count in counts.items() if count}


def _scored_result(sequence: Sequence, checkpoint: Checkpoint) -> Result:
    """Make the Result of a scored sequence; `text` is the scored text, or empty if there are several choices."""
    request = sequence.request
    score = row_score(sequence, checkpoint.codec)
    texts = [text.text for text in score.texts] or list(request.replies)
    is_text = score.kind == "text"
    return Result(
        index=request.index,
        id=request.id,
        sample_index=0,
        prompt="" if is_text else request.prompt,
        text=request.prompt if is_text else texts[0] if len(texts) == 1 and score.kind != "choices" else "",
        finish_reason=sequence.finish_reason or "error",
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_output_tokens=sum(text.num_tokens for text in score.texts),
        error=sequence.error,
        metadata=request.metadata | _cut(sequence),
        model=checkpoint.name,
        batch_index=sequence.batch_index,
        padded_length=sequence.padded_length,
        source=request.source,
        messages=[message.to_dict() for message in request.messages] or None,
        endpoint=request.endpoint,
        score=score,
    )
