"""`doctor`: what is found, advised and printed. Only a fake clock measures."""

from __future__ import annotations

import json
import socket
from contextlib import nullcontext
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner, Result

import batchgen.doctor
import batchgen.doctor.installation as installation_module
from batchgen.cli import app
from batchgen.doctor import Diagnosis, advise, diagnose
from batchgen.doctor.advice import FIXES
from batchgen.doctor.facts import (
    Accelerator,
    Installation,
    Machine,
    MatmulSpeed,
    ModelAtHand,
    Models,
    Processor,
    Version,
    or_else,
)
from batchgen.doctor.installation import LIBRARIES, examine_installation, examine_models
from batchgen.doctor.machine import COLUMNS, INNER, ROWS, examine_machine, measure_gflops
from batchgen.errors import ModelError, UsageError
from batchgen.machine.limits import Bound
from batchgen.machine.speeds import KeptGain
from batchgen.render.doctor import print_diagnosis
from tests.support.fake_hub import SHA, fake_hub, put_in_cache
from tests.support.processes import PATIENCE_S, run_python

GIB = 1 << 30
INSTALLATION = Installation(
    versions=(Version("batchgen", "0.1.0"), Version("torch", "2.13.0", "2.10"), Version("rich", "15.0.0", "14")),
    python="3.12.1",
    platform="Linux-6.1-x86_64",
    torch_problem=None,
    torch_build=None,
    has_nvidia=False,
)
PROCESSOR = Processor("Some CPU", 8, 16, 8, None, "AVX2", ())
MACHINE = Machine(
    processor=PROCESSOR,
    accelerators=(),
    auto_device="cpu",
    device="cpu",
    speeds=(MatmulSpeed("float32", 100.0), MatmulSpeed("bfloat16", 100.0)),
    ram_bytes=32 * GIB,
    held_bytes=GIB // 4,
    bounds=(Bound("MemAvailable", 20 * GIB),),
)
MODELS = Models(ModelAtHand("bundled", 25 << 20, 12_400_000), has_gpt2=True, cached=(), hf_home="/cache")
HEALTHY = Diagnosis(INSTALLATION, MACHINE, MODELS, hub_answers=True)
GPU = Accelerator("cuda:0", "Some GPU", 80 * GIB, 70 * GIB, "9.0", has_bfloat16=True)


def installed(**changes: Any) -> Diagnosis:
    return replace(HEALTHY, installation=replace(INSTALLATION, **changes))


def on_machine(**changes: Any) -> Diagnosis:
    return replace(HEALTHY, machine=replace(MACHINE, **changes))


def only_advice(diagnosis: Diagnosis) -> str:
    [line] = advise(diagnosis)
    assert "\n" not in line
    return line


# Advice.


def test_where_all_is_well_nothing_is_advised() -> None:
    assert advise(HEALTHY) == []


def test_a_missing_library_is_to_be_installed() -> None:
    line = only_advice(installed(versions=(Version("psutil", None, "6"),)))
    assert line == "psutil is not installed: pip install 'psutil>=6'"


def test_an_old_library_is_to_be_upgraded() -> None:
    line = only_advice(installed(versions=(Version("torch", "2.4.0", "2.10", is_old=True),)))
    assert line == "torch 2.4.0 is too old for batchgen: pip install 'torch>=2.10'"


def test_a_broken_torch_is_named() -> None:
    assert "ImportError: no libtorch" in only_advice(installed(torch_problem="ImportError: no libtorch"))


def test_internals_that_are_gone_are_named() -> None:
    assert "internals that batchgen uses (torch: _op)" in only_advice(installed(gone_names=("torch: _op",)))


def test_torch_for_cuda_without_a_gpu() -> None:
    assert "torch is built for CUDA 13.0 but finds no GPU" in only_advice(installed(torch_build="CUDA 13.0"))


def test_torch_for_the_cpu_beside_an_nvidia_gpu() -> None:
    assert "install a CUDA build" in only_advice(installed(has_nvidia=True))


def test_a_gpu_that_torch_uses_needs_no_advice() -> None:
    diagnosis = replace(
        installed(torch_build="CUDA 13.0", has_nvidia=True), machine=on_machine(accelerators=(GPU,)).machine
    )
    assert advise(diagnosis) == []


def test_a_slow_bfloat16_is_to_be_left_alone() -> None:
    line = only_advice(on_machine(speeds=(MatmulSpeed("float32", 100.0), MatmulSpeed("bfloat16", 25.0))))
    assert line == "bfloat16 multiplies matrices at 0.25 of float32's speed here: use --dtype float32"


def test_a_fast_bfloat16_is_worth_a_try() -> None:
    line = only_advice(on_machine(speeds=(MatmulSpeed("float32", 100.0), MatmulSpeed("bfloat16", 310.0))))
    assert "3.1 times as fast as float32" in line
    assert "--dtype bfloat16 is faster, but changes some tokens" in line


@pytest.mark.parametrize(
    "speeds", [(), (MatmulSpeed("float32", 100.0), MatmulSpeed("bfloat16", None))], ids=["none", "no bfloat16"]
)
def test_a_dtype_that_was_not_measured_is_not_judged(speeds: tuple[MatmulSpeed, ...]) -> None:
    assert advise(on_machine(speeds=speeds)) == []


def test_threads_held_back_by_a_variable() -> None:
    processor = replace(PROCESSOR, torch_threads=2, threads_set_by="OMP_NUM_THREADS")
    assert only_advice(on_machine(processor=processor)) == "torch uses 2 of 8 cores: unset OMP_NUM_THREADS"


def test_few_threads_without_a_variable_have_no_mend() -> None:
    assert advise(on_machine(processor=replace(PROCESSOR, torch_threads=2))) == []


@pytest.mark.parametrize("name", ["cgroup /job (memory.max)", "RLIMIT_AS (ulimit -v)", "--memory 4G"])
def test_a_limit_far_below_the_machines_memory(name: str) -> None:
    line = only_advice(on_machine(bounds=(Bound(name, 4 * GIB), *MACHINE.bounds)))
    assert line.startswith(f"{name} leaves 12% of this machine's memory: {FIXES[name.split()[0]]}")


def test_a_busy_machine_is_no_limit() -> None:
    assert advise(on_machine(bounds=(Bound("MemAvailable", 4 * GIB),))) == []


def test_a_wide_limit_needs_no_advice() -> None:
    assert advise(on_machine(bounds=(Bound("cgroup / (memory.max)", 17 * GIB), *MACHINE.bounds))) == []


def test_little_memory_left_by_other_programs() -> None:
    line = only_advice(on_machine(bounds=(Bound("MemAvailable", GIB - 1),)))
    assert line.startswith("less than 1 GiB of memory is left by MemAvailable: close other programs")


def test_little_memory_left_by_a_limit() -> None:
    line = only_advice(on_machine(bounds=(Bound("cgroup / (memory.max)", GIB - 1), *MACHINE.bounds)))
    assert line.startswith("less than 1 GiB of memory is left by cgroup / (memory.max): raise")


@pytest.mark.parametrize(
    ("hub_answers", "why"), [(False, "the Hub does not answer"), (None, "HF_HUB_OFFLINE is set")], ids=str
)
def test_gpt2_out_of_reach(hub_answers: bool | None, why: str) -> None:
    line = only_advice(replace(HEALTHY, models=replace(MODELS, has_gpt2=False), hub_answers=hub_answers))
    assert why in line
    assert "bundled" in line


def test_gpt2_in_the_cache_needs_no_hub() -> None:
    assert advise(replace(HEALTHY, hub_answers=False)) == []


def test_gpt2_on_the_hub_needs_no_cache() -> None:
    assert advise(replace(HEALTHY, models=replace(MODELS, has_gpt2=False))) == []


# The screen.


def drawn(diagnosis: Diagnosis, width: int = 80) -> list[str]:
    console = Console(file=StringIO(), width=width)
    print_diagnosis(console, diagnosis, advise(diagnosis))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


TROUBLED = Diagnosis(
    replace(
        INSTALLATION,
        versions=(*(Version(name, "22.33.44") for name in LIBRARIES[1:]), Version("torch", "2.4", "2.10", is_old=True)),
        platform="Linux-6.18.44-generic-x86_64-with-glibc2.36",
    ),
    replace(
        MACHINE,
        processor=replace(
            PROCESSOR, name="Intel(R) Xeon(R) Platinum 8480+ CPU @ 2.00GHz", threads_set_by="OMP_NUM_THREADS"
        ),
        accelerators=(GPU,),
        speeds=(MatmulSpeed("float32", 100.0), MatmulSpeed("bfloat16", 310.0), MatmulSpeed("float16", None)),
        bounds=tuple(Bound(f"cgroup /some/deeply/nested/group{n} (memory.max)", n * GIB + 5) for n in range(9)),
    ),
    replace(MODELS, has_gpt2=False, cached=tuple(ModelAtHand(f"some-owner/some-model-{n}", GIB) for n in range(30))),
    hub_answers=None,
)


@pytest.mark.parametrize("diagnosis", [HEALTHY, TROUBLED], ids=["healthy", "troubled"])
def test_it_fits_on_one_screen(diagnosis: Diagnosis) -> None:
    lines = drawn(diagnosis)
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80


def test_a_narrow_terminal_folds_and_cuts_nothing() -> None:
    letters = ["".join("".join(drawn(TROUBLED, width)).split()) for width in (50, 500)]
    assert letters[0] == letters[1]
    assert max(map(len, drawn(TROUBLED, width=50))) <= 50


def test_what_binds_is_said_first() -> None:
    lines = drawn(on_machine(bounds=(Bound("cgroup / (memory.max)", 6 * GIB), *MACHINE.bounds)))
    place = next(i for i, line in enumerate(lines) if "limits" in line)
    assert lines[place].split(maxsplit=1)[1] == "6 GiB left by cgroup / (memory.max), the tightest limit"
    assert lines[place + 1].strip() == "20 GiB left by MemAvailable"


def test_what_bench_found_of_bfloat16_is_one_line() -> None:
    fast = (MatmulSpeed("float32", 100.0), MatmulSpeed("bfloat16", 310.0))
    assert "run batchgen bench" in only_advice(on_machine(speeds=fast))
    measured = on_machine(speeds=fast, bfloat16_gain=KeptGain("gpt2", 1.83, 0.12, "2026-01-02"))
    assert "bench" not in only_advice(measured)
    [line] = [line for line in drawn(measured) if line.startswith("  bench")]
    assert "bfloat16 runs gpt2 1.8 times as fast, 12% of greedy tokens" in line


def test_models_and_limits_beyond_a_few_are_counted() -> None:
    text = " ".join(" ".join(drawn(TROUBLED)).split())
    assert "and 25 more (--json has all)" in text
    assert "and 6 wider limits (--json has all)" in text


def test_what_is_unknown_is_said_to_be() -> None:
    empty = Diagnosis(
        Installation((Version("torch", None),), "3.12.1", "", "ImportError: none", None, has_nvidia=False),
        Machine(Processor("", None, None, None, None, None, ()), (), None, None, (), None, None, ()),
        Models(None, has_gpt2=False, cached=(), hf_home=None),
        hub_answers=False,
    )
    text = "\n".join(drawn(empty))
    for part in ("missing, broken", "auto picks unknown", "HF_HOME       unknown", "torch is not installed"):
        assert part in text


def test_names_do_not_reach_the_terminal_raw() -> None:
    text = "\n".join(drawn(on_machine(processor=replace(PROCESSOR, name="a\x1b[31mb\nc\td"))))
    assert "a\\x1b[31mb c d" in text


# The examination.


def fake_measure(device: torch.device, dtype: torch.dtype) -> float:
    return 200.0 if dtype == torch.bfloat16 else 100.0


def test_this_machine_is_examined() -> None:
    machine = examine_machine("cpu", Path("/"), fake_measure)
    assert machine.device == "cpu"
    assert machine.processor.name
    assert machine.processor.torch_threads == torch.get_num_threads()
    assert machine.speeds == (MatmulSpeed("float32", 100.0), MatmulSpeed("bfloat16", 200.0))
    assert machine.ratio("bfloat16") == 2.0
    assert machine.bounds
    assert machine.ram_bytes
    assert machine.held_bytes


def test_a_cuda_device_is_described_even_where_it_does_not_tell_all(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="Some GPU", total_memory=80 * GIB, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: 1 / 0)
    [found] = examine_machine("cpu", Path("/"), fake_measure).accelerators
    assert found == replace(GPU, free_bytes=None)


def test_the_cpu_is_named_by_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: Some: CPU\n")
    assert examine_machine("cpu", tmp_path, fake_measure).processor.name == "Some: CPU"


def test_a_variable_that_sets_threads_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert examine_machine("cpu", Path("/"), fake_measure).processor.threads_set_by is None
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert examine_machine("cpu", Path("/"), fake_measure).processor.threads_set_by == "OMP_NUM_THREADS"


def test_a_dtype_that_the_device_cannot_do_has_no_rate() -> None:
    def refuse(device: torch.device, dtype: torch.dtype) -> float:
        raise RuntimeError("not implemented")

    assert examine_machine("cpu", Path("/"), refuse).speeds == (
        MatmulSpeed("float32", None),
        MatmulSpeed("bfloat16", None),
    )


def test_a_device_that_is_none_or_not_there_is_refused() -> None:
    with pytest.raises(UsageError):
        diagnose("toaster")
    with pytest.raises(ModelError):
        diagnose("cuda:99")


def test_the_rate_is_the_best_of_what_the_time_allows() -> None:
    # Clock readings: the end, then the start and end of each product; the first product only warms up.
    readings = iter([0.0, 0.0, 0.02, 0.02, 0.03, 0.03, 0.03, 0.04, 0.05, 0.05, 0.055, 9.0, 9.0])
    rate = measure_gflops(torch.device("cpu"), torch.float32, clock=lambda: next(readings))
    assert rate == pytest.approx(2 * ROWS * INNER * COLUMNS / 0.005 / 1e9)


def test_a_product_slower_than_its_time_is_not_repeated() -> None:
    readings = iter([0.0, 0.0, 4.0, 4.0, 4.0, 9.0])
    rate = measure_gflops(torch.device("cpu"), torch.float32, clock=lambda: next(readings))
    assert rate == pytest.approx(2 * ROWS * INNER * COLUMNS / 4.0 / 1e9)


def test_versions_come_with_their_floors() -> None:
    versions = {version.name: version for version in examine_installation(Path("/")).versions}
    assert list(versions) == ["batchgen", *LIBRARIES]
    assert versions["torch"].installed
    assert versions["torch"].floor
    assert versions["tokenizers"].floor
    assert not any(version.is_old for version in versions.values())


def test_a_version_below_its_floor_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation_module, "_floors", lambda: {"rich": "999"})
    [old] = [version for version in examine_installation(Path("/")).versions if version.is_old]
    assert (old.name, old.floor) == ("rich", "999")


def test_a_missing_library_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation_module, "LIBRARIES", ("no-such-library",))
    assert examine_installation(Path("/")).versions[1:] == (Version("no-such-library", None),)


def test_an_nvidia_driver_is_seen(tmp_path: Path) -> None:
    assert not examine_installation(tmp_path).has_nvidia
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text("NVRM version")
    assert examine_installation(tmp_path).has_nvidia


def test_the_bundled_model_is_at_hand() -> None:
    bundled = examine_models().bundled
    assert bundled is not None
    assert bundled.parameters == 12_515_520
    assert bundled.size_bytes > 2 * bundled.parameters


def test_what_is_broken_does_not_hide_the_rest() -> None:
    assert or_else(())(lambda: 1 / 0)() == ()


# The cache and the Hub; the Hub's client reads its environment when it is imported.


def printed_by(code: str, home: Path, **variables: str) -> str:
    done = run_python(code, home, **variables)
    assert done.stderr == ""
    return done.stdout.strip()


MODELS_CODE = """
import json
from dataclasses import asdict
from batchgen.doctor.installation import examine_models
print(json.dumps(asdict(examine_models())))
"""


def models_of(home: Path) -> dict[str, Any]:
    models: dict[str, Any] = json.loads(printed_by(MODELS_CODE, home))
    assert models["hf_home"] == str(home)
    return models


def test_whole_causal_models_of_the_cache_are_at_hand(tmp_path: Path, folders: dict[str, Path]) -> None:
    put_in_cache(tmp_path, "openai-community/gpt2", folders["gpt2"])
    put_in_cache(tmp_path, "some/llama", folders["llama"])
    put_in_cache(tmp_path, "some/partial", folders["opt"])
    (tmp_path / f"hub/models--some--partial/snapshots/{SHA}/model.safetensors").unlink()
    put_in_cache(tmp_path, "some/encoder", folders["bloom"])
    config = tmp_path / f"hub/models--some--encoder/snapshots/{SHA}/config.json"
    config.write_text('{"architectures": ["BertForMaskedLM"]}')
    models = models_of(tmp_path)
    assert models["has_gpt2"] is True
    assert [model["name"] for model in models["cached"]] == ["openai-community/gpt2", "some/llama"]
    assert all(model["size_bytes"] > 100_000 for model in models["cached"])


def test_a_cache_that_is_not_there_or_is_corrupt_holds_nothing(tmp_path: Path) -> None:
    assert models_of(tmp_path / "nowhere")["cached"] == []
    (tmp_path / "hub/models--some--model/snapshots").mkdir(parents=True)
    (tmp_path / "hub/models--nonsense").write_text("")
    models = models_of(tmp_path)
    assert (models["cached"], models["has_gpt2"]) == ([], False)


HUB_CODE = "from batchgen.model import find; find.HUB_PATIENCE_S = {}; print(find.hub_answers())"


@pytest.mark.parametrize("repository", ["openai-community/gpt2", "another/model"])
def test_a_hub_that_knows_gpt2_or_says_that_it_does_not_answers(
    tmp_path: Path, folders: dict[str, Path], repository: str
) -> None:
    with fake_hub(repository, folders["gpt2"]) as (address, requests):
        code = HUB_CODE.format(PATIENCE_S)
        assert printed_by(code, tmp_path, HF_ENDPOINT=address, HF_HUB_OFFLINE="0") == "True"
    assert requests == ["GET /api/models/openai-community/gpt2"]


def test_a_silent_hub_does_not_answer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        code = HUB_CODE.format(0.2)
        assert printed_by(code, tmp_path, HF_ENDPOINT=address, HF_HUB_OFFLINE="0") == "False"


def test_offline_the_hub_is_not_asked(tmp_path: Path) -> None:
    with fake_hub() as (address, requests):
        assert printed_by(HUB_CODE.format(PATIENCE_S), tmp_path, HF_ENDPOINT=address) == "None"
    assert requests == []


# The command.


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", "--device", "cpu", *arguments], env={"COLUMNS": "80"})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batchgen.doctor.machine, "MEASURE_S", 0.001)
    monkeypatch.setattr(batchgen.doctor.machine, "ROWS", 4)  # bfloat16 takes seconds on processors without units for it


@pytest.mark.usefixtures("quick")
def test_json_has_all_facts_and_the_advice() -> None:
    result = doctor("--json")
    assert (result.exit_code, result.stderr) == (0, "")
    [line] = result.stdout.splitlines()
    facts = json.loads(line)
    assert list(facts) == ["installation", "machine", "models", "hub_answers", "chat", "model", "advice"]
    assert facts["machine"]["device"] == "cpu"
    assert [speed["dtype"] for speed in facts["machine"]["speeds"]] == ["float32", "bfloat16"]
    assert facts["hub_answers"] is None
    assert any("gpt2 is not in the cache and HF_HUB_OFFLINE is set" in advice for advice in facts["advice"])


@pytest.mark.usefixtures("quick")
def test_the_screen_has_its_sections_within_eighty_columns() -> None:
    result = doctor()
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    titles = [line for line in lines if line and line[0] != " "]
    assert titles == ["Installation", "Devices", "Memory", "Models", "Advice"]
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 40


def test_a_device_that_is_none_is_one_line() -> None:
    result = CliRunner().invoke(app, ["doctor", "--device", "toaster"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("batchgen: error: --device toaster is not a device")


def test_without_torch_the_rest_is_told(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no libtorch')\n")
    code = "from batchgen.cli import app; app(['doctor'])"
    text = printed_by(code, tmp_path, PYTHONPATH=str(tmp_path))
    assert "auto picks unknown" in text
    assert "torch cannot be imported (ImportError: no libtorch)" in text


def test_help_loads_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was loaded')\n")
    text = printed_by("from batchgen.cli import app; app(['doctor', '--help'])", tmp_path, PYTHONPATH=str(tmp_path))
    assert "Show what this machine offers" in text
