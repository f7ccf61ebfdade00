"""Python in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_python(code: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Where `home` holds the Hub's cache: its client reads the environment when it is imported."""
    environment = os.environ | {"HF_HOME": str(home)} | variables
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)
