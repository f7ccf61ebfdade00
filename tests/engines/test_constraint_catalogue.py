"""Many schemas, expressions, choices and grammars: every finished text is valid, as judged by other libraries."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest

import batchgen
from batchgen import Model, Result
from tests.support.models import make_chat_model

TEXT, NUMBER, WHOLE, FLAG = (
    {"type": "string", "maxLength": 8},
    {"type": "number"},
    {"type": "integer"},
    {"type": "boolean"},
)
SMALL = {"type": "integer", "minimum": 0, "maximum": 99}


def record(*optional: str, **fields: Any) -> dict[str, Any]:
    """Return the schema of an object with exactly these fields."""
    required = [name for name in fields if name not in optional]
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}


def some(items: Any, most: int = 2, least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def text(**more: Any) -> dict[str, Any]:
    return {"type": "string", **more}


POINT = record(x=SMALL, y=SMALL)
SCHEMAS: list[Any] = [
    # one value
    TEXT, WHOLE, SMALL, FLAG, {"type": "null"}, {"const": "fixed"}, {"const": {"a": [1, None]}},
    {"enum": ["low", "mid", "high"]}, {"enum": [1, "one", None, True]}, {"type": ["integer", "null"]},
    {"type": "number", "minimum": -1, "maximum": 1}, {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 9},
    {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 50},
    # texts
    text(minLength=3, maxLength=5), text(pattern="^[A-Z]{2}[0-9]{3}$"), text(pattern="^(red|green)-[0-9]$"),
    text(format="date"), text(format="time"), text(format="date-time"), text(format="uuid"), text(format="ipv4"),
    text(format="email", maxLength=24), text(enum=["n\u00f6", "\u6771\u4eac", 'quote " and \\ slash', "line\nbreak"]),
    # lists
    some(SMALL), some(FLAG, 3, 3), some(some(SMALL)), some({"enum": ["a", "b"]}, 4, 1), some(POINT),
    {"type": "array", "prefixItems": [SMALL, FLAG], "items": False, "minItems": 2},
    {"type": "array", "maxItems": 0},
    # business records
    record(name=TEXT, age=SMALL), record("nick", name=TEXT, nick=TEXT),
    record(title=TEXT, stars={"enum": [1, 2, 3, 4, 5]}),
    record(sku=text(pattern="^[A-Z]{3}-[0-9]{4}$"), price={"type": "number", "minimum": 0, "maximum": 999}),
    record(street=TEXT, zip=text(pattern="^[0-9]{5}$"), country={"enum": ["DE", "FR", "JP"]}),
    record(first=POINT, second=POINT), record(points=some(POINT), closed=FLAG),
    record(subject=TEXT, urgent=FLAG, labels=some({"enum": ["bug", "idea", "question"]})),
    record(sentiment={"enum": ["good", "bad", "neither"]}, score=SMALL),
    record(host=text(format="ipv4"), port={"type": "integer", "minimum": 1, "maximum": 65535}),
    record(id=text(format="uuid"), at=text(format="date")), record(ok={"const": True}),
    record("b", "c", a=SMALL, b=SMALL, c=SMALL), record("only", only=FLAG),
    record(deep=record(deeper=record(deepest=SMALL))), record(**{f"field{n}": FLAG for n in range(12)}),
    record(**{"a key with spaces": SMALL, "\u00e4": SMALL, 'q"': SMALL}),
    record(parent={"type": ["string", "null"], "maxLength": 4}, child=some(TEXT, 1)),
    # one of several
    {"anyOf": [SMALL, FLAG]}, {"anyOf": [record(cat=TEXT), record(dog=TEXT)]},
    {"oneOf": [record(kind={"const": "circle"}, r=SMALL), record(kind={"const": "line"}, to=POINT)]},
    record(value={"anyOf": [SMALL, TEXT, {"type": "null"}]}),
    {"allOf": [{"type": "object", "properties": {"a": SMALL}, "required": ["a"]}, record(a=WHOLE)]},
    # by reference
    {"$defs": {"point": POINT}, "$ref": "#/$defs/point"},
    {"$defs": {"point": POINT}, **record(a={"$ref": "#/$defs/point"}, b={"$ref": "#/$defs/point"})},
    {"$defs": {"tree": record(value=SMALL, branches=some({"$ref": "#/$defs/tree"}, 1))}, "$ref": "#/$defs/tree"},
    {"definitions": {"flag": FLAG}, **record(on={"$ref": "#/definitions/flag"})},
    # open ones
    {"type": "object", "additionalProperties": SMALL, "maxProperties": 2},
    {"type": "object", "properties": {"a": SMALL}, "required": ["a"], "additionalProperties": FLAG, "maxProperties": 2},
    {"type": "object", "patternProperties": {"^x-[a-z]$": SMALL}, "additionalProperties": False, "maxProperties": 2},
]  # fmt: skip
# Without times: RFC 3339 allows a lower-case z, jsonschema does not.
FORMATS = jsonschema.FormatChecker(["date", "uuid", "ipv4", "email"])
REGEXES = [
    "a", "abc", "[a-z]", "[a-z]{3}", "[^a-z]{2}", "[0-9]+", "-?[0-9]{1,4}", "[0-9]{4}-[0-9]{2}", "(yes|no)",
    "(yes|no|maybe)!?", "a*", "a+b+", "(ab){2,3}", "(a|b|c){4}", "x?y?z?", "[A-Z][a-z]{2,6}", "#[0-9a-f]{6}",
    "[A-Z]{2}[0-9]{2}", r"\(\d\d\d\)".replace(r"\d", "[0-9]"), r"\$[0-9]{1,3}\.[0-9]{2}", r"[a-z]+@[a-z]+\.(com|org)",
    "(mon|tues|wednes)day", r"v[0-9]+\.[0-9]+", "[01]{8}", "(0|1(01*0)*1)+", r"\[[0-9](,[0-9])*\]", '"[a-z ]{0,9}"',
    "caf\u00e9", "[\u3040-\u309f]{2}", "(\U0001f600|\U0001f680){1,2}", "a.c", ".{3}", "(?i:yes)", "(?:ab|cd)ef",
    "[a-z]{2,}(-[a-z]{2,})?", r"[ \t]?x", "line\nbreak", r"\\x[0-9a-f]{2}", "[-+*/]", "((a|bb)c)*d",
]  # fmt: skip
CHOICES = [
    ["yes", "no"], ["a"], ["a", "ab", "abc"], ["x", "xx", "xxx", "xxxx"], ["yes", "yes, of course", "yes, but"],
    ["big", "bigger", "biggest"], [" a", "a", "  a"], ["\n", "\n\n"], ["\u00f6", "o", "oe"], ["\u6771\u4eac", "\u6771"],
    ["\U0001f600", "\U0001f601"], ['"', "'"], ["\\", "\\\\"], ["/a/", "/b/"], ["<think>", "think"], ["1", "10", "100"],
    [str(n) for n in range(200)], ["true", "false", "null"], ["{}", "[]"], ["The End.", "the end", "THE END"],
]  # fmt: skip
# A grammar, and the same as a Python regular expression.
GRAMMARS = [
    ('start: "a" "b"', "ab"),
    ('start: item ("," item)*\nitem: /[a-z]{1,3}/', "[a-z]{1,3}(,[a-z]{1,3})*"),
    ('start: sign? digits\nsign: "+" | "-"\ndigits: /[0-9]{1,3}/', "[+-]?[0-9]{1,3}"),
    ('start: "(" start ")" | "x"', r"(?P<open>\()*x\)*"),
    (
        'start: name "=" value ";"\nname: /[a-z]{1,2}/\nvalue: /[0-9]/ | "\\"" /[a-z]/ "\\""',
        r'[a-z]{1,2}=([0-9]|"[a-z]");',
    ),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A random model, which explores outputs that a trained one never would."""
    return make_chat_model("chatml", tmp_path_factory.mktemp("small"), spread=0.3)


def answers(model: Model, kinds: list[dict[str, Any]], per_kind: int, temperature: float) -> list[Result]:
    sampling = {"temperature": temperature, "max_new_tokens": 150}
    rows = [{"prompt": "a b c"[: 1 + n], "sampling": {**kind, **sampling}} for kind in kinds for n in range(per_kind)]
    return batchgen.generate(rows, model=model, batch_size=64, chat=False)


def test_the_catalogue_is_as_large_as_it_says() -> None:
    assert (len(SCHEMAS), len(REGEXES), len(CHOICES), len(GRAMMARS)) == (60, 40, 20, 5)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_row_that_stopped_is_valid(small: Model, temperature: float) -> None:
    rows = answers(small, [{"json_schema": schema} for schema in SCHEMAS], 5, temperature)
    assert [row.error for row in rows if row.error] == []
    stopped = [(row, SCHEMAS[row.index // 5]) for row in rows if row.finish_reason == "stop"]
    for row, schema in stopped:
        jsonschema.validate(json.loads(row.text), schema, format_checker=FORMATS)
        assert row.parsed == json.loads(row.text)
    assert len(stopped) > 200


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_expression_choice_and_grammar_matches(small: Model, temperature: float) -> None:
    kinds: list[tuple[dict[str, Any], Any]] = [({"regex": regex}, regex) for regex in REGEXES]
    kinds += [({"choice": choice}, "|".join(map(re.escape, choice))) for choice in CHOICES]
    kinds += [({"grammar": grammar}, regex) for grammar, regex in GRAMMARS]
    rows = answers(small, [kind for kind, _ in kinds], 3, temperature)
    assert [row.error for row in rows if row.error] == []
    stopped = [row for row in rows if row.finish_reason == "stop"]
    for row in stopped:
        assert re.fullmatch(kinds[row.index // 3][1], row.text), (kinds[row.index // 3], row.text)
    assert len(stopped) > 150
