from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

import pytest

RESIDENT = """
import sys
from batchgen.machine.process import reuse_blocks, settle
settle()
if sys.argv[1] == "plenty":
    reuse_blocks(True)
import torch
torch.set_num_threads(1)
tensors = [torch.ones(1 << 20) for _ in range(8)]  # 4 MiB each
held = torch.ones(1)
tensors.clear()
print(int(open("/proc/self/statm").read().split()[1]) * 4 >> 10)  # MiB resident
"""


@cache
def run_python(code: str, *args: str, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, check=True, env=os.environ | environ
    )
    return done.stdout.strip()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_blocks_go_back_where_memory_is_short() -> None:
    short, plenty = int(run_python(RESIDENT, "short")), int(run_python(RESIDENT, "plenty"))
    assert plenty - short >= 24  # of the 32 MiB that were freed


LIMITED = """
import resource, sys
from batchgen.machine.process import untouched_memory_is_free
most = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]) if sys.argv[1:] else most, most))
print(untouched_memory_is_free(), most == resource.RLIM_INFINITY)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others have no such limit")
def test_untouched_memory_costs_something_where_addresses_are_limited() -> None:
    assert run_python(LIMITED, str(1 << 34)).split()[0] == "False"
    is_free, can_be = run_python(LIMITED).split()
    assert is_free == can_be  # True, unless this test itself runs under a limit that it cannot raise


LOADED = """
import resource, sys
from batchgen.machine.process import require_address_space
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_AS)[1]))
try:
    require_address_space()
except Exception as error:
    print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others have no such limit")
def test_an_address_space_too_small_for_torch_is_refused() -> None:
    assert run_python(LOADED, str(400 << 20)).startswith("400 MiB of address space (ulimit -v) are too few")
    assert run_python(LOADED, str(1 << 34)) == ""


SPIN = "from batchgen.machine.process import settle; settle(); import os; print(os.environ.get('GOMP_SPINCOUNT'))"


def test_threads_spin_briefly() -> None:
    environ = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", SPIN], capture_output=True, text=True, check=True, env=environ)
    assert done.stdout.strip() == "10000"


def test_cycles_are_looked_for_rarely() -> None:
    assert (
        int(
            run_python("from batchgen.machine.process import settle; settle(); import gc; print(gc.get_threshold()[0])")
        )
        >= 10_000
    )


THREADS = "from batchgen.machine.process import settle; settle(); import os; print(os.environ['OMP_NUM_THREADS'])"


@pytest.mark.parametrize(
    ("limit", "own", "expected"), [("1", "4", "1"), ("2", "1", "1"), ("", "4", "4"), ("0", "4", "4")]
)
def test_there_are_no_more_threads_than_their_limit(limit: str, own: str, expected: str) -> None:
    assert run_python(THREADS, OMP_THREAD_LIMIT=limit, OMP_NUM_THREADS=own) == expected


def test_the_user_s_own_settings_stand() -> None:
    assert run_python(SPIN, GOMP_SPINCOUNT="7") == "7"
    blocks = {"MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 28)}
    assert int(run_python(RESIDENT, "short", **blocks)) - int(run_python(RESIDENT, "short")) >= 24
