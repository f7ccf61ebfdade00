"""Take screenshots of the pages in headless Chromium: `inspect`, results, differences, scores; desktop and phone.

    make screenshots                      the ones in the documentation, into docs/pictures/
    python tools/screenshots.py FOLDER    all of them, also with many rows and on a phone

Needs Chromium (apt-get install chromium) and the extra `browser`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import BrowserContext, sync_playwright

ROOT = Path(__file__).parents[1]
PROMPTS = ROOT / "prompts" / "rain.txt"
SCORED = [
    {
        "id": "story",
        "text": "My dog is a very nice dog. He likes to play with his toys in the garden of the stock market.",
    },
    {"id": "ending", "prompt": "It will rain in the", "choices": [" morning.", " old house.", " banana."], "answer": 0},
]
SHOWN = ("inspect", "results", "diff", "scores")
DESK, PHONE = (1240, 820), (390, 800)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def batchgen(folder: Path, *words: object, codes: tuple[int, ...] = (0,)) -> None:
    """Run a command of this package in a folder; raises `SystemExit` on an unexpected exit code."""
    command = [sys.executable, "-m", "batchgen", *map(str, words)]
    ended = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if ended.returncode not in codes:
        raise SystemExit(f"{' '.join(command[2:])} ended with {ended.returncode}: {ended.stderr}")


def write_pages(folder: Path) -> dict[str, Path]:
    """Write the pages, and return them by the names of their pictures."""
    pages = {name: folder / f"{name}.html" for name in ("inspect", "results", "diff", "scores", "inspect-many")}
    many = folder / "many.txt"
    many.write_text("".join(f"{line}\n" for line in PROMPTS.read_text().splitlines() * 14))
    varied = ["run", ROOT / "prompts" / "varied.jsonl", "--model", "bundled", "--max-new-tokens", 24, "--logprobs", 3]
    warmer = [*varied, "--repetition-penalty", 1.2]
    batchgen(folder, "inspect", PROMPTS, "--model", "bundled", "--html", pages["inspect"])
    batchgen(folder, "inspect", many, "--limit", 42, "--model", "bundled", "--html", pages["inspect-many"])
    batchgen(folder, *varied, "-o", "a.jsonl", "--html", pages["results"], codes=(0, 3))
    batchgen(folder, *warmer, "-o", "b.jsonl", codes=(0, 3))
    batchgen(folder, "diff", "a.jsonl", "b.jsonl", "--html", pages["diff"], codes=(4,))
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in SCORED))
    batchgen(folder, "score", texts, "--model", "bundled", "-o", "s.jsonl", "--html", pages["scores"])
    return pages


def take(context: BrowserContext, page: Path, size: tuple[int, int], picture: Path) -> None:
    """Take a picture of a page in a window of this size."""
    tab = context.new_page()
    tab.set_viewport_size({"width": size[0], "height": size[1]})
    tab.goto(page.as_uri())
    if page.stem == "scores":
        tab.locator(".pieces span", has_text="stock").hover()
    tab.screenshot(path=picture)
    tab.close()


def main(folder: Path | None) -> None:
    """Take all pictures into a folder; without a folder, only those in the documentation."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("Chromium is missing: apt-get install chromium")
    pictures = folder or ROOT / "docs" / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made, sync_playwright() as playwright:
        pages = write_pages(Path(made))
        context = playwright.chromium.launch_persistent_context(
            f"{made}/profile", executable_path=chromium, headless=True, args=FLAGS
        )
        for name in pages if folder else SHOWN:
            for suffix, size in (("", DESK), ("-phone", PHONE))[: 2 if folder else 1]:
                picture = pictures / f"{name}{suffix}.png"
                take(context, pages[name], size, picture)
                print(picture)
        context.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
