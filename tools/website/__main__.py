"""Build the site from docs/ and generated reference pages, with Zensical.

make site          into build/site/; a warning or a broken link is an error
make site-check    also opens it in headless Chromium: axe, search, screenshots in build/site-pictures/
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from website.assembly import ROOT, assemble

BUILD = ROOT / "build"


def build() -> None:
    """Build the site. Raises `SystemExit` if Zensical warns."""
    assemble(BUILD / "site-pages")
    command = [Path(sys.executable).with_name("zensical"), "build", "--strict", "--clean"]
    if code := subprocess.run(command, cwd=ROOT).returncode:
        raise SystemExit(code)
    print(f"the site is in {BUILD / 'site'}: open index.html")


if __name__ == "__main__":
    build()
    if "--check" in sys.argv:
        from website.checks import check

        check(BUILD / "site", BUILD / "site-pictures")
