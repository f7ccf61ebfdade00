"""Escapes in stop strings, as shells pass them on: `'\\n'` is a newline."""

from __future__ import annotations

import re

import typer

from batchgen.cli.settings import came_from, note

ESCAPE = re.compile(r"\\(n|t|r|\\|u[0-9a-fA-F]{4})")
SIGNS = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
SPOKEN = {"\n": "<newline>", "\t": "<tab>", "\r": "<carriage return>", "\\": "<backslash>"}


def decode_escapes(text: str) -> str:
    r"""Replace escapes by what they stand for; other backslashes stay as typed.

    >>> decode_escapes(r"\n") == "\n", decode_escapes(r"\\n") == r"\n", decode_escapes(r"\d") == r"\d"
    (True, True, True)
    """
    decoded = ESCAPE.sub(lambda match: SIGNS.get(match[1]) or chr(int(match[1][1:], 16)), text)
    # Two escaped surrogate halves become one character.
    return decoded.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def read_escapes(context: typer.Context, parameter: typer.CallbackParam, texts: list[str] | None) -> list[str] | None:
    """Decode the texts of an option if they were typed; config files have their own escapes."""
    if not texts or not came_from(context, parameter.name or "", "COMMANDLINE"):
        return texts
    for text in dict.fromkeys(text for text in texts if decode_escapes(text) != text):
        spoken = ESCAPE.sub(lambda match: SPOKEN.get(decode_escapes(match[0]), decode_escapes(match[0])), text)
        note(context, f"{parameter.opts[0]} {text} is read as {spoken}")
    return [decode_escapes(text) for text in texts]
