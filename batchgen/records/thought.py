"""What a model may write ahead of its answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Thought:
    """How a thought shows that it is over: the answer follows `closing`, and up to two line breaks behind it.

    With a `header`, a regular expression, it is a closing right behind that. The thought has begun, unless there is an
    `opening` that begins it: then an answer without one is no thought.
    """

    closing: str
    opening: str | None = None
    header: str | None = None
