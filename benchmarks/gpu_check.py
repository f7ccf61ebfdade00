"""Whether batchgen is correct on a GPU, and how fast: one command, under 8 minutes on one GPU.

    make gpu-check [PYTHON=python3]     or     python -m benchmarks.gpu_check [--device cuda:0] [--minutes 8]

Checks parity of both engines with unpadded rows, NaN beside pads, tokens per second against `generate`, host syncs,
predicted against measured memory, and back-off. Writes gpu-check.json and gpu-check.md. Exits with 1 if something is
wrong, and with 0 if there is no GPU. Needs torch and transformers; no network. `--device cpu --tiny` runs all of its
logic in seconds.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
_cache = tempfile.TemporaryDirectory()  # results for random models must not be mistaken for the bundled one's
os.environ["XDG_CACHE_HOME"] = _cache.name

import torch  # noqa: E402 - the environment comes first


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, few cases: for a CPU")
    parser.add_argument("--minutes", type=float, default=8.0, help="what is left after that is skipped, and named")
    parser.add_argument("--out", type=Path, default=Path(), help="the folder for gpu-check.json and gpu-check.md")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU: torch sees no CUDA device here, so nothing was checked")
        return 0
    return check(device, options.tiny, options.minutes * 60, options.out)


def check(device: torch.device, is_tiny: bool, seconds: float, folder: Path) -> int:
    """Run the parts, most valuable first, until time is up; return 1 if something is wrong."""
    from benchmarks.gpu.parts import parts
    from benchmarks.gpu.report import Report

    started = time.perf_counter()
    report = Report(_machine(device))
    for name, part in parts(device, is_tiny, report):
        if time.perf_counter() - started > 0.9 * seconds:
            report.skipped.append(name)
            continue
        print(f"{time.perf_counter() - started:5.0f} s  {name}", flush=True)
        try:
            part()
        except Exception as error:  # noqa: BLE001 - one part that breaks must not hide the others
            report.crashed.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    report.seconds = time.perf_counter() - started
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu-check.json").write_text(report.as_json(), encoding="utf-8")
    (folder / "gpu-check.md").write_text(report.as_markdown(), encoding="utf-8")
    print("\n" + report.as_markdown())
    print(f"wrote {folder / 'gpu-check.json'} and {folder / 'gpu-check.md'}: {len(report.faults)} faults")
    return 1 if report.faults else 0


def _machine(device: torch.device) -> dict[str, str]:
    import transformers

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
    versions = {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {"device": name, **versions, "date": time.strftime("%Y-%m-%d")}


if __name__ == "__main__":
    sys.exit(main())
