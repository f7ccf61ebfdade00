"""`make gpu-check` with tiny models on a CPU: its whole logic, in a process without what a GPU machine may lack."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.models import random_model
from benchmarks.gpu.parity import Case, Parity, not_numbers, parity
from benchmarks.gpu_check import main

ROOT = Path(__file__).parents[1]
# A module set to None cannot be imported: the child fails if anything imports it.
WITHOUT = """
import gc, runpy, sys
for name in ("psutil", "typer", "rich"):
    sys.modules[name] = None
from benchmarks.gpu import models
if sys.argv.pop(1) == "little":
    models.SHAPES, models.DTYPES = models.SHAPES[:1], models.DTYPES[:1]
gc.freeze()  # each `forget` collects, which would scan all imported objects
runpy.run_module("benchmarks.gpu_check", run_name="__main__")
"""


def run_without_extras(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="needs psutil elsewhere")
@pytest.mark.parametrize(
    ("size", "dtypes"),
    [("little", ["float32"]), pytest.param("whole", ["float32", "bfloat16", "float16"], marks=pytest.mark.slow)],
)
def test_the_check_runs_on_a_cpu_without_psutil_typer_and_rich(tmp_path: Path, size: str, dtypes: list[str]) -> None:
    done = run_without_extras(size, "--device", "cpu", "--tiny", "--minutes", 60, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu-check.json").read_text())
    assert found["faults"] == found["skipped"] == []
    assert {case["dtype"] for case in found["parity"]} == set(dtypes)
    assert all(case["tried"] and not case["broken"] for case in found["not_numbers"])
    assert all(one["continuous"] and one["reference"] and one["generate"] for one in found["speed"])
    assert {one["sampling"] for one in found["syncs"]} == {"greedy", "sampled"}
    assert all(one["predicted"] > 0 for one in found["memory"])
    assert all(one["said"][0].startswith("out of memory with 16 rows") for one in found["backed_off"])
    table = (tmp_path / "gpu-check.md").read_text()
    assert "No faults." in table
    assert all(f"| GPT-2 124M | {dtype} | continuous |" in table for dtype in dtypes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == ["no GPU: torch sees no CUDA device here, so nothing was checked"]
    assert not list(tmp_path.iterdir())


def test_a_network_that_sees_its_pads_is_a_fault() -> None:
    model = random_model("GPT-2 124M", torch.device("cpu"), torch.float32, is_tiny=True)
    parity(model, [Case(3, (2, 17, 9))])  # which also tries the engines, before the network is broken
    model.network.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {name: it for name, it in kwargs.items() if name != "attention_mask"}),
        with_kwargs=True,
    )
    found = {one.engine: one for one in parity(model, [Case(3, (2, 17, 9))])}
    assert "logits differ" in found["reference"].fault


def test_rows_that_are_not_numbers_are_found() -> None:
    model = random_model("GPT-2 124M", torch.device("cpu"), torch.float32, is_tiny=True)
    with torch.no_grad():
        model.network.get_output_embeddings().weight[7] = torch.nan
    assert not_numbers(model, [8]).fault.startswith("GPT-2 124M float32: NaN in 5 padded rows, widths 8")


def test_failed_rows_and_other_tokens_are_faults() -> None:
    assert Parity("m", "float32", "e", 3, 9, 0.0, 1e-3, equal_rows=3, failed_rows=0).fault == ""
    assert "2 rows have other tokens" in Parity("m", "float32", "e", 3, 9, 0.0, 1e-3, equal_rows=1, failed_rows=0).fault
    assert "1 rows failed" in Parity("m", "float32", "e", 3, 9, 0.0, 1e-3, equal_rows=3, failed_rows=1).fault
    assert "logits differ" in Parity("m", "float32", "e", 3, 9, float("nan"), 1e-3, 3, 0).fault
