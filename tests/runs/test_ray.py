"""`run --ray`: the rows of a plain run, whatever dies on the way. On a two-CPU Ray that this module starts."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import Result

from batchgen.formats.reading import ReadOptions
from batchgen.model import Checkpoint
from batchgen.records import SamplingParams
from batchgen.runs.ray.cluster import Size
from batchgen.runs.ray.connection import connect
from batchgen.runs.ray.cut import cut_file, make_parts
from batchgen.runs.ray.folder import OutputFolder
from batchgen.runs.ray.inputs import find_files
from batchgen.runs.ray.pieces import ClusterPieces
from batchgen.runs.ray.piecework import Work
from tests.support.command import failure, invoke, records, run
from tests.support.processes import PATIENCE_S

ray = pytest.importorskip("ray", reason="LOUDLY SKIPPED: the extra ray is not installed; `make test-ray` installs it")
pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


PORT = free_port()  # this process's own: a Ray that several share ends with the first of them
ADDRESS = f"127.0.0.1:{PORT}"
TWO = Size(workers=2, cpus=1, gpus=0)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with head(PORT):
        yield ADDRESS


@contextmanager
def head(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A Ray with two CPUs, whose workers can import what the tests can."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(paths), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    environment = os.environ | own
    options = ["--num-cpus=2", f"--port={port}", "--include-dashboard=false", f"--object-store-memory={200 * 2**20}"]
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", *options]
    quietly = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = subprocess.Popen(command, env=environment, start_new_session=True, **quietly)  # type: ignore[call-overload]
    while not answers(port):
        assert started.poll() is None, "Ray did not start"
        time.sleep(0.2)
    yield started
    if started.poll() is None:
        family = family_of(started)
        started.terminate()
        kill(psutil.wait_procs(family, timeout=20)[1])
    started.wait()


def family_of(started: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [psutil.Process(started.pid), *psutil.Process(started.pid).children(recursive=True)]


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three files: rows with their own sampling, repeated ids, bad rows, quoted newlines."""
    folder = tmp_path_factory.mktemp("in")
    samplings = [{}, {"temperature": 0.9, "top_k": 20}, {"temperature": 1.2, "min_p": 0.05}, {"max_new_tokens": 3}]
    rows = [
        {"id": f"r{i % 50}", "prompt": f"Once {'upon a ' * (i % 4)}time", "sampling": samplings[i % 4]}
        for i in range(60)
    ]
    lines = [*map(json.dumps, rows[:30]), "nonsense", "", *map(json.dumps, rows[30:])]
    (folder / "a.jsonl").write_text("".join(line + "\n" for line in lines))
    (folder / "b.csv").write_text('prompt,topic\n"My\ndog is",pets\nMy cat is,pets\n' * 10)
    (folder / "c.txt").write_text("".join(f"The king number {i}\n" for i in range(20)))
    return folder


@pytest.fixture(scope="module")
def finished(address: str, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished run."""
    output = tmp_path_factory.mktemp("finished") / "out"
    assert of(prompts, output).exit_code == 3
    return output


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


def lines_of(folder: Path) -> list[str]:
    """Return all rows in the folder; sorted by file name they are in input order."""
    return [line for file in sorted(folder.glob("part-*.jsonl")) for line in file.read_text().splitlines()]


def of(prompts: Path, output: Path, *options: object, address: str = ADDRESS) -> Result:
    return run(prompts, "-o", output, "--ray", address, "--workers", 2, "--part-rows", 16, *options)


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start the command in its own process, as users do."""
    words = [Path(sys.executable).parent / "batchgen", "run", "--model", "bundled", *arguments]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(list(map(str, words)), text=True, **pipes)  # type: ignore[call-overload,no-any-return]


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    process = start(*arguments)
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess([], process.returncode, stdout, stderr)


def only_ours(stderr: str) -> bool:
    return all(line.startswith("batchgen: ") for line in stderr.splitlines())


# The same rows.


def test_a_local_cluster_gives_the_rows_of_the_plain_run(prompts: Path, tmp_path: Path) -> None:
    plain, output = tmp_path / "plain.jsonl", tmp_path / "out"
    assert run(prompts, "-o", plain).exit_code == 3
    result = command(prompts, "--max-new-tokens", 5, "-o", output, "--ray", "local", "--workers", 2, "--part-rows", 16)
    assert (result.returncode, result.stdout) == (3, "")
    assert only_ours(result.stderr), result.stderr
    assert lines_of(output) == plain.read_text().splitlines()
    assert "in 2 workers on Ray (cpu)" in result.stderr
    assert f"rows failed, the first: {prompts}/a.jsonl:31: not valid JSON" in result.stderr


def test_samples_are_the_same_too(address: str, prompts: Path, tmp_path: Path) -> None:
    plain, sampling = tmp_path / "plain.jsonl", ["--temperature", 1, "--top-k", 40, "--num-samples", 2, "--limit", 40]
    run(prompts / "c.txt", prompts / "b.csv", "-o", plain, *sampling)
    output = tmp_path / "out"
    result = run(prompts / "c.txt", prompts / "b.csv", "-o", output, "--ray", address, "--part-rows", 7, *sampling)
    assert result.exit_code == 0, result.stderr
    assert lines_of(output) == plain.read_text().splitlines()


def test_conversations_are_the_same_too(address: str, tmp_path: Path) -> None:
    template, rows, output = tmp_path / "t.jinja", tmp_path / "rows.jsonl", tmp_path / "out"
    template.write_text("{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}")
    messages = [[{"role": "user", "content": f"Once upon a time, number {i}"}] for i in range(30)]
    rows.write_text("".join(json.dumps({"messages": told}) + "\n" for told in messages))
    options = ["--chat-template", template, "--system", "Be brief.", "--num-samples", 2, "--temperature", 1]
    result = run(rows, "-o", output, "--ray", address, "--part-rows", 7, *options)
    assert result.exit_code == 0, result.stderr
    template = template.rename(tmp_path / "moved.jinja")  # it was sent to the workers with the work
    assert [json.loads(line) for line in lines_of(output)] == records(
        run(rows, "--chat-template", template, *options[2:])
    )


def test_constrained_rows_are_the_same_too(address: str, tmp_path: Path) -> None:
    rows, output = tmp_path / "rows.jsonl", tmp_path / "out"
    own: list[dict[str, Any]] = [{}, {"choice": ["yes", "no"]}, {"json_schema": {"enum": [1, "a"]}}, {"regex": "(a"}]
    values = [{"prompt": f"The king number {i}", "sampling": own[i % 4]} for i in range(20)]
    rows.write_text("".join(json.dumps(value) + "\n" for value in values))
    options = ["--regex", "[a-z]{3}", "--num-samples", 2, "--temperature", 1]
    result = run(rows, "-o", output, "--ray", address, "--part-rows", 7, *options)
    assert result.exit_code == 3, result.stderr
    assert [json.loads(line) for line in lines_of(output)] == records(run(rows, *options))


def test_scores_are_the_same_too(address: str, tmp_path: Path) -> None:
    rows, output, plain = tmp_path / "rows.jsonl", tmp_path / "out", tmp_path / "plain.jsonl"
    asked = [{"prompt": f"King {i} was", "choices": [" old", " a dog"], "answer": i % 2} for i in range(24)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in [*asked, {"text": "It will rain."}]))
    told = invoke("score", rows, "--model", "bundled", "-o", plain)
    result = invoke(
        "score", rows, "--model", "bundled", "-o", output, "--ray", address, "--workers", 2, "--part-rows", 7
    )
    assert result.exit_code == 0, result.stderr
    assert lines_of(output) == plain.read_text().splitlines()
    sums = next(line for line in told.stderr.splitlines() if "accuracy" in line)
    assert sums in result.stderr.splitlines()


def test_parquet_has_the_same_rows(address: str, prompts: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    result = of(prompts / "c.txt", tmp_path / "out", "--format", "parquet")
    assert result.exit_code == 0, result.stderr
    files = sorted((tmp_path / "out").glob("part-*.parquet"))
    rows = [row for file in files for row in parquet.read_table(file).to_pylist()]
    assert [row["text"] for row in rows] == [row["text"] for row in records(run(prompts / "c.txt"))]


# Resuming.


def test_only_what_is_missing_is_run_again(prompts: Path, finished: Path, copy: Path) -> None:
    files = sorted(copy.glob("part-*"))
    times = {file: file.stat().st_mtime_ns for file in files}
    files[1].unlink()
    result = of(prompts, copy, "--resume")
    assert f"continuing {copy}: " in result.stderr
    assert lines_of(copy) == lines_of(finished)
    assert {file for file in files if file.stat().st_mtime_ns != times[file]} == {files[1]}
    facts = json.loads((copy / "_batchgen.json").read_text())
    assert facts["stats"]["rows"] == 16
    assert facts["finished"]


def test_what_is_complete_stays_as_it_is(prompts: Path, copy: Path) -> None:
    result = of(prompts, copy, "--resume")
    assert (result.exit_code, result.stderr) == (0, f"batchgen: {copy} is complete, there is nothing to continue\n")


def test_an_interrupted_run_goes_on(address: str, tmp_path: Path) -> None:
    source, output, plain = tmp_path / "many.txt", tmp_path / "out", tmp_path / "plain.jsonl"
    source.write_text("".join(f"Once upon a time, number {i}\n" for i in range(1000)))
    options = [source, "--max-new-tokens", 5, "-o", output, "--ray", address, "--workers", 2, "--part-rows", 32]
    done = 0
    for number, exit_code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = start(*options, "--resume")
        wait_for(output, done + 1)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == exit_code, stderr
        assert stderr.splitlines()[-1].endswith("to continue, run the same command with --resume")
        assert only_ours(stderr), stderr
        before, done = done, len(list(output.glob("part-*")))
        assert before < done < 32
    last = command(*options, "--resume")
    assert last.returncode == 0, last.stderr
    run(source, "-o", plain)
    assert lines_of(output) == plain.read_text().splitlines()
    assert not list(output.glob("_writing-*"))


def wait_for(output: Path, num_parts: int) -> None:
    while len(list(output.glob("part-*"))) < num_parts:
        time.sleep(0.05)


def test_a_run_whose_cluster_dies_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "2")  # 60 by default
    source, output, port = tmp_path / "many.txt", tmp_path / "out", free_port()
    source.write_text("".join(f"Once upon a time, number {i}\n" for i in range(5000)))
    with head(port) as started:
        process = start(source, "-o", output, "--ray", f"127.0.0.1:{port}", "--part-rows", 32)
        wait_for(output, 1)
        kill(family_of(started))
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout) == (1, "")
    assert only_ours(stderr), stderr
    line = stderr.splitlines()[-1]
    assert line.startswith("batchgen: error: "), stderr
    assert line.endswith("run the same command with --resume")


def test_an_option_that_has_changed_is_refused_by_name(prompts: Path, copy: Path) -> None:
    line = failure(of(prompts, copy, "--resume", "--seed", 3), 1)
    assert "_batchgen.json was started with --seed 0, but now it is 3" in line


def test_an_input_that_has_changed_is_refused_by_name(prompts: Path, copy: Path) -> None:
    file = prompts / "c.txt"
    before = file.read_text()
    file.write_text(before.replace("19", "20"))
    line = failure(of(prompts, copy, "--resume"), 1)
    file.write_text(before)
    assert f"was started with {file} " in line


def test_a_folder_that_holds_a_run_is_not_overwritten(prompts: Path, copy: Path) -> None:
    assert "holds a run: continue it with --resume" in failure(of(prompts, copy), 1)


# Faults. The workers have no model: a row's first token says what it does to its worker.


def begin(tmp_path: Path, lines: list[str], checkpoint: Checkpoint, seconds: float, part_rows: int) -> tuple[Any, ...]:
    from tests.support.fake_worker import FakeRecipe

    source = tmp_path / "rows.txt"
    source.write_text("".join(line + "\n" for line in lines))
    parts = make_parts([cut_file(*find_files([str(source)]), ReadOptions(), part_rows)], part_rows)
    folder = OutputFolder(str(tmp_path / "out"))
    folder.make()
    work = Work(folder, SamplingParams(), ReadOptions())
    return work, list(folder.missing(parts)), FakeRecipe(seconds)


def ids_of(folder: Path) -> list[int]:
    return [int(json.loads(line)["id"]) for line in lines_of(folder)]


def test_twenty_kills_lose_no_row_and_double_none(address: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    work, pieces, recipe = begin(tmp_path, ["some words"] * 2000, checkpoint, 0.005, 40)
    killed: list[int] = []
    done = threading.Event()
    killer = threading.Thread(target=kill_actors, args=(killed, done, 20))
    with connect(address) as cluster:
        killer.start()
        outcomes = list(ClusterPieces(cluster, work, checkpoint, recipe, TWO).run(pieces))
        done.set()
        killer.join()
    print(f"{len(killed)} kills, {len(outcomes)} outcomes")
    assert len(killed) == 20
    assert ids_of(tmp_path / "out") == list(range(2000))
    assert not any(json.loads(line)["error"] for line in lines_of(tmp_path / "out"))


def kill_actors(killed: list[int], done: threading.Event, times: int) -> None:
    """Kill the process of one actor after another, each soon after it started."""
    source = random.Random(0)
    while len(killed) < times and not done.wait(source.uniform(0.2, 0.8)):
        actors = [process.pid for process in psutil.process_iter() if is_actor(process) and process.pid not in killed]
        if actors:
            killed.append(source.choice(actors))
            os.kill(killed[-1], signal.SIGKILL)


def is_actor(process: psutil.Process) -> bool:
    try:
        return "ray::" in " ".join(process.cmdline()) and "MapWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def test_a_row_that_kills_its_worker_is_an_error_and_the_others_are_not(
    address: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    lines = ["some words"] * 48
    lines[27] = '"'  # its only token is fake_worker.SEGFAULT
    work, pieces, recipe = begin(tmp_path, lines, checkpoint, 0.0, 16)
    with connect(address) as cluster:
        cluster_run = ClusterPieces(cluster, work, checkpoint, recipe, TWO)
        list(cluster_run.run(pieces))
    rows = [json.loads(line) for line in lines_of(tmp_path / "out")]
    assert [row["index"] for row in rows] == list(range(48))
    [failed] = [row for row in rows if row["error"]]
    assert failed["index"] == 27
    assert "rows.txt:28: worker processes died each time they ran this row alone" in failed["error"]
    assert cluster_run.stats().errors == cluster_run.num_isolated == 1


# What is not possible.


def test_an_address_without_ray_is_one_line(prompts: Path, tmp_path: Path) -> None:
    line = failure(of(prompts, tmp_path / "out", address="127.0.0.1:1"), 1)
    assert "--ray 127.0.0.1:1: no Ray cluster answers there" in line


def test_more_workers_than_the_machine_has_room_for_are_refused(prompts: Path, tmp_path: Path) -> None:
    result = invoke("run", prompts, "-o", tmp_path / "out", "--ray", "local", "--workers", 1000, "--model", "bundled")
    assert "1000 workers need" in failure(result, 2)


def test_the_models_files_go_through_the_object_store_once(
    address: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    from batchgen.runs.ray.model_files import ModelFiles

    with connect(address):
        content = (checkpoint.folder / "config.json").read_bytes()
        sizes = {"config.json": len(content)}
        files = ModelFiles("m", tmp_path / "nowhere", sizes, {"config.json": ray.put(content)})
        first = files.unpack()
        assert (first / "config.json").read_bytes() == content
        assert files.unpack() == first
        assert ModelFiles("m", checkpoint.folder, sizes, files.files).unpack() == checkpoint.folder


def test_workers_on_ray_import_nothing_from_the_working_folder(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue_of_mine.py").write_text("")
    monkeypatch.chdir(tmp_path)

    def found() -> bool:
        from importlib.util import find_spec

        return find_spec("queue_of_mine") is not None

    with connect(address):
        assert not ray.get(ray.remote(found).remote())
