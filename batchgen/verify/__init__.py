"""Proves that a padded batch gives each row what it gets alone, or shows where not; with negative controls.

Each step's logits, as the engine saw them, are held against those of the same row alone, unpadded, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from batchgen.engines import make_engine
from batchgen.errors import InputError
from batchgen.model import Model
from batchgen.padding import encode
from batchgen.probes import MemoryLimit
from batchgen.records import Request, SamplingParams, Sequence
from batchgen.verify.callables import check_padding
from batchgen.verify.controls import pick_rows, run_controls, spread
from batchgen.verify.facts import Control, Controls, ErrorBound, Report, RowCheck
from batchgen.verify.oracle import ERROR_ROWS, Oracle, measure_error
from batchgen.verify.rows import LogitRecorder, check_engine

__all__ = [
    "Control",
    "Controls",
    "ErrorBound",
    "LogitRecorder",
    "Oracle",
    "Report",
    "RowCheck",
    "check_engine",
    "check_padding",
    "greedily",
    "measure_error",
    "pick_rows",
    "run_controls",
    "spread",
    "verify_rows",
]


def greedily(requests: Iterable[Request], max_new_tokens: int) -> tuple[list[Request], int]:
    """Requests without options of their own, which `verify` cannot compare; and how many had some."""
    plain = SamplingParams(max_new_tokens=max_new_tokens)
    given = list(requests)
    changed = sum(request.sampling != plain and not request.error for request in given)
    return [replace(request, sampling=plain) for request in given], changed


def verify_rows(
    model: Model,
    oracle: Oracle,
    requests: list[Request],
    *,
    engine: str = "auto",
    num_rows: int | None = None,
    exact: bool = True,
    share: bool = True,
    parse_special: bool = False,
    memory: MemoryLimit | None = None,
    on_step: Callable[[int], None] = lambda num_tokens: None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Report, list[Sequence]]:
    """Runs greedy requests in batches and checks every row; also the rows that could not be run.

    The oracle needs a model of its own: engines change theirs in place. Raises `InputError` where no row can be run.
    """
    checkpoint = model.checkpoint
    encoded = encode(
        requests,
        checkpoint.tokenizer,
        n_positions=checkpoint.n_positions,
        vocab_size=checkpoint.vocab_size,
        parse_special=parse_special,
    )
    sequences = [sequence for sequence in encoded if not sequence.is_finished]
    if not sequences:
        reason = f", the first because {encoded[0].error}" if encoded else ""
        raise InputError(f"there is nothing to verify: {len(encoded)} rows, and none of them can be run{reason}")
    strays = oracle.model if model.dtype == oracle.model.dtype else model
    bound = measure_error(oracle, strays, pick_rows(sequences, ERROR_ROWS))
    controls = run_controls(oracle, sequences)
    recorder = LogitRecorder()
    runner = make_engine(
        model,
        name=engine,
        num_rows=num_rows,
        exact=exact,
        share=share,
        memory=memory,
        on_step=on_step,
        on_logits=recorder.on_logits,
        say=say,
    )
    checks = sorted(check_engine(runner, recorder, oracle, sequences, bound), key=lambda check: check.index)
    failed = [sequence for sequence in encoded if sequence.finish_reason == "error"]
    report = Report(
        model=checkpoint.name,
        engine=runner.name,
        device=str(model.device),
        dtype=model.dtype_name,
        most_rows=recorder.most_rows,
        bound=bound,
        controls=controls,
        rows=tuple(checks),
        num_failed=len(failed),
    )
    return report, failed
