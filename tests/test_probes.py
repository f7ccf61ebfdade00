from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from batchgen.probes import available_bytes, peak_bytes

CPU = torch.device("cpu")
MIB = 1 << 20
FREE = 8000 * MIB
V1_UNLIMITED = 9223372036854771712
LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max address space         {limit:<20} unlimited            bytes
Max file locks            unlimited            unlimited            locks
"""


def available(root: Path, files: dict[str, str | int], meminfo: bool = True) -> int:
    """What a machine with these files has available; 8,000 MiB where nothing limits it."""
    if meminfo:
        memory = f"MemTotal: {2 * FREE // 1024} kB\nMemFree: 1 kB\nMemAvailable: {FREE // 1024} kB\n"
        files = {"proc/meminfo": memory, **files}
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return available_bytes(CPU, root)


def v2(path: str, limit: int | str, usage: int = 0, inactive: int = 0) -> dict[str, str | int]:
    folder = f"sys/fs/cgroup{path}"
    statistics = f"anon 7\nfile 9\ninactive_anon 5\ninactive_file {inactive}\nactive_file 3"
    return {f"{folder}/memory.max": limit, f"{folder}/memory.current": usage, f"{folder}/memory.stat": statistics}


def v1(path: str, limit: int, usage: int = 0, inactive: int = 0) -> dict[str, str | int]:
    folder = f"sys/fs/cgroup/memory{path}"
    statistics = f"cache 9\ninactive_file 5\nhierarchical_memory_limit 1\ntotal_inactive_file {inactive}"
    return {
        f"{folder}/memory.limit_in_bytes": limit,
        f"{folder}/memory.usage_in_bytes": usage,
        f"{folder}/memory.stat": statistics,
    }


def in_group(*lines: str) -> dict[str, str | int]:
    return {"proc/self/cgroup": "\n".join(lines)}


def address_space(limit: int | str, used_kib: int) -> dict[str, str | int]:
    return {"proc/self/limits": LIMITS.format(limit=limit), "proc/self/status": f"VmPeak: 9 kB\nVmSize: {used_kib} kB"}


def test_a_bare_machine_has_what_meminfo_says(tmp_path: Path) -> None:
    assert available(tmp_path, {}) == FREE


def test_without_meminfo_psutil_is_asked(tmp_path: Path) -> None:
    assert MIB < available(tmp_path, {}, meminfo=False) <= psutil.virtual_memory().total


def test_meminfo_without_the_line_is_no_answer(tmp_path: Path) -> None:
    assert available(tmp_path, {"proc/meminfo": "MemTotal: 1 kB"}) > MIB


def test_a_v2_limit_counts_what_is_used(tmp_path: Path) -> None:
    assert available(tmp_path, in_group("0::/job") | v2("/job", 1000 * MIB, 300 * MIB)) == 700 * MIB


def test_a_v2_limit_of_an_ancestor_counts(tmp_path: Path) -> None:
    groups = v2("/a/b", "max", 10 * MIB) | v2("/a", 500 * MIB, 200 * MIB)
    assert available(tmp_path, in_group("0::/a/b") | groups) == 300 * MIB


def test_the_tightest_group_wins(tmp_path: Path) -> None:
    groups = v2("/a/b", 900 * MIB) | v2("/a", 500 * MIB) | v2("", 700 * MIB)
    assert available(tmp_path, in_group("0::/a/b") | groups) == 500 * MIB


def test_a_neighbour_s_limit_does_not_count(tmp_path: Path) -> None:
    assert available(tmp_path, in_group("0::/a") | v2("/a", "max") | v2("/b", MIB)) == FREE


def test_inactive_file_cache_is_added_back(tmp_path: Path) -> None:
    groups = v2("/job", 1000 * MIB, 900 * MIB, inactive=400 * MIB)
    assert available(tmp_path, in_group("0::/job") | groups) == 500 * MIB


def test_v2_max_is_no_limit(tmp_path: Path) -> None:
    assert available(tmp_path, in_group("0::/job") | v2("/job", "max", 300 * MIB)) == FREE


@pytest.mark.parametrize("controllers", ["memory", "cpu,memory", "memory,hugetlb"])
def test_a_v1_limit_counts_what_is_used(tmp_path: Path, controllers: str) -> None:
    groups = v1("/job", 1000 * MIB, 800 * MIB, inactive=100 * MIB)
    assert available(tmp_path, in_group("7:pids:/other", f"4:{controllers}:/job") | groups) == 300 * MIB


def test_a_v1_limit_of_an_ancestor_counts(tmp_path: Path) -> None:
    groups = v1("/a/b", V1_UNLIMITED, 10 * MIB) | v1("/a", 500 * MIB, 200 * MIB)
    assert available(tmp_path, in_group("4:memory:/a/b") | groups) == 300 * MIB


def test_v1_unlimited_is_no_limit(tmp_path: Path) -> None:
    assert available(tmp_path, in_group("4:memory:/job") | v1("/job", V1_UNLIMITED, 300 * MIB)) == FREE


def test_another_v1_controller_is_not_memory(tmp_path: Path) -> None:
    assert available(tmp_path, in_group("4:cpu,cpuacct:/job") | v1("/job", MIB)) == FREE


def test_a_hybrid_machine_is_held_to_its_v1_limit(tmp_path: Path) -> None:
    lines = in_group("4:memory:/job", "1:name=systemd:/init.scope", "0::/init.scope")
    unified: dict[str, str | int] = {"sys/fs/cgroup/unified/init.scope/cgroup.procs": 1}
    assert available(tmp_path, lines | unified | v1("/job", 600 * MIB, 100 * MIB)) == 500 * MIB


def test_a_hybrid_machine_is_held_to_both(tmp_path: Path) -> None:
    lines = in_group("4:memory:/job", "0::/job")
    assert available(tmp_path, lines | v1("/job", 600 * MIB) | v2("/job", 400 * MIB)) == 400 * MIB


@pytest.mark.parametrize("path", ["/docker/4f2a", "/../../kubepods/pod7", "/"])
def test_a_container_finds_its_limit_at_the_top_of_the_mount(tmp_path: Path, path: str) -> None:
    assert available(tmp_path, in_group(f"0::{path}") | v2("", 600 * MIB, 100 * MIB)) == 500 * MIB


def test_a_container_under_v1_finds_its_limit_at_the_top_of_the_mount(tmp_path: Path) -> None:
    assert available(tmp_path, in_group("4:memory:/docker/4f2a") | v1("", 600 * MIB, 100 * MIB)) == 500 * MIB


def test_no_group_is_looked_for_outside_the_mount(tmp_path: Path) -> None:
    outside: dict[str, str | int] = {"sys/fs/job/memory.max": MIB, "sys/fs/job/memory.current": 0}
    assert available(tmp_path, in_group("0::/../job") | v2("", "max") | outside) == FREE


def test_a_colon_in_a_group_s_name_is_part_of_it(tmp_path: Path) -> None:
    groups = v2("/system.slice/job@1:2.service", 500 * MIB)
    assert available(tmp_path, in_group("0::/system.slice/job@1:2.service") | groups) == 500 * MIB


def test_a_group_beyond_its_limit_has_nothing(tmp_path: Path) -> None:
    assert available(tmp_path, in_group("0::/job") | v2("/job", 100 * MIB, 300 * MIB)) == 0


def test_the_address_space_limit_counts_what_is_mapped(tmp_path: Path) -> None:
    assert available(tmp_path, address_space(900 * MIB, used_kib=100 * 1024)) == 800 * MIB


def test_an_unlimited_address_space_is_no_limit(tmp_path: Path) -> None:
    assert available(tmp_path, address_space("unlimited", used_kib=100 * 1024)) == FREE


def test_an_address_space_that_is_full_has_nothing(tmp_path: Path) -> None:
    assert available(tmp_path, address_space(100 * MIB, used_kib=900 * 1024)) == 0


def test_the_least_of_all_bounds_is_available(tmp_path: Path) -> None:
    groups = in_group("0::/job") | v2("/job", 500 * MIB)
    assert available(tmp_path, groups | address_space(700 * MIB, used_kib=0)) == 500 * MIB
    assert available(tmp_path, groups | address_space(300 * MIB, used_kib=0)) == 300 * MIB


def test_the_real_machine_has_something() -> None:
    assert 0 < available_bytes(CPU) <= psutil.virtual_memory().total


def test_the_peak_is_in_bytes() -> None:
    held = psutil.Process().memory_info().rss
    assert held / 2 < peak_bytes() <= psutil.virtual_memory().total


def test_the_peak_never_falls() -> None:
    held = b"x" * 8 * MIB
    peak = peak_bytes()
    del held
    assert peak_bytes() >= peak
