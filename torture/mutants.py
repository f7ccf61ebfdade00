"""`python -m torture.mutants [WORD…]`: put faults into copies of the source; a check must find each of them.

It is an error if a mutant's text is not in the source any more, or if a check breaks or fails without a mutant.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOUND = 1  # torture's exit code when something did not hold
LIMIT_S = 600.0  # per check
LEFT_OUT = shutil.ignore_patterns("__pycache__", "bundled")


@dataclass(frozen=True, slots=True)
class Mutant:
    """A fault: a text in a file, its replacement, and the checks that must find it on a share of their cases."""

    name: str
    file: str
    old: str
    new: str
    checks: tuple[str, ...]
    share: float = 1.0


KEEPS, BREAKS = "self._write(INSERT, *cells, hash_of(cells))", "    except Exception:  # noqa: BLE001\n        "
STORE, WHOLE = "batchgen/runs/store.py", "batchgen/formats/whole.py"
LADDER, WEIGHTS = "batchgen/engines/trial/ladder.py", "batchgen/model/weights.py"
DATABASE, ROWS = "batchgen/runs/database.py", "batchgen/formats/rows.py"
MUTANTS = [
    # Mutants that torture once did not find.
    Mutant("every 97th result is never stored", STORE, KEEPS,
           f"if result.index % 97 != 96:\n            {KEEPS}", ("right",)),
    Mutant("no fsync before the rename", WHOLE, "            os.fsync(stream.fileno())", "            stream.fileno()",
           ("order",)),
    Mutant("synchronous=OFF", DATABASE, "synchronous = FULL", "synchronous = OFF", ("order",)),
    Mutant("CSV is not neutralised", "batchgen/formats/delimited.py", "cell if options.csv_raw else neutral(cell)",
           "cell", ("guard-formulas",)),
    Mutant("no exclusive lock", "batchgen/runs/locks.py", "        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)",
           "        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)", ("race-start", "guard-locked"), 0.02),
    Mutant("a check's own assertion is taken for a finding", "torture/lab.py",
           f"{BREAKS}_break(tally, lab, number)", f'{BREAKS}_count(tally, lab, number, Tried("case", "it broke"))',
           ("itself",)),
    # One of each other kind.
    Mutant("rows with one id draw alike", ROWS, "counts.next(index, row.id)", "0", ("right",)),
    Mutant("a failed row gets its place as id", ROWS, "if row.id is None and not error else", "if row.id is None else",
           ("guard-whose-id",)),
    Mutant("a step does not look for NaN", "batchgen/engines/sampling/sampler.py",
           "return (~best.isfinite()).long() + ", "return 0 * best.long() + ", ("model-nan",)),
    Mutant("stop strings do not end a row", "batchgen/model/stops.py",
           "    if any(stop in text for stop in sequence.sampling.stop):\n        return True",
           "    if any(stop in text for stop in ()):\n        return True", ("model-stop",)),
    Mutant("what a tokenizer appends stays", "batchgen/model/added_ids.py",
           "ids = input_ids[:end] if self.behind and tuple(input_ids[end:]) == self.behind else input_ids",
           "ids = input_ids", ("model-appended",)),
    Mutant("a finished file is not compared", "batchgen/runs/nothing_left.py", "    compare(record.facts,",
           "    (lambda *_: None)(record.facts,", ("guard-finished",)),
    Mutant("the input of a finished file is not compared", "batchgen/runs/nothing_left.py",
           "    if answered == digest.facts:\n", "    if answered[\"rows\"] == digest.facts[\"rows\"]:\n",
           ("guard-finished",)),
    Mutant("--overwrite keeps the old rows", "batchgen/runs/output.py", "    store.clear()\n", "", ("right",)),
    Mutant("a temporary file may be there", WHOLE,
           'flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)',
           "flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC", ("guard-planted",)),
    Mutant("a file that appeared is replaced", WHOLE, "    if there not in (None, replaces):", "    if False:",
           ("guard-appeared",)),
    Mutant("the folder is not synced", WHOLE, "    _sync_folder(file.parent)\n", "", ("order",)),
    Mutant("hashes in a store are not checked", "batchgen/runs/stored.py", "self._check(digest == hash_of(cells))",
           "self._check(True)", ("guard-damaged",)),
    Mutant("a private output becomes public", WHOLE, "                temporary.chmod(mode)",
           "                temporary.chmod(0o644)", ("guard-old-mode",)),
    Mutant("a store is for everybody", DATABASE, "os.chmod(descriptor, mode)", "os.chmod(descriptor, 0o644)",
           ("guard-store-mode",)),
    Mutant("a file sets workers", "batchgen/cli/config_files.py", '"workers",', "", ("folder-settings",)),
    Mutant("children import from the working folder", "batchgen/machine/children.py",
           '    os.environ[SAFE_PATH] = "1"', '    os.environ[SAFE_PATH] = ""', ("folder-modules",), 0.25),
    Mutant("samples have no bound", "batchgen/records/sampling.py", "MOST_SAMPLES = 16_384", "MOST_SAMPLES = 2**40",
           ("guard-many-samples",)),
    Mutant("JSON is taken for text", "batchgen/formats/sniff.py", "    look = look_at_json(content)\n",
           '    look = "text"\n', ("guard-unsaid-json",)),
    # Engines and their parts.
    Mutant("reference is trusted untried", LADDER, "    if rule.mixing is Mixing.alone:\n", "    if True:\n",
           ("family-batch",)),
    Mutant("rows on both sides of LongRoPE's limit share a batch", "batchgen/engines/reference/rules.py",
           "return by_length, is_long(row, self.short_limit), crossing", "return by_length, False, None",
           ("family-batch",)),
    Mutant("verify has no ceiling", "batchgen/proof/verify/oracle.py",
           "min(allowed, MOST_ROUNDING * largest) if is_float32 else allowed", "allowed", ("family-nonsense",)),
    Mutant("a race chooses the kernels", "batchgen/engines/continuous/linear.py",
           "    if kernels in (PLAIN, FUSED_PLAIN, COMPILED_PLAIN) or not places",
           "    import time\n    if int(time.perf_counter() * 10) % 2 or not places", ("family-clock",)),
    # Text and tokens.
    Mutant("a stop with a special token is not looked for", "batchgen/model/stops.py",
           "stops_of(tokenizer, sequence.sampling.stop).marked:", "():", ("model-special-stop",)),
    Mutant("hostile tokenizers are not looked at", "batchgen/model/tokenizer_trial.py",
           "        if harm := find_harm(parts):\n            raise", "        if harm := None:\n            raise",
           ("hostile-tokenizer",)),
    Mutant("texts are not tried first", "batchgen/model/guarded.py", "            if not self.watches(text):",
           "            if True:", ("model-endless",)),
    # Bounds.
    Mutant("rows of a Parquet file weigh nothing", "batchgen/formats/parquet.py",
           "cut_by_weight(weights, BYTES_AT_ONCE)", "cut_by_weight(weights, 2**60)", ("bounded",)),
    Mutant("nested values weigh nothing", "batchgen/formats/jsonl.py", "    num_bytes = weigh_json(line)",
           "    num_bytes = 1", ("bounded",)),
    Mutant("--memory is not compared with the weights", WEIGHTS, "    if needed > bound.available_bytes:",
           "    if False:", ("model-memory",)),
    Mutant("--memory is not compared with all workers' weights", WEIGHTS,
           "    if most is not None and num_workers * (weights + process) > most:", "    if False:",
           ("model-memory",)),
]  # fmt: skip


def make_copy(folder: Path, mutant: Mutant | None) -> Path:
    """Copy the source and insert the fault. Raises `ValueError` if the text is not there."""
    for name in ("batchgen", "torture"):
        shutil.copytree(ROOT / name, folder / name, ignore=LEFT_OUT)
    (folder / "batchgen" / "bundled").symlink_to(ROOT / "batchgen" / "bundled")
    if mutant:
        file = folder / mutant.file
        text = file.read_text()
        if mutant.old not in text:
            raise ValueError(f"{mutant.file} does not hold {mutant.old.strip()!r}")
        file.write_text(text.replace(mutant.old, mutant.new))
    return folder


def attempt(folder: Path, checks: Sequence[str], share: float) -> tuple[int, str]:
    """Run torture in a copy; return its exit code and its output on stderr."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "torture", *checks, "--share", str(share), "--patience", "10"]
    limit_s = LIMIT_S * len(checks)
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return -1, f"it took more than {limit_s:.0f} s"
    return done.returncode, done.stderr


def judge(mutant: Mutant | None, checks: Sequence[str], share: float) -> str | None:
    """Return what is wrong: a mutant that no check finds, or a check that finds something without one."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        try:
            code, said = attempt(make_copy(Path(folder), mutant), checks, share)
        except ValueError as error:
            return str(error)
    if mutant is None:
        return None if code == 0 else f"without a mutant the checks end with {code}: {said[-1500:]}"
    if code == FOUND and "\nFAILED " in said:
        return None
    return "nobody finds it" if code == 0 else f"the check itself ends with {code}: {said[-1500:]}"


def tell(mutant: Mutant, started: float) -> str | None:
    problem = judge(mutant, mutant.checks, mutant.share)
    mark = "found" if problem is None else f"NOT FOUND: {problem}"
    print(f"{time.monotonic() - started:5.0f} s  {mutant.name}: {mark}", flush=True)
    return problem


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m torture.mutants", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD", help="only mutants whose name holds one of these")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    options = parser.parse_args()
    wanted = [m for m in MUTANTS if not options.words or any(word in m.name for word in options.words)]
    started = time.monotonic()
    checks = sorted({check for mutant in wanted for check in mutant.checks})
    with ThreadPoolExecutor(options.jobs) as pool:
        plain = pool.submit(judge, None, checks, min((m.share for m in wanted), default=1.0))
        problems = [problem for problem in pool.map(lambda mutant: tell(mutant, started), wanted) if problem]
        if problem := plain.result():
            print(problem)
            problems.append(problem)
    print(f"{len(wanted)} mutants, {len(problems)} problems")
    return 1 if problems or not wanted else 0


if __name__ == "__main__":
    sys.exit(main())
