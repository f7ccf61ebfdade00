"""`python -m torture [CHECK…]`: run all or some checks, and print one table of what held.

Exit code 1: something did not hold. 2: nothing was tried, or a check itself is broken, which says nothing about
batchgen.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from torture import (
    disks,
    endings,
    families,
    folders,
    guards,
    hostile,
    itself,
    kills,
    malformed,
    order,
    races,
    readers,
    right,
    spoiled,
    stale,
    syscalls,
    terminals,
)  # fmt: skip
from torture.commands import keep_cache
from torture.lab import Check, Lab, Tally, perform_all

CHECKS: list[Check] = [
    check
    for module in (
        itself,
        right,
        order,
        guards,
        spoiled,
        families,
        kills,
        readers,
        syscalls,
        disks,
        endings,
        races,
        stale,
        malformed,
        terminals,
        hostile,
        folders,
    )
    for check in module.CHECKS
]


def main() -> int:
    options = parse()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.umask(0o022)
    root = Path(tempfile.mkdtemp(prefix="torture-"))
    keep_cache(root / "cache")
    lab = Lab(root, options.seed, options.share, options.patience or options.jobs)
    tallies = perform_all(
        [check for check in CHECKS if is_wanted(check, options.checks)], lab, options.jobs, options.case
    )
    draw(tallies)
    failed = [tally for tally in tallies if tally.failures]
    report(failed, options.seed, root)
    broken = [tally for tally in tallies if tally.broken]
    if not (failed or broken or options.keep):
        shutil.rmtree(root)
    if lab.was_interrupted:
        return 128 + signal.SIGINT
    if failed:
        return 1
    return 2 if broken or not any(tally.tried for tally in tallies) else 0


def is_wanted(check: Check, names: list[str]) -> bool:
    return not names or any(check.name == name or check.name.startswith(f"{name}-") for name in names)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m torture", description=__doc__)
    parser.add_argument(
        "checks", nargs="*", metavar="CHECK", help="one or more of: " + ", ".join(check.name for check in CHECKS)
    )
    parser.add_argument("--seed", type=int, default=0, help="of all dice")
    parser.add_argument("--case", type=int, help="only this case of each check")
    parser.add_argument("--share", type=float, default=1.0, help="of the cases to try: 0.1 is a quick look")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--patience", type=float, help="times each limit, on a busy machine; else as many as jobs")
    parser.add_argument("--keep", action="store_true", help="keep the folder even if all held")
    options = parser.parse_args()
    families = {check.name.split("-")[0] for check in CHECKS} | {check.name for check in CHECKS}
    for name in options.checks:
        if name not in families:
            parser.error(f"there is no check {name}: choose from {', '.join(sorted(families))}")
    return options


def draw(tallies: list[Tally]) -> None:
    """Print the one table."""
    table = Table("check", "what must hold")
    for header in ("tried", "held", "seconds"):
        table.add_column(header, justify="right")
    for tally in tallies:
        figures = "".join(f"\n{name}: {value:.2f}" for name, value in tally.figures.items())
        skips = "".join(f"\nSKIPPED {number}: {reason}" for reason, number in tally.skipped.items())
        skips += f"\nBROKEN in {len(tally.broken)} cases" * bool(tally.broken)
        style = "red" if tally.failures or tally.broken else "yellow" if tally.skipped else ""
        cells = (str(tally.tried), str(tally.held), f"{tally.seconds:.0f}")
        table.add_row(tally.check.name, Text(tally.check.promise + figures + skips), *cells, style=style)
    tried, held = sum(tally.tried for tally in tallies), sum(tally.held for tally in tallies)
    table.add_section()
    table.add_row("all", "", f"{tried:,}", f"{held:,}", f"{sum(tally.seconds for tally in tallies):.0f}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def report(failed: list[Tally], seed: int, root: Path) -> None:
    """Print how to reproduce each failure."""
    for tally in failed:
        for number, tried in tally.failures:
            print(f"FAILED {tally.check.name}: {tried.what}: {tried.problem}", file=sys.stderr)
            print(
                f"  again: python -m torture {tally.check.name} --seed {seed} --case {number}; "
                f"its folder: {root / f'{tally.check.name}-{number}'}",
                file=sys.stderr,
            )


if __name__ == "__main__":
    sys.exit(main())
