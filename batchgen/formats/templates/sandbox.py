"""A Jinja environment for untrusted templates: no files, no Python attributes, and limits on work.

Jinja's own sandbox protects Python's internals, but not the machine's memory and time. Here every value that an
expression produces, every loop iteration and all output is metered, so that a template stops after a bounded amount of
work, which is the same on every machine. The few operations that could produce something huge in one step are checked
before they run, or are not available.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, Undefined, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from batchgen.records import LONGEST_ROW

MOST_WORK = 16 * LONGEST_ROW  # characters produced while rendering one prompt
STEP = 100  # the minimum cost of a loop iteration or a value, in characters
ITEM = 4  # the cost of an item of a list or dict besides its value, in characters: quotes, a comma, a space
MOST_BITS = 4096  # in a whole number
MOST_DEPTH = 200  # of lists in lists; each level is measured again for every value
MOST_INDENT = 100

# Nothing random, nothing for HTML, nothing that pads to a width; `join`, `replace`, … have limits of their own.
PLAIN_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "groupby", "int", "items", "last",
    "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr", "sort",
    "string", "striptags", "sum", "title", "trim", "truncate", "unique", "upper", "urlencode", "wordcount",
)  # fmt: skip
WRITABLE = (str, int, float, list, tuple, dict, type(None), Undefined)
METHODS = {
    str: {
        "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdecimal", "isdigit",
        "islower", "isnumeric", "isspace", "istitle", "isupper", "lower", "lstrip", "partition", "removeprefix",
        "removesuffix", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith",
        "strip", "swapcase", "title", "upper",
    },
    list: {"count", "index"},
    tuple: {"count", "index", "grouper", "list"},  # the last two are for groupby's groups
    dict: {"get", "items", "keys", "values"},
    int: set(),
    float: set(),
}  # fmt: skip


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one template. It renders one row at a time."""

    intercepted_binops = frozenset({"*", "**", "%"})
    methods = METHODS

    def __init__(self, **jinja: Any) -> None:
        options = {"undefined": StrictUndefined, "keep_trailing_newline": True} | jinja
        super().__init__(finalize=self._write, cache_size=0, **options)
        self.globals = {"range": safe_range, "dict": dict, "namespace": Namespace}
        self.filters = {name: FILTERS[name] for name in PLAIN_FILTERS} | {
            "indent": _indent, "join": self._join, "replace": _replace, "round": _round, "tojson": _to_json,
            Metered.SIZED: self._sized, Metered.COUNTED: self._counted,
        }  # fmt: skip
        self._work = self._written = 0

    def metered(self, source: str) -> Template:
        """Compile a template with all its expressions and loops metered."""
        code = self.compile(self.meter().visit(self.parse(source)))
        return MeteredTemplate.from_code(self, code, self.make_globals(None))

    def meter(self) -> Metered:
        return Metered()

    def begin(self) -> None:
        self._work = self._written = 0

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, names in self.methods.items():
            if isinstance(obj, kind):
                return attr in names
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        return None  # `format` can pad to any width; it is not a safe attribute either

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            raise SecurityError("% cannot format text here: join values with ~")
        if operator == "**" and _bits(left) * abs(right) > MOST_BITS:
            raise SecurityError(f"a power of more than {MOST_BITS} bits")
        if operator == "*":
            for items, times in ((left, right), (right, left)):
                if isinstance(times, int) and isinstance(items, str | list | tuple):
                    require_size(len(items) * times)
        return super().call_binop(context, operator, left, right)

    def spend(self, work: int) -> None:
        self._work += work + STEP
        if self._work > MOST_WORK:
            raise SecurityError("the template needs too much work for one row")

    @pass_context
    def _write(self, _context: Context, value: Any) -> Any:
        """Meter a value that is written; all output goes through here, also into a variable."""
        if not isinstance(value, WRITABLE):  # `row.items` without (), or a generator
            raise TypeError(f"a {type(value).__name__} cannot be written")
        text = str(value)
        self.spend(len(text))
        self._written += len(text)
        require_size(self._written)
        return text

    @pass_context
    def _sized(self, _context: Context, value: Any) -> Any:
        """Meter a value that an expression produced; fails if it is too large."""
        if isinstance(value, Undefined | Namespace):
            return value
        if isinstance(value, Iterator):
            return self._sized_items(value)
        size = _size(value, {})
        require_size(size)
        self.spend(size)
        return value

    def _sized_items(self, items: Iterator[Any]) -> Iterator[Any]:
        total = 0
        for item in items:
            total += _size(item, {})
            require_size(total)
            self.spend(0)
            yield item

    @pass_context
    def _counted(self, _context: Context, items: Iterable[Any], text: int) -> Iterator[Any]:
        """Meter a loop whose body writes `text` characters of literal text in each iteration."""
        for item in items:
            self.spend(text)
            self._written += text
            require_size(self._written)
            yield item

    def _join(self, items: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
        texts, total = [], 0
        value_of = make_attrgetter(self, attribute) if attribute is not None else lambda item: item
        for item in items:
            texts.append(str(value_of(item)))
            total += len(texts[-1]) + len(d)
            require_size(total)
        return d.join(texts)


class MeteredTemplate(Template):
    """A compiled template whose meter is reset for each row."""

    environment: Sandbox

    def render(self, *args: Any, **kwargs: Any) -> str:
        self.environment.begin()
        return super().render(*args, **kwargs)


class Metered(NodeTransformer):
    """Sends every expression that produces a value, and every loop, through the sandbox's meter."""

    SIZED, COUNTED = "meter sized", "meter counted"  # names that a template cannot contain
    statements: tuple[type[nodes.Stmt], ...] = (
        nodes.Output, nodes.For, nodes.If, nodes.With, nodes.Assign, nodes.AssignBlock,
    )  # fmt: skip

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        if isinstance(node, nodes.Stmt) and not isinstance(node, self.statements):
            raise TemplateSyntaxError(f"{type(node).__name__.lower()} is not supported in prompts", node.lineno)
        return super().generic_visit(node, *args, **kwargs)

    def _sized(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load":  # names assigned by a loop or set
            return node
        return nodes.Filter(node, self.SIZED, [], [], None, None, lineno=node.lineno)

    visit_Add = visit_Mul = visit_Pow = visit_Concat = visit_Call = visit_Filter = _sized  # noqa: N815
    visit_List = visit_Tuple = visit_Dict = _sized  # noqa: N815

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        if node.recursive:
            raise TemplateSyntaxError("a recursive loop is not supported in prompts", node.lineno)
        text = sum(len(inner.data) for inner in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        arguments: list[nodes.Expr] = [nodes.Const(text)]
        node.iter = nodes.Filter(node.iter, self.COUNTED, arguments, [], None, None, lineno=node.lineno)
        return node


def require_size(characters: int) -> None:
    if characters > LONGEST_ROW:
        raise SecurityError(f"the template produces more than {LONGEST_ROW:,} characters")


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 1


def _size(value: Any, seen: dict[int, int], depth: int = 0) -> int:
    """The characters of a value written out, including nested values; repeated ones count each time."""
    if depth > MOST_DEPTH:
        raise SecurityError(f"a value is nested more than {MOST_DEPTH} deep")
    if isinstance(value, str):
        return len(value)
    if isinstance(value, int):
        bits = value.bit_length()
        return bits if bits <= MOST_BITS else LONGEST_ROW + 1
    if not isinstance(value, list | tuple | dict):
        return 1
    if id(value) not in seen:
        items = (*value.keys(), *value.values()) if isinstance(value, dict) else value
        seen[id(value)] = 1 + sum(ITEM + _size(item, seen, depth + 1) for item in items)
    return seen[id(value)]


def _replace(text: object, old: str, new: str, count: int | None = None) -> str:
    text = str(text)
    times = text.count(old) if count is None else min(count, text.count(old))
    require_size(len(text) + times * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _indent(text: str, width: int = 4, first: bool = False, blank: bool = False) -> str:
    width = min(int(width), MOST_INDENT)
    require_size(len(text) + text.count("\n") * width)
    indented: str = FILTERS["indent"](text, width, first, blank)
    return indented


def _round(value: float, precision: int = 0) -> float:
    return round(value, max(-20, min(precision, 20)))


def _to_json(value: Any, indent: int | None = None) -> str:
    """JSON for a prompt, without HTML escapes."""
    return json.dumps(value, ensure_ascii=False, indent=None if indent is None else min(indent, 8))
