"""Split an answer by the tokenizer's response template in bounded time: its patterns are untrusted.

transformers does the parsing; this module adds the time limit to its patterns.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers.utils.chat_parsing.response_templates import ResponseTemplate, ResponseTemplateField

MOST_SECONDS = 1.0  # of CPU time for one answer; thousands of tokens take a hundredth of that
PATTERN = "tag_pattern"  # of the content parser xml-inline


class Allowance:
    """The CPU time that is left for an answer."""

    def __init__(self, seconds: float) -> None:
        self._end = time.process_time() + seconds

    def left(self) -> float:
        """Return the seconds left. Raises `TimeoutError` if there are none."""
        left = self._end - time.process_time()
        if left <= 0:
            raise TimeoutError
        return left


@dataclass(frozen=True, slots=True)
class Timed:
    """A compiled pattern with the interface that transformers' parser uses, limited to the time that is left."""

    pattern: Any
    allowance: Allowance

    def search(self, text: str, start: int = 0, *, partial: bool = False) -> Any:
        return self.pattern.search(text, start, partial=partial, timeout=self.allowance.left())

    def finditer(self, text: str) -> Iterator[Any]:
        for match in self.pattern.finditer(text, timeout=self.allowance.left()):
            yield match
            self.allowance.left()


def parse_in_time(
    spec: Mapping[str, Any], text: str, prompt: str, tools: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """Parse an answer to a prompt with transformers' `parse_response`.

    Raises `TimeoutError` if the template needs more than `MOST_SECONDS` of CPU time; one that does not fit may raise
    anything.
    """
    from transformers.utils.chat_parsing import parse_response
    from transformers.utils.chat_parsing.response_templates import load_response_template

    allowance = Allowance(MOST_SECONDS)
    template = _timed(load_response_template(dict(spec)), allowance)
    if any(_patterns(field.content, field.content_args) for field in template.fields.values()):
        bodies = parse_response(text, _as_text(template), prefix=prompt)
        for name, field in template.fields.items():
            for body in bodies.get(name, []):
                _try_content(body, field.content, field.content_args, allowance)
    parsed: dict[str, Any] = parse_response(text, template, prefix=prompt, tools=tools)
    return parsed


def _timed(template: ResponseTemplate, allowance: Allowance) -> ResponseTemplate:
    def timed(pattern: Any) -> Timed | None:
        return None if pattern is None else Timed(pattern, allowance)

    fields = {
        name: replace(field, open_re=timed(field.open_re), close_re=timed(field.close_re))
        for name, field in template.fields.items()
    }
    return replace(template, fields=fields, start_anchor_re=timed(template.start_anchor_re))


def _as_text(template: ResponseTemplate) -> ResponseTemplate:
    """The template changed to return every region's text unparsed, in lists."""

    def as_text(field: ResponseTemplateField) -> ResponseTemplateField:
        text = {"content": "text", "content_args": {"strip": False}, "transform": None, "transform_each": False}
        return replace(field, **text, repeats=True, join=None, optional=True)

    return replace(template, defaults={}, fields={name: as_text(field) for name, field in template.fields.items()})


def _patterns(content: str, args: Mapping[str, Any]) -> bool:
    """Whether the content of a region, or of its values, is parsed with a pattern."""
    inner = args.get("value_parser") or {}
    return content == "xml-inline" or (bool(inner) and _patterns(inner.get("name", "text"), inner.get("args", {})))


def _try_content(text: str, content: str, args: Mapping[str, Any], allowance: Allowance) -> None:
    """Run a content's pattern as the parser will, which has no time limit itself. Raises `TimeoutError`."""
    import regex

    if not _patterns(content, args):
        return
    if content != "xml-inline":
        raise ValueError("patterns in values of kv-lines are not supported")
    inner = args.get("value_parser") or {}
    for match in Timed(regex.compile(args[PATTERN], regex.DOTALL), allowance).finditer(text):
        value = match.groupdict().get("value", "")
        _try_content(value, inner.get("name", "text"), inner.get("args", {}), allowance)
