"""What a model may write before its answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Thought:
    """How to detect the end of a thought: the answer follows `closing` and up to two line breaks after it.

    With a `header`, a regular expression, only a `closing` right after a match of it counts. With an `opening`, the
    thought begins only if the model writes it; otherwise the prompt has already begun the thought.
    """

    closing: str
    opening: str | None = None
    header: str | None = None
