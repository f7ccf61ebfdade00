"""The reference of the Python functions and records, from their signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import batchgen
from batchgen.records import Result, RunStats, SamplingParams
from batchgen.runs.keywords import FileOptions, GenerateOptions
from website.markdown import code, fence, table

INTRODUCTION = """# Python

Everything here can be imported from `batchgen`. Recipes are in [Python](../recipes.md#call-it-from-python).
"""


def python_page() -> str:
    """All public names: functions first, then records and errors."""
    names = sorted(batchgen.__all__, key=lambda name: (inspect.isclass(getattr(batchgen, name)), name.lower()))
    parts = [INTRODUCTION]
    for name in names:
        parts += _entry(name, getattr(batchgen, name))
    parts += ["## Options", "Keyword arguments of `generate`, `stream`, `run` and `score`.", _keywords()]
    return "\n\n".join(parts) + "\n"


def _entry(name: str, thing: Any) -> Iterator[str]:
    yield f"## {name}"
    if not inspect.isclass(thing):
        yield fence(f"{name}{_signature(thing)}", "python")
    yield docstring(inspect.getdoc(thing) or "")
    if thing in (Result, RunStats, SamplingParams):
        yield f"Its fields are in [records](records.md#{name.lower()})."


def _signature(function: Any) -> str:
    """A function's signature, with types as in the source but without quotes."""
    text = str(inspect.signature(function))
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)
    text = re.sub(r" = <[^>]*<[^>]*>[^>]*>", " = …", text)
    return re.sub(r"Unpack\[(\w+)\]", r"\1", text)


def docstring(text: str) -> str:
    r"""A docstring as Markdown: paragraphs unchanged, examples in fences.

    >>> docstring("Adds.\n\n>>> 1 + 1\n2")
    'Adds.\n\n```pycon\n>>> 1 + 1\n2\n```'
    """
    return "\n\n".join(fence(part, "pycon") if part.startswith(">>>") else part for part in text.split("\n\n"))


def _keywords() -> str:
    names = {**GenerateOptions.__annotations__, **FileOptions.__annotations__}
    return table(["option", "type"], [[code(name), code(_type(kind))] for name, kind in sorted(names.items())])


def _type(kind: Any) -> str:
    return str(getattr(kind, "__forward_arg__", kind)).replace("typing.", "")
