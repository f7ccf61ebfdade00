"""Constraints as llguidance grammars, and its errors in one line. Needs neither torch nor a model."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from batchgen.records import Constraint

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# The library's defaults, except for lexer states: these take up to 2 KB each, and every row has its own.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 500_000,
    "verbose_errors": False,
}
LONGEST_PROBLEM = 200
SUBJECTS = {
    "json_schema": "the JSON schema",
    "regex": "the regular expression",
    "choice": "the list of choices",
    "grammar": "the grammar",
}
NOTHING_FITS = "no text can match it"
TOO_LARGE = "it is too large or too complex"
KEYS = re.compile(r"Unimplemented keys: \[(.*)\]")
ELSEWHERE = re.compile(r"Resource '(.*)' is not present in a registry")
UNPRINTABLE = re.compile(r"[\x7f-\x9f]")
# Replacements for messages whose advice a user could not follow.
PLAINER = {
    "coerce_one_of": "oneOf is supported only if it is clear that its schemas exclude each other: use anyOf",
    "unknown special token": "special tokens in grammars are not supported",
}
SETTINGS = "x-guidance"  # a schema key that would change how strictly the library reads it


def source_of(constraint: Constraint) -> str:
    """Return the constraint in the library's format. Raises `ValueError`."""
    from llguidance import LLMatcher

    if constraint.is_json:
        spaces: Any = {"whitespace_flexible": constraint.any_whitespace}
        return LLMatcher.grammar_from_json_schema(_schema(constraint.text), overrides=spaces)
    if constraint.kind == "choice":
        return LLMatcher.grammar_from_lark(f"start: {' | '.join(map(_quoted, json.loads(constraint.text)))}")
    if constraint.kind == "regex":
        return LLMatcher.grammar_from_regex(constraint.text)
    return LLMatcher.grammar_from_lark(constraint.text)


def _schema(text: str) -> str:
    """Return a schema that the library accepts: an object, without the library's own settings."""
    if text == "false":
        raise ValueError(NOTHING_FITS)
    if SETTINGS not in text:
        return "{}" if text == "true" else text
    return json.dumps({key: value for key, value in json.loads(text).items() if key != SETTINGS}, ensure_ascii=False)


def _quoted(choice: str) -> str:
    quoted = json.dumps(choice, ensure_ascii=False)
    return UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)


def compile_grammar(tokenizer: LLTokenizer, constraint: Constraint) -> LLMatcher:
    """Return a matcher that follows a text token by token. Raises `ValueError`, one line, for an invalid constraint."""
    from llguidance import LLMatcher, LLParserLimits

    try:
        source = source_of(constraint)
    except ValueError as error:
        raise ValueError(in_one_line(constraint, str(error))) from None
    matcher = LLMatcher(tokenizer, source, log_level=0, limits=LLParserLimits(**LIMITS))
    if matcher.is_error():
        raise ValueError(in_one_line(constraint, matcher.get_error()))
    return matcher


def in_one_line(constraint: Constraint, message: str) -> str:
    """Return what the library says about a constraint, rephrased for users."""
    return f"{SUBJECTS[constraint.kind]} cannot be used: {_reason(message)}"


def why_ended(constraint: Constraint, message: str) -> str:
    """Return why the library cannot follow a row's text any further, although its constraint can be used.

    The library forces bytes that a vocabulary may not have, and then reports that no token, or not the next one, fits.
    """
    if "NoExtensionBias" in message or "forced bytes" in message:
        return f"{SUBJECTS[constraint.kind]} cannot be met: the model has no tokens for what must come next"
    return in_one_line(constraint, message)


def _reason(message: str) -> str:
    if keys := KEYS.search(message):
        names = ", ".join(sorted(json.loads(f"[{keys[1]}]")))
        return f"{names} {'are' if ',' in names else 'is'} not supported"
    if elsewhere := ELSEWHERE.search(message):
        return f"{elsewhere[1]} is outside the schema"
    if plainer := next((plainer for known, plainer in PLAINER.items() if known in message), None):
        return plainer
    if "NoExtensionBias" in message:
        return NOTHING_FITS
    if any(
        word in message.lower() for word in ("fuel", "too big", "too large", "too many", "too complex", "toocomplex")
    ):
        return TOO_LARGE
    plain = message.partition("<state>")[0]
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    told = next((line.removeprefix("error:").strip() for line in lines if line.startswith("error:")), None)
    text = told or (lines or ["it is not valid"])[0]
    return text if len(text) <= LONGEST_PROBLEM else text[:LONGEST_PROBLEM] + "…"
