"""Slow checks: many rows against unpadded `generate`, memory over a long input; `make test-slow`."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import batchgen
from batchgen import Model
from batchgen.engines.choice import KINDS
from batchgen.model import Checkpoint
from batchgen.pipeline import Pipeline
from batchgen.planning.forecast import forecast
from batchgen.planning.kinds import EngineKind
from batchgen.records import Request
from tests.support.engines import FOOTPRINT, FakeEngine
from tests.support.models import generate_alone
from tests.support.results import output_ids
from tests.support.rows import ragged_prompts, requests_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("engine", KINDS)
def test_five_hundred_rows_equal_unpadded_generate_at_every_batch_size(bundled: Model, engine: str) -> None:
    prompts = ragged_prompts(500, seed=8, longest=120)
    alone = [generate_alone(bundled, prompt, max_new_tokens=20) for prompt in prompts]
    for batch_size in (1, 7, 32, "auto"):
        order = random.Random(0).sample(range(500), 500)
        shuffled = [prompts[i] for i in order]
        results = batchgen.generate(shuffled, bundled, batch_size=batch_size, engine=engine, max_new_tokens=20)
        assert dict(zip(order, output_ids(results), strict=True)) == dict(enumerate(alone))


@pytest.mark.parametrize("engine", KINDS)
@pytest.mark.parametrize("options", [{"top_k": 50}, {"top_p": 0.95}, {}, {"min_p": 0.02}], ids=str)
def test_two_hundred_sampled_rows_are_the_same_at_every_batch_size(
    bundled: Model, options: dict[str, float], engine: str
) -> None:
    prompts = ragged_prompts(200, seed=9, longest=60)
    options = {"temperature": 0.9, "max_new_tokens": 20, **options}
    runs = [
        output_ids(batchgen.generate(prompts, bundled, batch_size=size, engine=engine, **options))
        for size in (1, 16, 64)
    ]
    assert runs[0] == runs[1] == runs[2]


def test_memory_is_flat_over_many_rows(checkpoint: Checkpoint) -> None:
    def resident_bytes() -> int:
        return int(psutil.Process().memory_info().rss)

    pipeline = Pipeline(checkpoint, FakeEngine())
    results = pipeline.run(requests_of(f"prompt number {i}" for i in range(1_000)))
    assert sum(1 for _ in results) == 1_000
    requests = (request for start in range(100) for request in requests_of(f"prompt {start} {i}" for i in range(2_000)))
    before = resident_bytes()
    for number, _ in enumerate(Pipeline(checkpoint, FakeEngine()).run(requests)):
        if number == 20_000:
            before = resident_bytes()
    assert resident_bytes() - before < 50 << 20


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_plan_s_memory_is_flat_over_many_rows(checkpoint: Checkpoint, kind: EngineKind) -> None:
    resident: list[int] = []

    def requests() -> Iterator[Request]:
        for start in range(100):
            if start in (20, 99):
                resident.append(psutil.Process().memory_info().rss)
            yield from requests_of(f"prompt {start} {i}" for i in range(2_000))

    limits = kind.limits(FOOTPRINT, "cpu", 1 << 40)
    assert forecast(checkpoint, requests(), limits, kind).rows == 200_000
    assert resident[1] - resident[0] < 50 << 20


def peak_bytes(*arguments: object) -> int:
    command = [str(Path(sys.executable).parent / "batchgen"), "run", "--model", "bundled", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    assert status == 0
    return usage.ru_maxrss * 1024


def test_the_first_rows_of_a_million_take_no_more_memory_than_a_short_file(tmp_path: Path) -> None:
    short, long = tmp_path / "short.txt", tmp_path / "long.txt"
    short.write_text("Once upon a time\n" * 10)
    long.write_text("Once upon a time\n" * 1_000_000)
    assert peak_bytes(long, "--limit", 10) - peak_bytes(short, "--limit", 10) < 50 << 20
