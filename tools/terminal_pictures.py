"""Draw the coloured output of commands as SVG pictures for README and docs.

python tools/terminal_pictures.py      all of them, into docs/pictures/
"""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from batchgen.render.svg import to_svg

ROOT = Path(__file__).parents[1]
PICTURES = {
    "table.svg": "batchgen run prompts/rain.txt --model bundled --repetition-penalty 1.3 --format table",
    "mask.svg": "batchgen inspect prompts/rain.txt --model bundled --mask",
}
COLUMNS = "80"


def picture(command: str) -> str:
    """The output of a batchgen command in a terminal of 80 columns, as SVG."""
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": COLUMNS}
    words = command.split()[1:]
    run = subprocess.run(
        [sys.executable, "-m", "batchgen", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    os.environ["COLUMNS"] = COLUMNS

    def draw(console: Console) -> None:
        console.print(Text.from_ansi(run.stdout))

    return to_svg(draw, f"$ {command}")


def words_in(svg: str) -> list[str]:
    """The words of a picture, line by line; table borders do not count as words.
    >>> words_in('<text x="0">My&#160;dog</text><text x="9">│</text>')
    ['My', 'dog']
    """
    texts = re.findall(r"<text [^>]*>([^<]*)</text>", svg)
    return [word for text in texts for word in html.unescape(text).split() if not re.fullmatch("[─-╿]+", word)]


def main() -> None:
    for name, command in PICTURES.items():
        place = ROOT / "docs" / "pictures" / name
        place.write_text(picture(command), encoding="utf-8")
        print(f"{place}: {command}")


if __name__ == "__main__":
    main()
