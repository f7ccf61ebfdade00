"""The screen of `doctor`: facts in sections with aligned labels, advice last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from batchgen.engines.int8.support import INT8
from batchgen.render.screen import plural, print_section
from batchgen.text import escape, size_text, visible

if TYPE_CHECKING:
    from batchgen.doctor.facts import (
        Accelerator,
        ChatFacts,
        Diagnosis,
        Installation,
        LinearKernels,
        Machine,
        ModelAtHand,
        ModelFacts,
        Models,
        Processor,
    )
    from batchgen.machine.speeds import KeptGain

Line = tuple[str, str]  # label, text

UNKNOWN = "unknown"
LABEL_WIDTH = 13
# At most this many limits and models are listed, of others only the number; `--json` has all.
MOST_BOUNDS, MOST_MODELS = 3, 5


def print_diagnosis(console: Console, diagnosis: Diagnosis, advice: Sequence[str]) -> None:
    """Print sections of labelled lines, folded at words on a narrow terminal."""
    sections = {
        "Installation": _installation(diagnosis.installation),
        "Devices": _devices(diagnosis.machine),
        "Memory": _memory(diagnosis.machine),
        "Models": _models(diagnosis.models, diagnosis.hub_answers),
    }
    for title, lines in sections.items():
        print_section(console, title, lines, LABEL_WIDTH)
    if diagnosis.model:
        print_model(console, diagnosis.model)
    if diagnosis.chat:
        print_chat(console, diagnosis.chat)
    print_section(console, "Advice", [("-", line) for line in advice or ["no problems found"]], 1)


def _installation(installation: Installation) -> Iterator[Line]:
    versions = {version.name: version.installed or "missing" for version in installation.versions}
    yield "batchgen", f"{versions.pop('batchgen', UNKNOWN)}, Python {installation.python}"
    yield "platform", installation.platform
    build = f"built for {installation.torch_build}" if installation.torch_build else "CPU-only build"
    yield "torch", f"{versions.pop('torch', UNKNOWN)}, {'broken' if installation.torch_problem else build}"
    yield "libraries", ", ".join(f"{name} {version}" for name, version in versions.items())


def _devices(machine: Machine) -> Iterator[Line]:
    yield from _processor(machine.processor)
    for accelerator in machine.accelerators:
        yield accelerator.name, _accelerator(accelerator)
    yield "--device auto", f"auto picks {machine.auto_device or UNKNOWN}"
    for speed in machine.speeds:
        rate = f"{speed.gflops:,.0f} GFLOP/s" if speed.gflops else "not supported"
        ratio = machine.ratio(speed.dtype) if speed.dtype != "float32" else None
        times = f", {ratio:.2g} times float32" if ratio else ""
        yield speed.dtype, f"{rate} on {machine.device}{times}"
    if machine.kernels:
        yield "linear layers", "; ".join(map(_kernels, machine.kernels))
        why = machine.why_not_compiled
        yield "small operations", f"as torch has them, {why}" if why else "compiled by Numba for models of 50M and more"
    if machine.bfloat16_gain:
        yield "bench", _gain(machine.bfloat16_gain)


def _kernels(kernels: LinearKernels) -> str:
    """Return how the slots multiply in a dtype, and why."""
    if kernels.dtype == INT8:
        return f"{INT8} {f'not supported, {kernels.why_plain}' if kernels.why_plain else 'with --quantize int8'}"
    packed = "packed for oneDNN"
    return f"{kernels.dtype} {f'as loaded, {kernels.why_plain}' if kernels.why_plain else packed}"


def _gain(gain: KeptGain) -> str:
    """Return what bfloat16 gains in a whole run."""
    changed = "" if gain.differing_share is None else f", {gain.differing_share:.0%} of greedy tokens differ"
    return f"bfloat16 runs {gain.model} {gain.times:.2g} times as fast{changed} ({gain.date})"


def _processor(processor: Processor) -> Iterator[Line]:
    yield "cpu", processor.name or UNKNOWN
    threads = f"; torch uses {plural(processor.torch_threads, 'thread')}" if processor.torch_threads else ""
    yield "cores", f"{processor.physical_cores or UNKNOWN} ({processor.logical_cores or UNKNOWN} logical){threads}"
    sixteen_bit = ", ".join(processor.sixteen_bit) or "none known"
    yield "instructions", f"{processor.vectors or UNKNOWN}; for 16 bits: {sixteen_bit}"


def _accelerator(accelerator: Accelerator) -> str:
    words = {True: ", bfloat16", False: ", no bfloat16", None: ""}
    free = f"{_size(accelerator.total_bytes)} ({_size(accelerator.free_bytes)} free)"
    capability = f", compute {accelerator.compute_capability}" if accelerator.compute_capability else ""
    return f"{accelerator.model}, {free}{capability}{words[accelerator.has_bfloat16]}"


def _memory(machine: Machine) -> Iterator[Line]:
    yield "machine", f"{_size(machine.ram_bytes)}; this process holds {_size(machine.held_bytes)}"
    for place, bound in enumerate(machine.bounds[:MOST_BOUNDS]):
        binds = ", the tightest limit" if place == 0 and len(machine.bounds) > 1 else ""
        yield "" if place else "limits", f"{size_text(bound.available_bytes)} left by {bound.name}{binds}"
    if len(machine.bounds) > MOST_BOUNDS:
        yield "", f"and {plural(len(machine.bounds) - MOST_BOUNDS, 'wider limit')} (--json has all)"


def _models(models: Models, hub_answers: bool | None) -> Iterator[Line]:
    yield "bundled", _model(models.bundled) if models.bundled else "missing"
    yield "gpt2", "in the cache" if models.has_gpt2 else "not in the cache"
    yield "cached", _cached(models.cached)
    yield "HF_HOME", models.hf_home or UNKNOWN
    answers = {True: "answers", False: "does not answer", None: "not asked: HF_HUB_OFFLINE is set"}
    yield "the Hub", answers[hub_answers]


def print_model(console: Console, model: ModelFacts) -> None:
    """Print the section on how a model runs."""
    print_section(console, "Model", _how_it_runs(model), LABEL_WIDTH)


def _how_it_runs(model: ModelFacts) -> Iterator[Line]:
    yield "model", model.model
    yield "family", f"{model.family}, {plural(model.num_layers, 'layer')}"
    yield "engine", model.engine + (f": {model.why_no_slots}" if model.why_no_slots else "")
    yield "batches", model.rows_of_a_batch or "not tried yet: the first run finds out which rows can run together"
    yield "bits", model.bits or "not tried yet: the first run finds out whether a row's bits depend on its batch"
    yield "context", plural(model.context_length, "token") if model.context_length else "no limit"
    for window, number in model.windows:
        if window:
            layers = f"{number} of {plural(model.num_layers, 'layer')}"
            yield "window", f"{layers} see at most {plural(window, 'token')}"
    if model.cache_bytes_per_token:
        yield "KV cache", f"{size_text(model.cache_bytes_per_token)} per token in {model.dtype}"
    if model.state_bytes_per_row:
        yield "state", f"{size_text(model.state_bytes_per_row)} per row in {model.dtype}"


def print_chat(console: Console, chat: ChatFacts) -> None:
    """Print the section on a model's conversations."""
    print_section(console, "Conversations", _chat(chat), LABEL_WIDTH)


def _chat(chat: ChatFacts) -> Iterator[Line]:
    yield "model", chat.model
    if chat.problem:
        yield "template", f"broken: {chat.problem}"
        return
    if not chat.templates:
        yield "template", "none: --chat needs --chat-template FILE"
    else:
        yield "template", ", ".join(chat.templates)
        yield from _turns(chat)
    yield "BOS", escape(chat.bos or UNKNOWN)


def _turns(chat: ChatFacts) -> Iterator[Line]:
    if chat.opens is None or chat.closes is None or chat.generation_prompt is None:
        yield "turns", "it rejects a question with an answer, so the marks of turns are unknown"
        return
    ends = {
        True: "",
        False: "; it is not one of the model's end tokens, so batchgen adds it",
        None: "; no single token",
    }
    yield "opens", visible(chat.opens)
    yield "closes", f"{visible(chat.closes)}{ends[chat.closing_is_eos]}"
    yield "asks", visible(chat.generation_prompt) or "nothing"
    if chat.reasoning_marks:
        yield "thinks", " … ".join(chat.reasoning_marks)


def _model(model: ModelAtHand) -> str:
    parameters = f", {model.parameters / 1e6:.1f} million parameters" if model.parameters else ""
    return size_text(model.size_bytes) + parameters


def _cached(models: Sequence[ModelAtHand]) -> str:
    shown = [f"{model.name} ({size_text(model.size_bytes)})" for model in models[:MOST_MODELS]]
    more = len(models) - len(shown)
    return ", ".join(shown + ([f"and {more:,} more (--json has all)"] if more else [])) or "none"


def _size(num_bytes: int | None) -> str:
    return UNKNOWN if num_bytes is None else size_text(num_bytes)
