"""Python in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# After so many seconds what has not come never will: the machine may have much else to do.
PATIENCE_S = 600.0


def run_python(code: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Where `home` holds the Hub's cache: its client reads the environment when it is imported."""
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
    """The modules that a command had imported when it ended; it must end well."""
    return set(check_python(COMMAND, *arguments).stderr.splitlines())


def check_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs code that must end well."""
    words = [sys.executable, "-c", code, *map(str, arguments)]
    ended = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PATIENCE_S)
    assert ended.returncode == 0, ended.stderr
    return ended
