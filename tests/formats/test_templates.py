"""Templates: columns to prompts, and what a hostile template cannot do."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.errors import InputError, UsageError
from batchgen.formats.templates import LONGEST_TEMPLATE, Template, read_template

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
COLUMNS: dict[str, Any] = {
    "question": "why?", "tags": ["b", "a"], "n": 7, "share": 0.256, "nothing": None, "yes": True, "a b": "spaced",
    "deep": {"x": [{"y": "é"}]}, "rows": [{"k": 1, "v": "p"}, {"k": 2, "v": "q"}, {"k": 1, "v": "r"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("source", "prompt"),
    [
        ("Q: {{ question }}\nA:", "Q: why?\nA:"),
        ("{{ question }}\n", "why?\n"),
        ("no columns", "no columns"),
        ("", ""),
        ("{{ n }} {{ share }} {{ nothing }} {{ yes }}", "7 0.256 None True"),
        ("{{ row['a b'] }} {{ row.n }}", "spaced 7"),
        ("{{ deep.x[0].y }}{{ deep['x'][0]['y'] }}", "éé"),
        ("{{ tags }}", "['b', 'a']"),
        ("{{ tags|sort|join(', ')|upper }}", "A, B"),
        ("{{ deep|tojson }}", '{"x": [{"y": "é"}]}'),
        ("{{ question|replace('y', 'i')|title }}", "Whi?"),
        ("{{ share|round(1) }} {{ n * 2 + 1 }} {{ n % 4 }} {{ 2 ** 10 }}", "0.3 15 3 1024"),
        ("{% if n > 5 %}many{% else %}few{% endif %}", "many"),
        ("{% for tag in tags %}{{ loop.index }}. {{ tag }}{{ ', ' if not loop.last }}{% endfor %}", "1. b, 2. a"),
        ("{% for k, v in deep.items() %}{{ k }}{{ v|length }}{% endfor %}", "x1"),
        ("{% set t = namespace(n=0) %}{% for i in range(4) %}{% set t.n = t.n + i %}{% endfor %}{{ t.n }}", "6"),
        ("{% set t %}<{{ n }}>{% endset %}{{ t ~ t }}", "<7><7>"),
        ("{% with t = n + 1 %}{{ t }}{% endwith %}", "8"),
        ("{{ missing|default('none') }} {{ missing is defined }}", "none False"),
        ("{{ question.strip('?').split('h')[0] }}", "w"),
        ("{% for g in rows|groupby('k') %}{{ g.grouper }}{{ g.list|map(attribute='v')|join }} {% endfor %}", "1pr 2q "),
        ("{{ rows|selectattr('k', 'equalto', 1)|list|length }}", "2"),
        ("a{# a comment #}b{% raw %}{{ c }}{% endraw %}", "ab{{ c }}"),
        ("{{ 'x\ny'|indent(2) }}", "x\n  y"),
        ("{{ '<&>' }}", "<&>"),
    ],
)
def test_a_template_renders(source: str, prompt: str) -> None:
    assert Template(source).render(COLUMNS) == prompt


@given(value=TEXT, before=TEXT, after=TEXT)
def test_a_value_stands_in_the_prompt_as_it_is(value: str, before: str, after: str) -> None:
    template = Template("{{ before }}{{ value }}{{ after }}")
    assert template.render({"value": value, "before": before, "after": after}) == before + value + after


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ answer }}", "'answer' is undefined"),
        ("{{ deep.z }}", "'dict object' has no attribute 'z'"),
        ("{{ tags[7] }}", "list object has no element 7"),
        ("{{ n / 0 }}", "division by zero"),
        ("{{ n + question }}", "unsupported operand"),
        ("{{ row.items }}", "a builtin_function_or_method cannot be written"),
        ("{{ tags|map('upper') }}", "a generator cannot be written"),
        ("{{ self }}", "a TemplateReference cannot be written"),
    ],
)
def test_what_goes_wrong_in_a_row_is_one_line(source: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^--template: ") as caught:
        Template(source).render(COLUMNS)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ question", "--template, line 1: unexpected end of template"),
        ("a\nb\n{% if %}", "--template, line 3: Expected an expression"),
        ("{% for x in y %}", "--template, line 1: Unexpected end of template"),
        ("{{ x|center(9) }}", "No filter named 'center'"),
        ("{% include '/etc/passwd' %}", "include is not supported in prompts"),
        ("{% import 'x' as y %}", "import is not supported in prompts"),
        ("{% extends 'x' %}", "extends is not supported in prompts"),
        ("{% macro m() %}{{ m() }}{% endmacro %}", "macro is not supported in prompts"),
        ("{% for x in y recursive %}{% endfor %}", "a recursive loop is not supported in prompts"),
        ("{% autoescape true %}{% endautoescape %}", "is not supported in prompts"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "--template: nested too deeply"),
        ("{% for x in y %}" * 40 + "{% endfor %}" * 40, "--template: nested too deeply"),
        ("x" * (LONGEST_TEMPLATE + 1), "longer than 1,048,576 characters"),
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_template_is_a_usage_error(source: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        Template(source)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


INTERNALS = [
    "{{ ''.__class__.__mro__ }}", "{{ row.__class__ }}", "{{ row['__class__'] }}", "{{ range.__self__ }}",
    "{{ dict.__subclasses__() }}", "{{ namespace.__init__.__globals__ }}", "{{ self._TemplateReference__context }}",
    "{{ tags.append(1) }}", "{{ row.clear() }}", "{{ deep.pop('x') }}", "{{ lipsum() }}", "{{ cycler('a') }}",
    "{{ question.format(1) }}", "{{ question.encode() }}", "{{ n.to_bytes(9) }}",
    "{{ [question]|map(attribute='__class__')|first }}",
]  # fmt: skip
BOMBS = [
    "{{ 'a' * 10**10 }}", "{{ 10**10 * 'a' }}", "{{ [0] * 10**10 }}", "{{ '%1000000000d' % 1 }}", "{{ 9 ** 9999 }}",
    "{{ 'x'.center(10**9) }}", "{{ 'x'.ljust(10**9) }}", "{{ '{:>1000000000}'.format(1) }}", "{{ range(10**30)|list }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}",
    "{% set t %}{% for i in range(100000) %}" + "x" * 1000 + "{% endfor %}{% endset %}",
    "{% set a = 'aaaa' %}" + "{% set a = a ~ a %}" * 40,
    "{% set a = ['a'] %}" + "{% set a = [a, a] %}" * 60 + "{{ a }}",
    "{% set a %}aaaa{% endset %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 40,
    "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "{% set n = namespace(x=[]) %}{% for i in range(9999) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}",
    "{{ ('a' * 10**6)|replace('a', 'b' * 10**6) }}", "{{ (['a' * 10**6] * 10**6)|join }}",
    "{{ (['a' * 10**6] * 1000)|map('replace', 'a', 'b' * 8)|list }}", "{{ ('\n' * 10**6)|indent(100) }}",
    "{% set a = [0] * 30000 %}{% set a = [a] * 9000 %}{{ a }}",
    "{% set a = [''] * 60000 %}{% set a = [a] * 9000 %}{{ a }}",
]  # fmt: skip


@pytest.mark.parametrize("source", INTERNALS, ids=lambda text: text[:40])
def test_a_template_does_not_reach_python(source: str) -> None:
    with pytest.raises(ValueError, match=r"unsafe|undefined|no attribute"):
        Template(source).render(COLUMNS)


@pytest.mark.parametrize("source", BOMBS, ids=lambda text: text[:40])
def test_a_template_takes_neither_all_memory_nor_all_time(source: str) -> None:
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"^--template: "):
        Template(source).render(COLUMNS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**29


def test_values_may_be_nested_as_deep_as_anyone_needs() -> None:
    source = (
        "{{% set n = namespace(x=[]) %}}{{% for i in range({}) %}}{{% set n.x = [n.x] %}}{{% endfor %}}{{{{ n.x }}}}"
    )
    assert Template(source.format(150)).render({}) == "[" * 151 + "]" * 151
    with pytest.raises(ValueError, match="a value is nested more than 200 deep"):
        Template(source.format(250)).render({})


def test_a_row_does_not_pay_for_the_rows_before() -> None:
    template = Template("{{ 'a' * 1000000 }}")
    assert {len(template.render({})) for _ in range(200)} == {1_000_000}


def test_a_template_of_a_file_loses_the_newline_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "prompt.jinja"
    for content in (b"Q: {{ n }}\nA:\n", b"Q: {{ n }}\r\nA:\r\n", b"Q: {{ n }}\nA:"):
        path.write_bytes(content)
        assert read_template(path) == Template("Q: {{ n }}\nA:")


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        (None, InputError, "cannot be read: No such file"),
        (b"\xff", InputError, "is not UTF-8 at byte 0"),
        (b"a\n{{", UsageError, ", line 2: "),
        (b"x" * (LONGEST_TEMPLATE + 5), UsageError, "longer than"),
    ],
)
def test_a_file_that_is_no_template_is_one_line(
    tmp_path: Path, content: bytes | None, kind: type[Exception], reason: str
) -> None:
    path = tmp_path / "prompt.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(kind) as caught:
        read_template(path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_a_template_file_without_an_end_is_one_line() -> None:
    with pytest.raises(UsageError, match="longer than"):
        read_template(Path("/dev/zero"))


def test_a_template_may_come_from_a_pipe() -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"{{ n }}\n")
    os.close(write_end)
    assert read_template(Path(f"/dev/fd/{read_end}")).source == "{{ n }}"
    os.close(read_end)
