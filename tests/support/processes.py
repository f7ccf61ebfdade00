"""Python in a separate process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Seconds after which something that has not come never will: the machine may be very busy.
PATIENCE_S = 600.0


def run_python(code: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python; `home` holds the Hub's cache, because its client reads the environment when it is imported."""
    environment = os.environ | {"HF_HOME": str(home)} | variables
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )


COMMAND = """
import atexit, sys
sys.argv = ["batchgen", *sys.argv[1:]]
atexit.register(lambda: print(*sys.modules, sep="\\n", file=sys.stderr))
from batchgen.__main__ import main
main()
"""


def modules_of(*arguments: object) -> set[str]:
    """Return the modules that a command had imported when it ended; it must succeed."""
    return set(check_python(COMMAND, *arguments).stderr.splitlines())


def check_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code that must succeed."""
    words = [sys.executable, "-c", code, *map(str, arguments)]
    ended = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PATIENCE_S)
    assert ended.returncode == 0, ended.stderr
    return ended
