"""Prove that a padded batch gives each row the same result as alone, or show where it does not; with negative controls.

The logits of each step, as the engine saw them, are compared with those of the same row alone, unpadded, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from batchgen.engines import finish_all
from batchgen.errors import InputError
from batchgen.model import Model
from batchgen.model.chat import Chat
from batchgen.model.padding import encode
from batchgen.proof.verify.bit_check import BitCheck, Parting
from batchgen.proof.verify.bits import compare_bits
from batchgen.proof.verify.callables import check_padding
from batchgen.proof.verify.controls import pick_rows, run_controls, spread
from batchgen.proof.verify.cost import QuantizationCost, RowCost
from batchgen.proof.verify.facts import Control, Controls, ErrorBound, RowCheck, ScoreCheck, VerifyReport
from batchgen.proof.verify.layers import MakeEngine
from batchgen.proof.verify.oracle import ERROR_ROWS, Oracle, measure_error
from batchgen.proof.verify.quantized import measure_cost
from batchgen.proof.verify.rows import LogitRecorder, check_engine
from batchgen.proof.verify.scores import check_scores
from batchgen.records import Request, SamplingParams, Sequence

if TYPE_CHECKING:
    from batchgen.engines import Engine
    from batchgen.engines.sampling.sampler import OnLogits

__all__ = [
    "BitCheck",
    "Control",
    "Controls",
    "ErrorBound",
    "LogitRecorder",
    "Oracle",
    "Parting",
    "Plain",
    "QuantizationCost",
    "RowCheck",
    "RowCost",
    "ScoreCheck",
    "VerifyReport",
    "check_engine",
    "check_padding",
    "check_scores",
    "greedily",
    "measure_cost",
    "measure_error",
    "pick_rows",
    "run_controls",
    "spread",
    "verify_rows",
]


@dataclass(frozen=True, slots=True)
class Plain:
    """A model without quantisation: its oracle, and a function that makes an engine for it."""

    oracle: Oracle
    make: Callable[[], Engine]


def greedily(requests: Iterable[Request], max_new_tokens: int) -> tuple[list[Request], int]:
    """Requests without their own options, which `verify` cannot compare, and the number of requests that had some."""
    plain = SamplingParams(max_new_tokens=max_new_tokens)
    given = list(requests)
    changed = sum(request.sampling != plain and not request.error for request in given)
    return [replace(request, sampling=plain) for request in given], changed


def verify_rows(
    model: Model,
    oracle: Oracle,
    requests: list[Request],
    make: Callable[[OnLogits], Engine],
    *,
    others: Mapping[str, MakeEngine] | None = None,
    alone: MakeEngine | None = None,
    parse_special: bool = False,
    chat: Chat | None = None,
    plain: Plain | None = None,
    scorer: Engine | None = None,
) -> tuple[VerifyReport, list[Sequence]]:
    """Run greedy requests through an engine and check every row; returns the report and the rows that could not run.

    `make` creates an engine for `model` that reports the logits it decides from. To compare bits, `others` create
    engines that run the rows in other ways, and `alone` one that runs each row by itself. A `scorer` scores the
    finished rows. `plain` is the model without quantisation, to measure what quantisation costs. Raises `InputError` if
    no row can run.
    """
    sequences = _runnable(encoded := _encode(model, requests, parse_special, chat))
    bound = _bound(model, oracle, sequences)
    controls = run_controls(plain.oracle if plain else oracle, sequences)  # before the rows have answers
    engine = make((recorder := LogitRecorder()).on_logits)
    checks = sorted(check_engine(engine, recorder, oracle, sequences, bound), key=lambda check: check.index)
    report = VerifyReport(
        model=model.checkpoint.name,
        engine=engine.stats.engine,
        device=str(model.device),
        dtype=model.dtype_name,
        most_rows=recorder.most_rows,
        bound=bound,
        controls=controls,
        rows=tuple(checks),
        num_failed=len(_failed(encoded)),
        scores=check_scores(scorer, oracle, sequences, bound, oracle.quantize or model.dtype_name) if scorer else None,
        bits=compare_bits(make, others, pick_rows(sequences), alone=alone) if others else None,
        cost=_cost(oracle, plain, sequences) if plain else None,
    )
    return report, _failed(encoded)


def _bound(model: Model, oracle: Oracle, sequences: list[Sequence]) -> ErrorBound:
    strays = oracle.model if model.dtype == oracle.model.dtype else model
    return measure_error(oracle, strays, pick_rows(sequences, ERROR_ROWS))


def _failed(encoded: list[Sequence]) -> list[Sequence]:
    return [sequence for sequence in encoded if sequence.finish_reason == "error"]


def _runnable(encoded: list[Sequence]) -> list[Sequence]:
    sequences = [sequence for sequence in encoded if not sequence.is_finished]
    if not sequences:
        reason = f", the first because {encoded[0].error}" if encoded else ""
        raise InputError(f"there is nothing to verify: {len(encoded)} rows, none of which can be run{reason}")
    return sequences


def _cost(oracle: Oracle, plain: Plain, answers: list[Sequence]) -> QuantizationCost:
    """Run the same rows again in float32, and measure the differences."""
    assert oracle.quantize is not None
    done = [answer for answer in answers if answer.finish_reason != "error"]
    again = [Sequence(answer.request, answer.sample_index, list(answer.input_ids)) for answer in done]
    rows = [row for row in finish_all(plain.make(), again) if row.finish_reason != "error"]
    return measure_cost(oracle.quantize, plain.oracle, oracle, rows, done)


def _encode(model: Model, requests: list[Request], parse_special: bool, chat: Chat | None) -> list[Sequence]:
    checkpoint = model.checkpoint
    return encode(
        requests,
        checkpoint.codec,
        n_positions=checkpoint.n_positions,
        vocab_size=checkpoint.vocab_size,
        parse_special=parse_special,
        chat=chat,
    )
