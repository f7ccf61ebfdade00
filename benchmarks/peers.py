"""batchgen against its peers on a CPU: the same prompts through each system in turn, greedy, for several rounds.

Each system has its own process, so that none runs in another's heap and threads.

    pip install .[bench]
    python benchmarks/peers.py [--rounds 3] [--count 128] [--new-tokens 64] [--systems continuous,openvino]
    python benchmarks/peers.py --ragged --output-lengths FILE.csv    # each row has its own length
    python benchmarks/peers.py --model FOLDER --prompt-tokens 40     # any model, prompts of one length
    python benchmarks/peers.py --write --json FILE.json              # into docs/benchmarks.md, and as JSON

Without `--model`, the model has GPT-2's shape (124M parameters) and random weights. Every row runs to its full length:
no end token stops it. OpenVINO needs another model exported: by `optimum-cli` (optimum-intel, on the PATH or at
`--optimum-cli`), or earlier, into the folder `--openvino`. llama.cpp needs its server (`--llama-server`) and, for each
precision, a GGUF: by its converter (`--gguf-converter`), or an earlier one (`--gguf`). Loading, export, warm-up and the
choice of the batch size (each size once, on as many rows as the largest size) are not timed. If a system has no limits
per row, a batch runs to its longest row. Only requested tokens count. Peers take and return token ids, `pipeline` takes
text; batchgen's time includes tokenizing and decoding. Tokens are compared with batchgen's in float32: peers may differ
by rounding (and llama.cpp after an end token: it never chooses one, the others choose it and go on), batchgen's engines
may not (exit code 1). A peer that does not run is skipped, with the reason on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from llama_server import LlamaServer, version_of_server
from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig, pipeline
from transformers.utils import logging
from workloads import (
    Row,
    export_ctranslate2,
    export_gguf,
    export_openvino,
    export_openvino_int8,
    export_openvino_with_optimum,
    make_model,
    make_rows,
    read_lengths,
)

from batchgen import generate, open_model
from batchgen.errors import UsageError

Run = Callable[[list[Row]], list[list[int]]]

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- peers -->\n", "<!-- end of peers -->\n"
THREADS = os.cpu_count() or 1
OPENVINO_FOLDER = "openvino"  # the export of a model, beside its files
LLAMA_CPP_SETUP = "llama.cpp.json"  # how to run llama.cpp, beside a model's files
GGUF_PRECISIONS = {"llama.cpp": "f32", "llama.cpp-bf16": "bf16", "llama.cpp-q8": "q8_0"}  # by system
ROW_TOKENS = 400  # maximum length of a row, prompt and continuation


@dataclass(frozen=True)
class System:
    """How to load a system: `prepare(folder, batch_size)` returns what continues rows.

    Of several batch sizes the fastest is used; 0 leaves the size to the system. `needs` are its packages.
    """

    prepare: Callable[[Path, int], Run]
    batch_sizes: tuple[int, ...] = (0,)
    needs: tuple[str, ...] = ()
    is_peer: bool = True
    few_rows: bool = False


@dataclass
class Outcome:
    """A system's results: output tokens per second of each round, and the tokens of the last round."""

    name: str
    batch_size: int
    rates: list[float] = field(default_factory=list)
    output_ids: list[list[int]] = field(default_factory=list)
    equal_rows: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.rates)


# The systems


def prepare_batchgen(folder: Path, batch_size: int, *, engine: str, dtype: str, quantize: str | None = None) -> Run:
    model = open_model(str(folder), dtype=dtype)
    options: dict[str, Any] = {"engine": engine, "quantize": quantize, "ignore_eos": True}

    def run(rows: list[Row]) -> list[list[int]]:
        prompts = [{"prompt": row.prompt, "sampling": {"max_new_tokens": row.new_tokens}} for row in rows]
        lengths = {row.new_tokens for row in rows}
        if len(lengths) == 1:
            results = generate([row.prompt for row in rows], model, max_new_tokens=lengths.pop(), **options)
        else:
            results = generate(prompts, model, **options)
        return [list(result.output_ids) for result in results]

    return run


def prepare_generate(folder: Path, batch_size: int, *, dtype: torch.dtype) -> Run:
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    pad = pad_of(folder)
    network.generation_config = GenerationConfig(do_sample=False, pad_token_id=pad)

    def run_batch(rows: list[Row], new_tokens: int) -> list[list[int]]:
        columns = max(len(row.input_ids) for row in rows)
        pads = [columns - len(row.input_ids) for row in rows]
        input_ids = torch.tensor([[pad] * n + row.input_ids for n, row in zip(pads, rows, strict=True)])  # [B, T]
        mask = torch.tensor([[0] * n + [1] * (columns - n) for n in pads])  # [B, T]
        output = network.generate(input_ids, attention_mask=mask, max_new_tokens=new_tokens)
        ids: list[list[int]] = output[:, columns:].tolist()
        return ids

    return lambda rows: in_batches(by_length(rows), batch_size, run_batch, len(rows))


def prepare_pipeline(folder: Path, batch_size: int) -> Run:
    generator = pipeline("text-generation", model=str(folder), dtype=torch.float32)
    generator.tokenizer.pad_token_id = pad = pad_of(folder)
    generator.tokenizer.padding_side = "left"
    generator.model.generation_config = GenerationConfig(do_sample=False, pad_token_id=pad)
    generator.generation_config = generator.model.generation_config

    def run_batch(rows: list[Row], new_tokens: int) -> list[list[int]]:
        prompts = [row.prompt for row in rows]
        results = generator(prompts, batch_size=batch_size, max_new_tokens=new_tokens, return_tensors=True)
        return [list(result[0]["generated_token_ids"])[-new_tokens:] for result in results]

    return lambda rows: in_batches(list(enumerate(rows)), batch_size, run_batch, len(rows))


def prepare_generate_batch(folder: Path, batch_size: int) -> Run:
    """Do the same as `model.generate_batch`, through its manager, which accepts a limit per row.

    Does not use the default settings: a cache of 60% of the memory takes seconds to allocate.
    """
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sampling = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=pad_of(folder))
    page_size = 32
    num_blocks = batch_size * (ROW_TOKENS // page_size + 2)

    def run(rows: list[Row]) -> list[list[int]]:
        config = ContinuousBatchingConfig(
            page_size=page_size, num_blocks=num_blocks, max_batch_tokens=256, max_requests_per_batch=batch_size
        )
        outputs: dict[str, list[int]] = {}
        with network.continuous_batching_context_manager(sampling, continuous_batching_config=config) as manager:
            ids = [manager.add_request(row.input_ids, max_new_tokens=row.new_tokens) for row in rows]
            while len(outputs) < len(rows):
                result = manager.get_result(timeout=1)
                if result is None and not manager.is_running():
                    raise RuntimeError("the manager of continuous batching ended early")
                if result is not None and result.is_finished():
                    outputs[result.request_id] = result.generated_tokens
        return [outputs[id] for id in ids]

    return run


def prepare_ctranslate2(folder: Path, batch_size: int, *, compute_type: str) -> Run:
    import ctranslate2

    export = exported(folder, "ctranslate2", export_ctranslate2)
    generator = ctranslate2.Generator(
        str(export), device="cpu", compute_type=compute_type, intra_threads=THREADS, inter_threads=1
    )
    to_tokens = AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens

    def run_batch(rows: list[Row], new_tokens: int) -> list[list[int]]:
        prompts = [to_tokens(row.input_ids) for row in rows]
        results = generator.generate_batch(prompts, max_length=new_tokens, include_prompt_in_result=False)
        return [result.sequences_ids[0] for result in results]

    return lambda rows: in_batches(by_length(rows), batch_size, run_batch, len(rows))


def prepare_openvino(folder: Path, batch_size: int, *, precision: str, weights: str = "") -> Run:
    import openvino_genai
    from openvino import Tensor

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_seqs = batch_size
    scheduler.cache_size = 4  # GB
    scheduler.enable_prefix_caching = False  # otherwise a round would reuse the cache of the one before it
    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "KV_CACHE_PRECISION": precision,
        "INFERENCE_NUM_THREADS": THREADS,
    }
    export = exported(folder, OPENVINO_FOLDER, export_openvino)
    if weights == "int8":
        export = exported(export, weights, export_openvino_int8)
    engine = openvino_genai.ContinuousBatchingPipeline(str(export), scheduler, "CPU", options)

    def run(rows: list[Row]) -> list[list[int]]:
        prompts = [Tensor(torch.tensor([row.input_ids]).numpy()) for row in rows]
        limits = [
            openvino_genai.GenerationConfig(max_new_tokens=row.new_tokens, do_sample=False, ignore_eos=True)
            for row in rows
        ]
        return [list(result.m_generation_ids[0]) for result in engine.generate(prompts, limits)]

    return run


def prepare_llama_cpp(folder: Path, batch_size: int, *, precision: str, cache: str) -> Run:
    setup = json.loads((folder / LLAMA_CPP_SETUP).read_text(encoding="utf-8"))
    gguf = exported(folder, gguf_name(precision), partial(export_gguf, setup["converter"], precision))
    return LlamaServer(
        setup["server"], gguf, slots=batch_size, row_tokens=setup["row_tokens"], cache=cache, threads=THREADS
    )


def gguf_name(precision: str) -> str:
    return f"llama.cpp-{precision}.gguf"


def pad_of(folder: Path) -> int:
    return int(AutoTokenizer.from_pretrained(folder).eos_token_id)


CT2, OPENVINO = ("ctranslate2",), ("openvino", "openvino_genai", "openvino_tokenizers")
SYSTEMS = {
    "loop": System(lambda folder, _: prepare_generate(folder, 1, dtype=torch.float32), few_rows=True),
    "pipeline": System(prepare_pipeline, (8, 16, 32, 64)),
    "generate": System(partial(prepare_generate, dtype=torch.float32), (64,)),
    "generate-bf16": System(partial(prepare_generate, dtype=torch.bfloat16), (64,)),
    "generate-batch": System(prepare_generate_batch, (16, 64)),
    "ctranslate2": System(partial(prepare_ctranslate2, compute_type="float32"), (16, 32, 64, 128), CT2),
    "ctranslate2-int8": System(partial(prepare_ctranslate2, compute_type="int8"), (16, 32, 64, 128), CT2),
    "openvino": System(partial(prepare_openvino, precision="f32"), (32, 64, 128), OPENVINO),
    "openvino-bf16": System(partial(prepare_openvino, precision="bf16"), (32, 64, 128), OPENVINO),
    "openvino-int8": System(
        partial(prepare_openvino, precision="bf16", weights="int8"), (32, 64, 128), (*OPENVINO, "nncf")
    ),
    "llama.cpp": System(partial(prepare_llama_cpp, precision="f32", cache="f32"), (32, 64, 128)),
    "llama.cpp-bf16": System(partial(prepare_llama_cpp, precision="bf16", cache="bf16"), (32, 64, 128)),
    "llama.cpp-q8": System(partial(prepare_llama_cpp, precision="q8_0", cache="f16"), (32, 64, 128)),
    "reference": System(partial(prepare_batchgen, engine="reference", dtype="float32"), is_peer=False),
    "continuous": System(partial(prepare_batchgen, engine="continuous", dtype="float32"), is_peer=False),
    "continuous-bf16": System(partial(prepare_batchgen, engine="continuous", dtype="bfloat16"), is_peer=False),
    "continuous-int8": System(
        partial(prepare_batchgen, engine="continuous", dtype="bfloat16", quantize="int8"), is_peer=False
    ),
}
OURS, OURS_BF16 = "continuous", "continuous-bf16"


def exported(folder: Path, name: str, export: Callable[[Path, Path], None]) -> Path:
    """Return the model in another format, exported once."""
    target = folder / name
    if not target.exists():
        export(folder, target)
    return target


def provide_model(options: argparse.Namespace, folder: Path) -> None:
    """Put the model's files into a folder in which systems make their exports: links to those of `--model`."""
    if options.model is None:
        make_model(folder)
        return
    for path in options.model.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    target = folder / OPENVINO_FOLDER
    command = options.optimum_cli or shutil.which("optimum-cli")
    if options.openvino is not None:
        shutil.copytree(options.openvino, target, symlinks=True)
    elif any(name.startswith("openvino") for name in options.systems):
        if command is None:
            say("SKIPPED openvino: no optimum-cli to export this model with: give --optimum-cli or --openvino")
            options.systems = [name for name in options.systems if not name.startswith("openvino")]
        else:
            export_openvino_with_optimum(str(command), options.model, target)


def provide_llama_cpp(options: argparse.Namespace, folder: Path, rows: list[Row]) -> None:
    """Put llama.cpp's setup and any GGUFs beside the model's files. Drops systems that lack something."""
    missing = {name: why for name in options.systems if (why := why_no_llama_cpp(name, options))}
    for name, why in missing.items():
        say(f"SKIPPED {name}: {why}")
    options.systems = [name for name in options.systems if name not in missing]
    for precision, path in options.gguf.items():
        (folder / gguf_name(precision)).symlink_to(path.resolve())
    setup = {
        "server": str(options.llama_server and options.llama_server.resolve()),
        "converter": shlex.split(options.gguf_converter or ""),
        "row_tokens": max(len(row.input_ids) + row.new_tokens for row in rows),
    }
    (folder / LLAMA_CPP_SETUP).write_text(json.dumps(setup), encoding="utf-8")


def why_no_llama_cpp(name: str, options: argparse.Namespace) -> str | None:
    precision = GGUF_PRECISIONS.get(name)
    if precision is None:
        return None
    if options.llama_server is None:
        return "no llama.cpp: give --llama-server"
    if precision not in options.gguf and not options.gguf_converter:
        return f"no GGUF: give --gguf {precision}=FILE or --gguf-converter"
    return None


def by_length(rows: list[Row]) -> list[tuple[int, Row]]:
    return sorted(enumerate(rows), key=lambda item: len(item[1].input_ids))


def in_batches(
    items: list[tuple[int, Row]], size: int, run_batch: Callable[[list[Row], int], list[list[int]]], count: int
) -> list[list[int]]:
    """Return outputs by item number.

    Each batch runs to its longest row, and each row keeps its own number of tokens.
    """
    outputs: list[list[int]] = [[] for _ in range(count)]
    for start in range(0, len(items), size):
        batch = items[start : start + size]
        new_tokens = max(row.new_tokens for _, row in batch)
        for (number, row), ids in zip(batch, run_batch([row for _, row in batch], new_tokens), strict=True):
            outputs[number] = ids[: row.new_tokens]
    return outputs


# Measurement


def measure(run: Run, rows: list[Row]) -> tuple[float, list[list[int]]]:
    """Return output tokens per second, and the tokens. Raises `RuntimeError` if a row has the wrong length."""
    started = time.perf_counter()
    output_ids = run(rows)
    seconds = time.perf_counter() - started
    for number, (row, ids) in enumerate(zip(rows, output_ids, strict=True)):
        if len(ids) != row.new_tokens:
            raise RuntimeError(f"row {number} has {len(ids)} tokens, not {row.new_tokens}")
    return sum(map(len, output_ids)) / seconds, output_ids


def choose(system: System, folder: Path, rows: list[Row], size: int | None = None) -> tuple[Run, int]:
    """Return the system, loaded and warm, at its best batch size, or at the size that is already known."""
    sizes = [size] if size else sorted({min(size, len(rows)) for size in system.batch_sizes})
    best: tuple[float, Run, int] | None = None
    for size in sizes:
        run = system.prepare(folder, size)
        is_warmed_later = len(sizes) > 1 or system.few_rows  # choosing a size is enough warm-up
        run(rows[:2] if is_warmed_later else rows[: max(1, len(rows) // 2)])
        rate = 0.0
        if len(sizes) > 1:
            rate, _ = measure(run, rows[: sizes[-1]])
            say(f"  batch size {size}: {rate:.1f} tokens/s")
        if best is None or rate > best[0]:
            best = rate, run, size
    assert best is not None, "every system has a batch size"
    return best[1], best[2]


class Worker:
    """A system in its own process, where it stays loaded between rounds."""

    def __init__(self, name: str, folder: Path) -> None:
        self.outcome = Outcome(name, 0)
        self._folder = folder
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=hush)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def load(self, rows: list[Row], size: int | None) -> None:
        self.outcome.batch_size = self._pool.submit(load_here, self.outcome.name, self._folder, rows, size).result()

    def measure(self, rows: list[Row]) -> float:
        rate, self.outcome.output_ids = self._pool.submit(measure_here, rows).result()
        self.outcome.rates.append(rate)
        return rate


_loaded: list[Run] = []  # in a worker's process: its system


def hush() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_here(name: str, folder: Path, rows: list[Row], size: int | None) -> int:
    run, size = choose(SYSTEMS[name], folder, rows, size)
    _loaded.append(run)
    return size


def measure_here(rows: list[Row]) -> tuple[float, list[list[int]]]:
    return measure(_loaded[0], rows)


def ready(names: list[str], folder: Path, rows: list[Row], sizes: dict[str, int], open: ExitStack) -> Iterator[Worker]:
    """Yield every system that runs here, loaded; the others are named on stderr."""
    for name in names:
        system = SYSTEMS[name]
        missing = [package for package in system.needs if find_spec(package) is None]
        if missing:
            say(f"SKIPPED {name}: not installed: {', '.join(missing)} (pip install .[bench])")
            continue
        say(f"{name}: loading")
        worker = open.enter_context(Worker(name, folder))
        try:
            worker.load(rows, sizes.get(name))
        except Exception as error:
            if not system.is_peer and not isinstance(error, UsageError):  # no 8-bit integers on this processor
                raise
            say(f"SKIPPED {name}: {type(error).__name__}: {error}")
            continue
        yield worker


def run_rounds(workers: list[Worker], rows: list[Row], rounds: int, loop_count: int) -> None:
    for number in range(rounds):
        for worker in workers:
            name = worker.outcome.name
            rate = worker.measure(rows[:loop_count] if SYSTEMS[name].few_rows else rows)
            say(f"round {number + 1}: {name:18} {rate:8.1f} tokens/s")


def compare(outcomes: list[Outcome]) -> bool:
    """Compute each system's share of rows equal to batchgen's; return whether batchgen's float32 engines agree."""
    found = {outcome.name: outcome for outcome in outcomes}
    base = found.get(OURS) or found.get("reference") or outcomes[0]
    for outcome in outcomes:
        equal = [ours == theirs for ours, theirs in zip(base.output_ids, outcome.output_ids, strict=False)]
        outcome.equal_rows = statistics.mean(equal)
    return all(found[name].equal_rows == 1 for name in (OURS, "reference") if name in found)


# Output


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def table(outcomes: list[Outcome]) -> str:
    """Return a Markdown table. A ratio above 1 says how many times faster batchgen is."""
    medians = {outcome.name: outcome.median for outcome in outcomes}
    lines = [
        f"| system | batch | tokens/s, median | rounds | {OURS} / it | {OURS_BF16} / it | rows equal |",
        "|---|--:|--:|---|--:|--:|--:|",
    ]
    for outcome in outcomes:
        ratios = [f"{medians[n] / outcome.median:.2f}" if n in medians else "" for n in (OURS, OURS_BF16)]
        rounds = ", ".join(f"{rate:.1f}" for rate in outcome.rates)
        lines.append(
            f"| {outcome.name} | {outcome.batch_size or ''} | {outcome.median:.1f} | {rounds} | {ratios[0]} | "
            f"{ratios[1]} | {outcome.equal_rows:.0%} |"
        )
    return "\n".join(lines)


def machine(llama_server: Path | None) -> dict[str, Any]:
    packages = ["torch", "transformers", "ctranslate2", "openvino", "openvino-genai"]
    found = {name: installed for name in packages if (installed := version_of(name))}
    if llama_server is not None:
        found["llama.cpp"] = version_of_server(str(llama_server))
    return {
        "date": date.today().isoformat(),
        "cpu": cpu_name(),
        "cores": THREADS,
        "python": platform.python_version(),
        "packages": found,
    }


def cpu_name() -> str:
    """Return the processor's name and its matrix instructions, because names of virtual processors say little."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in facts.get("flags", "").split()]
    return f"{facts.get('model name', platform.machine())} ({', '.join(known)})"


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def workload(rows: list[Row], options: argparse.Namespace) -> str:
    prompts, outputs = [len(row.input_ids) for row in rows], [row.new_tokens for row in rows]
    name = options.model.resolve().name if options.model else "GPT-2's shape, random weights"
    return (
        f"{name}: {len(rows)} prompts of {min(prompts)} to {max(prompts)} tokens "
        f"(median {statistics.median(prompts):.0f}), outputs of {min(outputs)} to {max(outputs)} "
        f"(median {statistics.median(outputs):.0f}); the loop runs the first {options.loop_count}. "
        f"{options.rounds} rounds, each system once in every round."
    )


def write_page(text: str, model: Path | None) -> None:
    """Put a table in place of the last one of this model; a new model gets a section at the end of the page."""
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Benchmarks\n"
    name = model.resolve().name if model else ""
    begin, end = (mark.replace("peers", f"peers {name}".rstrip()) for mark in (BEGIN, END))
    if begin not in page:
        page += f"\n## batchgen and its peers{f' on {name}' if name else ''}\n\n{begin}{end}"
    before, rest = page.split(begin)
    PAGE.write_text(before + begin + text + "\n" + end + rest.split(end)[1], encoding="utf-8")


def report(outcomes: list[Outcome], rows: list[Row], options: argparse.Namespace) -> None:
    facts = machine(options.llama_server)
    versions = ", ".join(f"{name} {number}" for name, number in facts["packages"].items())
    where = f"{facts['date']}, {facts['cpu']}, {THREADS} cores; Python {facts['python']}, {versions}."
    text = f"{where}\n\n{workload(rows, options)}\n\n{table(outcomes)}"
    print(text)
    if options.write:
        write_page(text, options.model)
    if options.json:
        found = [{**asdict(outcome), "output_ids": None, "median": outcome.median} for outcome in outcomes]
        settings = {name: str(value) for name, value in vars(options).items()}
        record = {"machine": facts, "options": settings, "systems": found}
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read_size(text: str) -> tuple[str, int]:
    """Return a system's batch size that is known from an earlier sweep."""
    name, _, size = text.partition("=")
    return name, int(size)


def read_gguf(text: str) -> tuple[str, Path]:
    """Return the precision of a GGUF file, and its path."""
    precision, _, path = text.partition("=")
    if precision not in GGUF_PRECISIONS.values() or not Path(path).is_file():
        raise ValueError(text)
    return precision, Path(path)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="names, with commas; all: %(default)s")
    parser.add_argument("--size", action="append", default=[], type=read_size, metavar="SYSTEM=N", help="no sweep")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="default: GPT-2's shape, random weights")
    parser.add_argument("--openvino", type=Path, metavar="FOLDER", help="its export in float32")
    parser.add_argument("--optimum-cli", type=Path, metavar="FILE", help="what exports it for OpenVINO")
    parser.add_argument("--llama-server", type=Path, metavar="FILE", help="llama.cpp's binary of that name")
    parser.add_argument(
        "--gguf-converter", metavar="COMMAND", help="llama.cpp's: 'python convert_hf_to_gguf.py', with their paths"
    )
    parser.add_argument(
        "--gguf", action="append", default=[], type=read_gguf, metavar="PRECISION=FILE", help="f32, bf16 or q8_0"
    )
    parser.add_argument("--prompt-tokens", type=int, metavar="N", help="of each prompt; default: 3 to 200")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=128, help="prompts")
    parser.add_argument("--loop-count", type=int, default=8, help="prompts of the loop, which is slow")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--ragged", action="store_true", help="each row's length is drawn from --output-lengths")
    parser.add_argument("--output-lengths", type=Path, metavar="FILE", help="CSV with a column num_output_tokens")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    options.systems = options.systems.split(",")
    options.gguf = dict(options.gguf)
    if unknown := set(options.systems) - set(SYSTEMS):
        parser.error(f"no system {', '.join(sorted(unknown))}; there are {', '.join(SYSTEMS)}")
    if options.model and not (options.model / "config.json").is_file():
        parser.error(f"{options.model} is no model folder: it has no config.json")
    if options.llama_server and not options.llama_server.is_file():
        parser.error(f"no file {options.llama_server}")
    if options.ragged != bool(options.output_lengths):
        parser.error("--ragged and --output-lengths go together")
    return options


def main() -> int:
    options = parse_options()
    hush()
    new_tokens = read_lengths(options.output_lengths) if options.ragged else [options.new_tokens]
    where = {"folder": options.model} if options.model else {}
    rows = make_rows(options.count, new_tokens, prompt_tokens=options.prompt_tokens, **where)
    with tempfile.TemporaryDirectory() as name, ExitStack() as open:
        folder = Path(name)
        provide_model(options, folder)
        provide_llama_cpp(options, folder, rows)
        workers = list(ready(options.systems, folder, rows, dict(options.size), open))
        if not workers:
            say("FAILED: no system ran")
            return 1
        run_rounds(workers, rows, options.rounds, options.loop_count)
    outcomes = [worker.outcome for worker in workers]
    is_equal = compare(outcomes)
    report(outcomes, rows, options)
    if not is_equal:
        say("FAILED: batchgen's engines disagree in float32")
    return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
