"""Markdown building blocks for generated pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""A Markdown table; vertical bars and line breaks in cells are escaped.

    >>> print(table(["a", "b"], [["1|2", "x"]]))
    | a | b |
    | --- | --- |
    | 1\|2 | x |
    """
    lines = [list(header), ["---"] * len(header), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(text: str) -> str:
    """Text as inline code; empty for an empty text.

    >>> code("--stop TEXT")
    '`--stop TEXT`'
    """
    return f"`{text}`" if text else ""


def fence(text: str, language: str = "") -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def prose(text: str) -> str:
    r"""Plain text with everything escaped that Markdown or HTML would interpret as markup.

    >>> prose("special <|endoftext|> in [a] *b*")
    'special &lt;|endoftext|&gt; in \\[a\\] \\*b\\*'
    """
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for sign in "[]*\\":
        escaped = escaped.replace(sign, f"\\{sign}") if sign != "\\" else escaped
    return escaped


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
