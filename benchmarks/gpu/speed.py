"""Tokens per second against `generate`, host syncs per step, predicted against measured memory, and back-off."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from batchgen.engines.continuous.network import slot_network
from batchgen.model import Model
from batchgen.records import SamplingParams
from benchmarks.gpu.models import ENGINES, engine_of, finish, forget, generate, prompt, rows_of, settle

SAMPLED = {"temperature": 0.8, "top_k": 50, "top_p": 0.95}


def ragged(rows: int, longest: int) -> list[list[int]]:
    source = random.Random(rows)
    return [prompt(source.randint(longest // 8, longest), i) for i in range(rows)]


@dataclass(frozen=True, slots=True)
class Speed:
    """Rates are new tokens per second, including the time for prompts; None if it ran out of memory."""

    model: str
    dtype: str
    rows: int
    continuous: float | None
    reference: float | None
    generate: float | None
    fault: str = ""


def speed(model: Model, rows: int, new_tokens: int, longest: int) -> Speed:
    """Run all three on the same rows, all rows together, greedy; each runs once to warm up, with two tokens."""
    prompts = ragged(rows, longest)
    rates: dict[str, float | None] = {}
    for name in (*ENGINES, "generate"):
        try:
            _timed(model, name, prompts, 2)
            rates[name] = rows * new_tokens / _timed(model, name, prompts, new_tokens)
        except torch.OutOfMemoryError:
            rates[name] = None
        forget(model.device)
    return Speed(model.checkpoint.name, model.dtype_name, rows, **rates)


def _timed(model: Model, name: str, prompts: list[list[int]], new_tokens: int) -> float:
    """Return the time in seconds."""
    rows = rows_of(prompts, SamplingParams(max_new_tokens=new_tokens))
    engine = None if name == "generate" else engine_of(model, name, len(rows))
    settle(model.device)
    started = time.perf_counter()
    if engine is None:
        generate(model, rows, new_tokens)
    else:
        finish(engine, rows)
    settle(model.device)
    return time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class Syncs:
    """Host syncs per decode step: the engine's own count, and what torch saw on CUDA (None elsewhere)."""

    model: str
    engine: str
    sampling: str
    counted: float
    seen: float | None
    fault: str = ""


def syncs(model: Model, name: str, *, is_sampled: bool, steps: int = 4) -> Syncs:
    params = SamplingParams(max_new_tokens=steps + 4, **(SAMPLED if is_sampled else {}))
    engine = engine_of(model, name, 8)
    engine.add(rows_of(ragged(8, 32), params))
    for _ in range(3):  # the prefill, and two that warm up
        engine.step()
    before = engine.stats.host_syncs
    with _seen_syncs(model.device) as seen:
        for _ in range(steps):
            engine.step()
    counted = engine.stats.host_syncs - before
    engine.close()
    told = len(seen) / steps if model.device.type == "cuda" else None
    return Syncs(model.checkpoint.name, name, "sampled" if is_sampled else "greedy", counted / steps, told)


@contextmanager
def _seen_syncs(device: torch.device) -> Iterator[list[Any]]:
    """Collect torch's warnings about operations that wait for the device."""
    if device.type != "cuda":
        yield []
        return
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.set_warn_always(True)
        torch.cuda.set_sync_debug_mode("warn")
        found: list[Any] = []
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
            torch.set_warn_always(False)
            found += [warning for warning in told if "synchroniz" in str(warning.message)]


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that rows were expected to take on top of the weights, and took (None if it cannot be measured)."""

    model: str
    dtype: str
    engine: str
    sampling: str
    rows: int
    predicted: int
    measured: int | None
    fault: str = ""


def memory(model: Model, name: str, rows: int, longest: int, *, is_sampled: bool) -> Memory:
    """Measure memory. More than a tenth above the prediction is a fault, from 64 MiB on a GPU."""
    forget(model.device)
    params = SamplingParams(max_new_tokens=16, **(SAMPLED if is_sampled else {}))
    engine = engine_of(model, name, rows)
    finish(engine, rows_of(ragged(rows, longest), params))
    stats, sampling = engine.stats, "sampled" if is_sampled else "greedy"
    fault = ""
    if model.device.type == "cuda" and (stats.measured_bytes or 0) > max(64 << 20, 1.1 * stats.predicted_bytes):
        more = (stats.measured_bytes or 0) / max(1, stats.predicted_bytes)
        fault = f"{model.checkpoint.name} {model.dtype_name}, {name}, {rows} rows, {sampling}: {more:.2f} of predicted"
    return Memory(
        model.checkpoint.name,
        model.dtype_name,
        name,
        sampling,
        rows,
        stats.predicted_bytes,
        stats.measured_bytes,
        fault,
    )


@dataclass(frozen=True, slots=True)
class BackedOff:
    """The number of rows that were to run together, with memory for fewer; `said` is what the engine reported."""

    model: str
    engine: str
    rows: int
    said: tuple[str, ...]
    done: int
    equal: int

    @property
    def fault(self) -> str:
        where = f"{self.model}, {self.engine}: out of memory with {self.rows} rows"
        if not any(line.startswith("out of memory") for line in self.said):
            return f"{where} never came"
        return "" if self.done == self.equal == self.rows else f"{where}: only {self.equal} rows came out right"


def backed_off(model: Model, name: str, rows: int, longest: int, new_tokens: int = 8) -> BackedOff:
    """Run rows in small batches, and then all together with too little memory for that."""
    prompts, params = ragged(rows, longest), SamplingParams(max_new_tokens=new_tokens)
    right = [row.output_ids for row in finish(engine_of(model, name, 4), rows_of(prompts, params))]
    said: list[str] = []
    forget(model.device)
    with _little_memory(model, most_rows=max(4, rows // 4), longest=longest + new_tokens):
        tried = finish(engine_of(model, name, rows, say=said.append), rows_of(prompts, params))
    done = sum(row.error is None for row in tried)
    equal = sum(row.output_ids == ids for row, ids in zip(tried, right, strict=True))
    return BackedOff(model.checkpoint.name, name, rows, tuple(said), done, equal)


@contextmanager
def _little_memory(model: Model, most_rows: int, longest: int) -> Iterator[None]:
    """On CUDA, limit torch to about the memory of `most_rows` rows; elsewhere, let every layer refuse more rows."""
    if model.device.type == "cuda":
        total = torch.cuda.mem_get_info(model.device)[1]
        config = model.checkpoint.config.get_text_config()
        row_bytes = 4 * (config.vocab_size * 4 + longest * config.hidden_size * config.num_hidden_layers * 3)
        limit = torch.cuda.memory_reserved(model.device) + most_rows * row_bytes
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), model.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, model.device)
        return

    def refuse(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > most_rows:
            raise torch.OutOfMemoryError(f"{len(inputs[0])} rows, room for {most_rows}")

    embedding = model.network.get_input_embeddings()
    handles = [embedding.register_forward_pre_hook(refuse)]
    own, _ = slot_network(model)
    if own is not None:
        handles.append(own.network.get_input_embeddings().register_forward_pre_hook(refuse))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
