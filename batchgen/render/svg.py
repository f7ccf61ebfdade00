"""Converts a terminal drawing to an SVG image without external resources."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import StringIO

from rich.console import Console

# Rich's template refers to fonts on a server; without them the viewer's monospace font is used.
FONT_FACE = re.compile(r"@font-face \{[^}]*\}\s*")


def to_svg(draw: Callable[[Console], None], title: str) -> str:
    """Return what `draw` prints as an SVG, in colour, as wide as the terminal."""
    console = Console(file=StringIO(), record=True, force_terminal=True, color_system="truecolor", highlight=False)
    draw(console)
    return FONT_FACE.sub("", console.export_svg(title=title, unique_id="batchgen"))
