"""Bounds on machines represented by files, limits from the user, and what a meter measures."""

from __future__ import annotations

import tomllib
from fractions import Fraction
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from batchgen.errors import UsageError
from batchgen.machine.limits import (
    Bound,
    MemoryLimit,
    available_bytes,
    memory_bounds,
    parse_memory,
)
from batchgen.machine.meter import PeakMeter, peak_bytes

CPU = torch.device("cpu")
CUDA = torch.device("cuda:0")
MPS = torch.device("mps")
MIB = 1 << 20
GIB = 1 << 30
LISTED = tomllib.loads((Path(__file__).parent / "machines.toml").read_text(encoding="utf-8"))["machine"]
MACHINES = {machine["name"]: machine for machine in LISTED}


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8", newline="\n")
    return root


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    """A container with a limit of 2 GiB and 1,623,195,648 bytes left, whose process holds 512 MiB."""
    return lay_out(tmp_path, MACHINES["docker v2"]["files"])


class FakeCuda:
    """torch.cuda of a device with 8 GiB free; torch holds 3 GiB, 1 GiB of that unused."""

    def __init__(self) -> None:
        self.allocated = 2 * GIB
        self.highest = 5 * GIB

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return 8 * GIB, 16 * GIB

    def memory_reserved(self, device: torch.device) -> int:
        return 3 * GIB

    def memory_allocated(self, device: torch.device) -> int:
        return self.allocated

    def max_memory_allocated(self, device: torch.device) -> int:
        return self.highest

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.highest = self.allocated

    def current_device(self) -> int:
        return 3


class FakeMps:
    """torch.mps of a machine whose GPU may use 1,100 MiB and uses 100 MiB."""

    def recommended_max_memory(self) -> int:
        return 1100 * MIB

    def current_allocated_memory(self) -> int:
        return 100 * MIB


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_the_tightest_bound_of_a_machine(tmp_path: Path, machine: dict[str, Any]) -> None:
    bounds = memory_bounds(CPU, root=lay_out(tmp_path, machine["files"]))
    assert bounds[0] == Bound(machine["binding"], machine["available_bytes"])


def test_machines_have_names_of_their_own_and_a_sentence_each() -> None:
    assert len(MACHINES) == len(LISTED)
    assert all(machine["about"].endswith(".") for machine in LISTED)


def test_bounds_come_tightest_first(tmp_path: Path) -> None:
    bounds = memory_bounds(CPU, root=lay_out(tmp_path, MACHINES["nested, child tighter"]["files"]))
    assert bounds == [
        Bound("cgroup /jobs/team/run-7 (memory.max)", 452984832),
        Bound("cgroup /jobs/team (memory.max)", 811597824),
        Bound("cgroup /jobs (memory.max)", 6547308544),
        Bound("MemAvailable", 25769803776),
    ]


@pytest.mark.parametrize(
    "name",
    ["bare metal", "old kernel", "docker unlimited", "v1 unlimited", "v1 unlimited with large pages", "wsl 2", "wsl 1"],
)
def test_what_is_unlimited_is_no_bound(tmp_path: Path, name: str) -> None:
    bounds = memory_bounds(CPU, root=lay_out(tmp_path, MACHINES[name]["files"]))
    assert [bound.name for bound in bounds] == ["MemAvailable"]


def test_a_group_mounted_twice_is_one_bound(tmp_path: Path) -> None:
    files = MACHINES["host's groups mounted beside the container's"]["files"]
    names = [bound.name for bound in memory_bounds(CPU, root=lay_out(tmp_path, files))]
    assert len(names) == len(set(names)) == 3


@pytest.mark.parametrize("files", [{}, {"proc/meminfo": "MemTotal:  1 kB\n"}])
def test_where_meminfo_does_not_say_psutil_does(tmp_path: Path, files: dict[str, str]) -> None:
    (bound,) = memory_bounds(CPU, root=lay_out(tmp_path, files))
    assert bound.name == "available memory"
    assert MIB < bound.available_bytes <= psutil.virtual_memory().total


def test_files_that_make_no_sense_bound_nothing(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemAvailable: 2048 kB\nMemFree: a few kB\n\n",
        "proc/self/cgroup": "what\n0::\n:::\n",
        "proc/self/mountinfo": "what\n1 2 3\n - \n1 2 0:3 / /sys/fs/cgroup rw - cgroup2\n",
        "proc/self/limits": "Max address space\nMax address space few many bytes\n",
        "sys/fs/cgroup/memory.max": "some\n",
        "sys/fs/cgroup/memory.stat": "anon\n\nfile few\n",
    }
    assert memory_bounds(CPU, root=lay_out(tmp_path, files)) == [Bound("MemAvailable", 2 * MIB)]


def test_an_address_space_of_unknown_use_is_no_bound(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemAvailable: 2048 kB\n",
        "proc/self/limits": "Max address space         4096                 unlimited            bytes\n",
    }
    assert memory_bounds(CPU, root=lay_out(tmp_path, files)) == [Bound("MemAvailable", 2 * MIB)]


def test_the_real_machine_has_something() -> None:
    assert 0 < available_bytes(CPU) <= psutil.virtual_memory().total


def test_cuda_has_what_is_free_and_what_torch_keeps_unused() -> None:
    assert memory_bounds(CUDA, accelerator=FakeCuda()) == [Bound("cuda:0", 9 * GIB)]


def test_cuda_without_a_number_is_the_current_device() -> None:
    assert memory_bounds(torch.device("cuda"), accelerator=FakeCuda()) == [Bound("cuda:3", 9 * GIB)]


def test_on_cuda_a_size_is_what_torch_may_hold_there() -> None:
    assert available_bytes(CUDA, parse_memory("6G"), accelerator=FakeCuda()) == 4 * GIB


def test_mps_is_held_to_its_own_limit(docker: Path) -> None:
    bounds = memory_bounds(MPS, root=docker, accelerator=FakeMps())
    assert bounds[0] == Bound("mps", 1000 * MIB)


def test_mps_is_held_to_the_machine_s_limits(docker: Path) -> None:
    bounds = memory_bounds(MPS, root=docker, accelerator=FakeMps())
    assert bounds[1] == Bound("cgroup / (memory.max)", 1623195648)


def test_on_mps_a_size_counts_the_process_and_its_buffers(docker: Path) -> None:
    assert available_bytes(MPS, parse_memory("1G"), docker, accelerator=FakeMps()) == (1024 - 512 - 100) * MIB


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6G", 6 * GIB),
        ("6g", 6 * GIB),
        ("6GB", 6 * GIB),
        ("6 GiB", 6 * GIB),
        ("512M", 512 * MIB),
        ("1.5GiB", 3 * GIB // 2),
        (".5g", GIB // 2),
        ("700000K", 716800000),
        ("2T", 2048 * GIB),
        ("716800000", 716800000),
        ("716800000B", 716800000),
        (" 6G\n", 6 * GIB),
    ],
)
def test_a_size_of_memory(text: str, size: int) -> None:
    assert parse_memory(text).size_bytes == size


@pytest.mark.parametrize(("text", "share"), [("80%", "4/5"), ("100%", "1"), ("12.5 %", "1/8")])
def test_a_share_of_memory(text: str, share: str) -> None:
    limit = parse_memory(text)
    assert (limit.share, limit.size_bytes) == (Fraction(share), None)


@pytest.mark.parametrize(
    "text",
    [
        *("", "6X", "G", "%", "all", "auto", "nan", "inf", "nan%", "-6G", "-80%", "+6G", "0", "0G", "0%", "0.0001K"),
        *("100.1%", "800%", "80%G", "6G%", "1/2", "1e9", "6,5G", "0x10", "1_000M", "6GG", "6Gi6", "٦G", "9" * 5000),
    ],
)
def test_what_is_neither_size_nor_share_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_memory(text)
    assert str(caught.value) == f"--memory {text}: give a size such as 6G or a share such as 80%"


def test_a_usage_error_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"^--memory 6 apples: give[^\n]+$"):
        parse_memory("6\napples")


def test_a_size_counts_what_the_process_holds(docker: Path) -> None:
    assert memory_bounds(CPU, parse_memory("1G"), docker)[0] == Bound("--memory 1G", 512 * MIB)


def test_a_size_beyond_another_limit_does_not_raise_it(docker: Path) -> None:
    bounds = memory_bounds(CPU, parse_memory("6G"), docker)
    assert bounds[0] == Bound("cgroup / (memory.max)", 1623195648)
    assert Bound("--memory 6G", 6 * GIB - 512 * MIB) in bounds


def test_a_size_below_what_the_process_holds_leaves_nothing(docker: Path) -> None:
    assert memory_bounds(CPU, parse_memory("100M"), docker)[0] == Bound("--memory 100M", 0)


def test_a_share_is_of_the_tightest_other_bound(docker: Path) -> None:
    assert memory_bounds(CPU, parse_memory("50%"), docker)[0] == Bound("--memory 50%", 811597824)


def test_a_share_of_nothing_is_nothing(tmp_path: Path) -> None:
    root = lay_out(tmp_path, MACHINES["over the limit"]["files"])
    assert available_bytes(CPU, MemoryLimit("80%", share=Fraction(4, 5)), root) == 0


def test_without_proc_a_size_counts_what_psutil_sees(tmp_path: Path) -> None:
    limit = MemoryLimit("as is", size_bytes=psutil.Process().memory_info().rss + 64 * GIB)
    bounds = {bound.name: bound.available_bytes for bound in memory_bounds(CPU, limit, tmp_path)}
    assert 63 * GIB < bounds["--memory as is"] < 65 * GIB


def test_the_peak_is_in_bytes() -> None:
    held = psutil.Process().memory_info().rss
    assert held / 2 < peak_bytes() <= psutil.virtual_memory().total


def process(root: Path, held_mib: int, high_mib: int) -> Path:
    """A machine whose /proc says what this process holds and held."""
    status = f"Name:\tpython3\nVmHWM:\t{high_mib * 1024:>8} kB\nVmRSS:\t{held_mib * 1024:>8} kB\n"
    return lay_out(root, {"proc/self/status": status})


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_a_meter_sees_what_was_held_for_a_while() -> None:
    meter = PeakMeter(CPU)
    meter.start()
    held = bytearray(b"x") * (64 * MIB)
    del held
    growth = meter.growth_bytes()
    assert growth is not None
    assert 60 * MIB <= growth <= 80 * MIB


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_a_meter_sees_each_stretch_by_itself() -> None:
    meter = PeakMeter(CPU)
    meter.start()
    held = bytearray(b"x") * (64 * MIB)
    del held
    peak = meter.peak_bytes
    meter.start()
    growth = meter.growth_bytes()
    assert growth is not None
    assert growth < 16 * MIB
    assert meter.peak_bytes >= peak


def test_a_meter_that_was_not_started_knows_no_growth(tmp_path: Path) -> None:
    assert PeakMeter(CPU, process(tmp_path, 100, 900)).growth_bytes() is None


def test_a_meter_resets_the_high_water_mark(tmp_path: Path) -> None:
    meter = PeakMeter(CPU, lay_out(process(tmp_path, 100, 900), {"proc/self/clear_refs": ""}))
    meter.start()
    process(tmp_path, 100, 300)
    assert (tmp_path / "proc/self/clear_refs").read_text() == "5"
    assert meter.growth_bytes() == 200 * MIB


def test_a_meter_remembers_the_peak_before_a_reset(tmp_path: Path) -> None:
    meter = PeakMeter(CPU, lay_out(process(tmp_path, 100, 900), {"proc/self/clear_refs": ""}))
    meter.start()
    process(tmp_path, 100, 300)
    assert meter.peak_bytes == 900 * MIB


def test_a_meter_leaves_out_a_stretch_in_which_something_else_took_memory(tmp_path: Path) -> None:
    others = [0]
    meter = PeakMeter(CPU, lay_out(process(tmp_path, 100, 900), {"proc/self/clear_refs": ""}), others=lambda: others[0])
    meter.start()
    process(tmp_path, 100, 300)
    others[0] += 1
    assert meter.growth_bytes() is None
    meter.start()
    assert meter.growth_bytes() == 200 * MIB


def test_without_clear_refs_a_risen_mark_tells_the_growth(tmp_path: Path) -> None:
    meter = PeakMeter(CPU, process(tmp_path, 100, 900))
    meter.start()
    process(tmp_path, 200, 1000)
    assert meter.growth_bytes() == 900 * MIB


def test_without_clear_refs_a_mark_that_stays_tells_nothing(tmp_path: Path) -> None:
    meter = PeakMeter(CPU, process(tmp_path, 100, 900))
    meter.start()
    process(tmp_path, 800, 900)
    assert meter.growth_bytes() is None
    assert not (tmp_path / "proc/self/clear_refs").exists()


def test_without_proc_the_meter_asks_the_system(tmp_path: Path) -> None:
    meter = PeakMeter(CPU, tmp_path)
    meter.start()
    assert MIB < meter.peak_bytes <= psutil.virtual_memory().total


def test_on_cuda_a_meter_sees_what_torch_gave_out() -> None:
    cuda = FakeCuda()
    meter = PeakMeter(CUDA, accelerator=cuda)
    meter.start()
    cuda.highest = 3 * GIB
    assert meter.growth_bytes() == 1 * GIB
    assert meter.peak_bytes == 5 * GIB


def test_on_mps_growth_is_not_known(tmp_path: Path) -> None:
    meter = PeakMeter(MPS, process(tmp_path, 100, 900))
    meter.start()
    process(tmp_path, 200, 1000)
    assert meter.growth_bytes() is None
    assert meter.peak_bytes == 1000 * MIB
