"""Worker processes: every row once, even if workers die; most tests use workers that load no model."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import psutil
import pytest

from batchgen.engines import finish_all
from batchgen.engines.pool.devices import choose_devices, num_threads, share_out
from batchgen.engines.pool.engine import PoolEngine, make_pool
from batchgen.engines.pool.worker import ModelRecipe
from batchgen.errors import ModelError, UsageError
from batchgen.machine.limits import parse_memory
from batchgen.model import open_checkpoint
from batchgen.records import EngineChoice, EngineOptions, Sequence
from tests.support.fake_worker import REFUSE, SEGFAULT, FakeRecipe
from tests.support.processes import PATIENCE_S
from tests.support.rows import rows_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")


def pool(*, num_workers: int = 2, seconds: float = 0.0, part_rows: int = 16, **options: object) -> PoolEngine:
    return PoolEngine([FakeRecipe(seconds)] * num_workers, part_rows, **options)  # type: ignore[arg-type]


def finish(engine: PoolEngine, rows: list[Sequence]) -> Iterator[Sequence]:
    """Yield rows as they finish; after the last one, or if something goes wrong, end the workers."""
    with closing(engine):
        yield from finish_all(engine, rows)


def indices(rows: list[Sequence]) -> list[int]:
    return sorted(row.request.index for row in rows)


def children() -> list[psutil.Process]:
    return [psutil.Process(child.pid) for child in multiprocessing.active_children()]


def test_every_row_is_finished_once_whenever_it_comes() -> None:
    rows = rows_of([[5 + i] for i in range(200)])
    engine = pool(seconds=0.001)
    engine.add(rows[:20])
    finished = engine.step()
    engine.add([])
    finished += finish(engine, rows[20:])
    assert indices(finished) == list(range(200))
    assert all(row.output_ids == row.input_ids for row in rows)
    assert len({row.padded_length for row in rows}) == 2  # processes
    assert engine.stats.batches == len({row.batch_index for row in rows})
    assert not children()


def test_counts_are_those_of_the_workers_together() -> None:
    engine = pool(seconds=0.001)
    list(finish(engine, rows_of([[5]] * 60)))
    stats = engine.stats
    assert stats.new_tokens == 60
    assert stats.engine == "fake in 2 workers"
    assert (stats.peak_bytes, stats.predicted_bytes, stats.measured_bytes) == (2000, 10, 9)
    assert stats.decode_s == 1  # two workers, a second each, in parallel


def test_a_pool_without_rows_starts_no_worker() -> None:
    engine = pool()
    assert (engine.is_idle, engine.wants_rows, engine.step()) == (True, 32, [])
    assert not children()
    engine.close()


def test_all_workers_are_made_of_what_the_first_has_chosen() -> None:
    said: list[str] = []
    told: list[EngineChoice] = []

    def agree(choice: EngineChoice) -> EngineChoice:
        told.append(choice)
        return choice

    rows = rows_of([[i] for i in range(4, 64)])
    engine = PoolEngine([FakeRecipe(0.01, tells_choice=True)] * 2, 16, agree=agree, say=said.append)
    assert len({row.padded_length for row in finish(engine, rows)}) == 2
    assert said == [f"made a fake engine {told[0].engine}"]
    assert len(told) == 1


def test_a_run_that_goes_on_tells_its_workers_what_it_is_made_of() -> None:
    said: list[str] = []
    begun = EngineChoice("of before", "plain", "", 16, 1)
    engine = PoolEngine([FakeRecipe(tells_choice=True)], 16, agree=lambda choice: begun, say=said.append)
    list(finish(engine, rows_of([[4]])))
    assert said == ["made a fake engine of before"]


def test_few_rows_start_few_workers() -> None:
    rows = rows_of([[5]] * 8)
    said: list[str] = []
    list(finish(pool(num_workers=8, say=said.append), rows))
    assert len({row.padded_length for row in rows}) == 1
    assert said == ["made a fake engine"]


def test_a_row_that_kills_its_worker_is_an_error_and_the_others_are_not() -> None:
    rows = rows_of([[5 + i] for i in range(60)])
    rows[41].input_ids.append(SEGFAULT)
    said: list[str] = []
    assert indices(list(finish(pool(say=said.append), rows))) == list(range(60))
    assert [row.request.index for row in rows if row.error] == [41]
    assert "2 worker processes died (SIGSEGV) while they ran this row alone" in (rows[41].error or "")
    assert all(row.output_ids == row.input_ids for row in rows if not row.error)
    assert said[1].startswith("a worker process died (SIGSEGV); rows that run again: ")


def test_workers_killed_from_outside_lose_no_row() -> None:
    rows = rows_of([[5 + i] for i in range(300)])
    finished, killed = [], 0
    for row in finish(pool(seconds=0.002), rows):
        finished.append(row)
        if len(finished) % 40 == 0:
            os.kill(row.padded_length or 0, signal.SIGKILL)
            killed += 1
    assert (killed, indices(finished)) == (7, list(range(300)))
    assert not any(row.error for row in rows)


def test_an_error_of_the_users_ends_the_run() -> None:
    with pytest.raises(ModelError, match="the model refuses"):
        list(finish(pool(), rows_of([[5], [REFUSE]])))
    assert not children()


def test_workers_that_cannot_start_end_the_run() -> None:
    with pytest.raises(ModelError, match=r"die during startup \(exit code 3\)"):
        list(finish(PoolEngine([FakeRecipe(fails=True)], 8), rows_of([[5]])))


def test_one_worker_that_cannot_start_leaves_its_rows_to_the_others() -> None:
    rows, said = rows_of([[5]] * 100), []
    recipes = [FakeRecipe(fails=True), FakeRecipe(0.01)]
    finished = list(finish(PoolEngine(recipes, 8, say=said.append), rows))
    assert indices(finished) == list(range(100))
    assert "a worker process died 3 times during startup: continuing with 1" in said


def test_closing_ends_the_workers_and_what_they_do() -> None:
    rows = finish(pool(seconds=0.01), rows_of([[5]] * 1000))
    next(rows)
    assert len(children()) == 2
    rows.close()  # type: ignore[attr-defined]
    assert not children()


def test_the_input_is_not_waited_for_while_there_is_work() -> None:
    engine = pool()
    engine.add(rows_of([[5]] * 4))
    finished = []
    while not engine.is_idle:
        assert engine.wants_rows  # it gets none, and continues
        finished += engine.step()
    engine.close()
    assert len(finished) == 4


def test_workers_end_with_a_killed_parent(pytestconfig: pytest.Config) -> None:
    command = [sys.executable, "-m", "tests.support.fake_worker"]
    parent = subprocess.Popen(command, cwd=pytestconfig.rootpath, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    found: set[str] = set()
    while len(found) < 2:
        found.add(parent.stdout.readline())
    parent.kill()
    parent.communicate(timeout=PATIENCE_S)  # its output ends when no process holds it any more, and the workers do


# Shares of one machine.


def recipe_of(options: EngineOptions = EngineOptions()) -> ModelRecipe:
    return ModelRecipe("m", Path(), "cpu", "float32", options)


@pytest.fixture
def cpu() -> object:
    import torch

    return torch.device("cpu")


@pytest.mark.parametrize(("memory", "size", "share"), [("6G", 3 << 30, None), ("80%", None, 0.4), (None, None, 0.5)])
def test_workers_share_memory(cpu: object, memory: str | None, size: int | None, share: float | None) -> None:
    bound = parse_memory(memory) if memory else None
    recipe = recipe_of(EngineOptions(memory=bound))
    for memory_of in (recipe.options.memory for recipe in share_out(recipe, [cpu, cpu])):  # type: ignore[list-item]
        assert memory_of is not None
        assert (memory_of.size_bytes, memory_of.share and float(memory_of.share)) == (size, share)


@pytest.mark.parametrize(
    ("num_workers", "memory", "is_enough"), [(2, "1G", True), (4, "1G", False), (2, "300M", False), (2, "1%", False)]
)
def test_weights_of_all_workers_fit_into_the_memory_of_the_run(
    cpu: object, num_workers: int, memory: str, is_enough: bool
) -> None:
    devices, limit = [cpu] * num_workers, parse_memory(memory)
    make = partial(make_pool, open_checkpoint("bundled"), devices, "float32", EngineOptions(memory=limit))  # type: ignore[arg-type]
    if is_enough:
        make().close()
        return
    with pytest.raises(ModelError) as refusal:
        make()
    assert str(refusal.value).startswith(f"--memory {memory} is too small for {num_workers} workers with bundled: ")


def test_workers_share_cores(cpu: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    recipes = share_out(recipe_of(), [cpu] * 1000)  # type: ignore[list-item]
    assert {recipe.num_threads for recipe in recipes} == {1}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    recipes = share_out(recipe_of(), [cpu] * 2)  # type: ignore[list-item]
    assert {recipe.num_threads for recipe in recipes} == {3}


@pytest.mark.parametrize(("begun", "taken"), [(1, 1), (2, 2), (3, 3), (4, 3), (None, 3)])
def test_workers_keep_the_threads_that_a_run_was_begun_with_where_there_are_cpus(
    monkeypatch: pytest.MonkeyPatch, begun: int | None, taken: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(6)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    choice = EngineChoice("continuous", "plain", "slots", 64, begun)
    assert num_threads(2, choice) == taken
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert num_threads(2, choice) == 5


def test_auto_is_a_worker_on_each_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    names: Callable[..., list[str]] = lambda *given: [str(device) for device in choose_devices(*given)]  # noqa: E731
    assert names("auto") == ["cuda:0", "cuda:1", "cuda:2"]
    assert names("auto", 2) == ["cuda:0", "cuda:1"]
    assert names("auto", 1) == ["cuda"]
    assert names("auto", 4) == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]
    assert names("cuda:2, cuda:0") == ["cuda:2", "cuda:0"]
    assert names("cpu", 2) == ["cpu", "cpu"]


@pytest.mark.parametrize(
    ("given", "part"),
    [(("cpu,cpu", 1), "--workers 1 leaves devices"), (("cpu,toaster",), "--device toaster is not a device")],
)
def test_devices_that_make_no_sense_are_refused(given: tuple[str, int], part: str) -> None:
    with pytest.raises(UsageError, match=part):
        choose_devices(*given)


# The command, with the real model.


def test_two_workers_give_the_bytes_of_one_process(tmp_path: Path) -> None:
    from tests.support.command import run

    prompts = tmp_path / "rows.jsonl"
    samplings = [{}, {"temperature": 0.9, "top_k": 20}, {"temperature": 1.2, "min_p": 0.05}, {"max_new_tokens": 3}]
    rows = [
        {"id": i % 50, "prompt": f"Once upon a time {'there was ' * (i % 5)}a", "sampling": samplings[i % 4]}
        for i in range(60)
    ]  # repeated ids draw other numbers, in any worker
    prompts.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": "bad"}, {"id": "last", "prompt": "A"}]))
    one, two, stats = tmp_path / "one.jsonl", tmp_path / "two.jsonl", tmp_path / "stats.json"
    assert run(prompts, "-o", one).exit_code == 3
    manifest = tmp_path / "manifest.json"
    result = run(prompts, "-o", two, "--workers", 2, "--stats", stats, "--manifest", manifest)
    assert result.exit_code == 3
    assert json.loads(manifest.read_text())["engine"]["engine"] == "continuous"
    assert two.read_bytes() == one.read_bytes()
    assert "continuous in 2 workers on cpu (" in result.stderr
    assert json.loads(stats.read_text())["workers"] == 2


@pytest.mark.slow
def test_a_run_whose_workers_are_killed_and_which_is_interrupted_ends_with_the_same_bytes(tmp_path: Path) -> None:
    from tests.support.command import run

    prompts, plain, output = tmp_path / "many.txt", tmp_path / "plain.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(f"Once upon a time, number {i}\n" for i in range(600)))
    command = [str(Path(sys.executable).parent / "batchgen"), "run", str(prompts), "--model", "bundled"]
    command += [
        "--max-new-tokens",
        "30",
        "-o",
        str(output),
        "--workers",
        "2",
        "--resume",
        "--temperature",
        "0.8",
        "--top-k",
        "40",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    while "of 600 rows" not in (line := process.stderr.readline()) or " 0 of" in line:
        assert line
    victim = next(child for child in psutil.Process(process.pid).children() if "spawn_main" in str(child.cmdline()))
    victim.kill()
    assert "a worker process died (SIGKILL" in process.stderr.readline()
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, "run the same command with --resume" in stderr) == (130, True)
    assert all(line.startswith("batchgen: ") for line in stderr.splitlines())
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
    assert run(prompts, "-o", plain, "--max-new-tokens", 30, "--temperature", 0.8, "--top-k", 40).exit_code == 0
    assert output.read_bytes() == plain.read_bytes()


def test_workers_import_nothing_from_the_working_folder(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "downloaded", tmp_path / "bin"
    folder.mkdir()
    elsewhere.mkdir()
    for name in ("socket", "pickle", "signal", "runpy", "torch"):
        (folder / f"{name}.py").write_text("open('canary', 'w')\n")
    (elsewhere / "command.py").write_text(RUN_FAKE_WORKERS)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, elsewhere / "command.py"]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (ended.stdout, ended.returncode) == ("20 rows, PYTHONSAFEPATH None\n", 0), ended.stderr
    assert not (folder / "canary").exists()


RUN_FAKE_WORKERS = """
import os
from contextlib import closing
from functools import partial
from batchgen.engines import finish_all
from batchgen.engines.pool.engine import PoolEngine, make_pool
from tests.support.fake_worker import FakeRecipe
from tests.support.rows import rows_of

if __name__ == "__main__":
    os.environ.pop("PYTHONSAFEPATH", None)
    with closing(PoolEngine([FakeRecipe(0.0)] * 2, 4)) as engine:
        rows = list(finish_all(engine, rows_of([[5]] * 20)))
    print(len(rows), "rows, PYTHONSAFEPATH", os.environ.get("PYTHONSAFEPATH"))
"""
