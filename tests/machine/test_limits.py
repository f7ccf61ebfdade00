"""Under a memory limit, from just enough for one row to plenty: nothing is killed, no row is lost or changed."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux limits")]

MIB = 2**20
AMPLE = 8 << 30
# Beyond what one row needs: nothing, and then growing parts of what the whole batch needs.
STEPS = [0, 40 * MIB, 120 * MIB, 300 * MIB, 2000 * MIB]
GROUP = Path("/sys/fs/cgroup/memory") / f"batchgen-test-{os.getpid()}"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return rows of 250 to 400 tokens: 40 of them need about 400 MiB together."""
    words = ["the", "a", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("limits") / "prompts.txt"
    path.write_text("".join(" ".join(draw.choices(words, k=draw.randint(250, 400))) + "\n" for _ in range(40)))
    return path


def run_limited(prompts: Path, limit: Callable[[], object], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "batchgen", "run", str(prompts), "--model", "bundled", "--max-new-tokens", "4"]
    return subprocess.run([*command, *options], capture_output=True, text=True, preexec_fn=limit)


@pytest.fixture(scope="module")
def unlimited(prompts: Path) -> str:
    return run_limited(prompts, lambda: None).stdout


def limit_address_space(num_bytes: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))


@pytest.fixture(scope="module")
def address_space_of_one_row(prompts: Path) -> int:
    """The lowest limit under which the first row runs, to 16 MiB."""
    low, high = 400 * MIB, 4000 * MIB
    while high - low > 16 * MIB:
        middle = (low + high) // 2
        done = run_limited(prompts, limit_address_space(middle), "--limit", "16", "--batch-size", "1")
        low, high = (low, middle) if done.returncode == 0 else (middle, high)
    return high


@pytest.mark.parametrize("step", STEPS)
def test_an_address_space_limit_loses_nothing(
    prompts: Path, unlimited: str, address_space_of_one_row: int, step: int
) -> None:
    done = run_limited(prompts, limit_address_space(address_space_of_one_row + step))
    assert done.returncode == 0, done.stderr
    assert done.stdout == unlimited


@pytest.fixture(scope="module")
def group() -> Iterator[Path]:
    """Our own memory cgroup (v1)."""
    try:
        GROUP.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here ({error.strerror}): this check needs root and cgroup v1")
    try:
        yield GROUP
    finally:
        GROUP.rmdir()


def enter(group: Path, num_bytes: int) -> Callable[[], None]:
    (group / "memory.limit_in_bytes").write_text(str(num_bytes))
    return lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None


@pytest.fixture(scope="module")
def group_of_one_row(prompts: Path, group: Path) -> int:
    """The group's peak while rows run one at a time, plus a little for the kernel's accounting."""
    done = run_limited(prompts, enter(group, AMPLE), "--limit", "16", "--batch-size", "1", "--memory", "1G")
    assert done.returncode == 0, done.stderr
    return int((group / "memory.max_usage_in_bytes").read_text()) + 16 * MIB


@pytest.mark.parametrize("step", STEPS)
def test_a_memory_cgroup_kills_nothing_and_loses_nothing(
    prompts: Path, unlimited: str, group: Path, group_of_one_row: int, step: int
) -> None:
    done = run_limited(prompts, enter(group, group_of_one_row + step))
    assert done.returncode == 0, done.stderr
    assert done.stdout == unlimited
