"""The Jinja dialect of chat templates, as transformers defines it, with limits on work and size.

A chat template comes with a model from an untrusted source. Its syntax and its output are the same as in
`tokenizer.apply_chat_template`; a template that produces too much or never ends fails the same way on every machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Environment, Template, Undefined, nodes, pass_environment, pass_eval_context
from jinja2.defaults import DEFAULT_NAMESPACE
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.utils import Namespace

from batchgen.formats.templates.sandbox import METHODS, Metered, Sandbox, require_size

MACRO = 2_000  # the minimum cost of a macro call, in characters
MOST_PARTS = 10_000  # for `batch` and `slice`
LONGEST_INDENT = 100
MORE_FILTERS = ("attr", "e", "escape", "filesizeformat", "forceescape", "safe")
MORE_METHODS = {"center", "expandtabs", "format", "join", "ljust", "replace", "rjust", "zfill"}
WIDE = re.compile(r"\d{4,}|\*|\{[^{}]*\{")  # a large width in a format string, or one taken from the values
SEARCHES = ("in", "eq", "equalto", "==", "ne", "!=")
CHEAP = ("length", "count", "d", "default", "first", "last", "map", "select", "selectattr", "reject", "rejectattr")


class ChatMeter(Metered):
    """Also meters comparisons and searches, and allows macros, `break` and `continue`."""

    statements = (
        *Metered.statements, nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.Break, nodes.Continue,
    )  # fmt: skip

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        node.call.args = [self.visit(argument) for argument in node.call.args]
        node.call.kwargs = [self.visit(argument) for argument in node.call.kwargs]
        node.body = [self.visit(inner) for inner in node.body]
        return node

    def visit_FilterBlock(self, node: nodes.FilterBlock) -> nodes.Node:  # noqa: N802
        node.body = [self.visit(inner) for inner in node.body]
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        is_short = isinstance(node.expr, nodes.Const) or isinstance(node.ops[0].expr, nodes.Const)
        if not is_short or node.ops[0].op in ("in", "notin"):
            node.ops[0].expr = self._meter(node.ops[0].expr)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if node.name in SEARCHES:
            node.node = self._meter(node.node)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._meter(node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Filter(self, node: nodes.Expr) -> nodes.Node:  # noqa: N802
        metered = super().visit_Filter(node)
        if isinstance(node, nodes.Filter) and node.node is not None and node.name not in CHEAP:
            node.node = self._meter(node.node)
        return metered

    def _meter(self, node: nodes.Expr) -> nodes.Expr:
        is_metered = isinstance(node, nodes.Filter) and node.name == self.SIZED
        if getattr(node, "ctx", "load") != "load" or is_metered or isinstance(node, nodes.Const):
            return node
        return nodes.Filter(node, self.SIZED, [], [], None, None, lineno=node.lineno)


class ChatEnvironment(Sandbox):
    """The environment of one chat template. `now` is what `strftime_now` shows in every row of a run."""

    methods = METHODS | {str: METHODS[str] | MORE_METHODS, dict: METHODS[dict] | {"copy"}}

    def __init__(self, now: datetime) -> None:
        super().__init__(
            undefined=Undefined,
            keep_trailing_newline=False,
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, loopcontrols],
        )
        self._now = now
        self.filters |= {name: FILTERS[name] for name in MORE_FILTERS}
        self.filters |= {"tojson": _to_json, "format": _format, "batch": _bounded_parts("batch")}
        self.filters |= {"slice": _bounded_parts("slice"), "wordwrap": _wordwrap}
        self.globals |= {name: DEFAULT_NAMESPACE[name] for name in ("cycler", "joiner")}
        self.globals |= {"namespace": ChatNamespace, "raise_exception": _raise, "strftime_now": self._strftime}

    def meter(self) -> ChatMeter:
        return ChatMeter()

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function for the template. Limits are checked first where one call could produce something huge."""
        owner = getattr(function, "__self__", None)
        if isinstance(function, Macro):
            self.spend(MACRO)
        elif type(owner) is str:
            self.spend(len(owner))
            _check_method(function.__name__, owner, args)
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            return _format(left, *(right if isinstance(right, tuple) else (right,)))
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        owner = getattr(value, "__self__", None)
        if not isinstance(owner, str) or getattr(value, "__name__", "") not in ("format", "format_map"):
            return None
        if WIDE.search(owner):
            raise SecurityError("a format with a width of 1,000 or more")
        return super(Sandbox, self).wrap_str_format(value)

    def _strftime(self, form: str) -> str:
        if WIDE.search(form):
            raise SecurityError("a date with a width of 1,000 or more")
        return self._now.strftime(form)


class Generation(Extension):
    """`{% generation %}`, which marks what the model says in a template. It renders its body."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_show"), [], [], body).set_lineno(line)

    @pass_eval_context
    def _show(self, _context: EvalContext, caller: Macro) -> str:
        return caller()


class ChatNamespace(Namespace):
    """Jinja's namespace without names that begin with an underscore, as in transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be an attribute
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def compile_chat_template(source: str, now: datetime) -> Template:
    """The compiled template, metered. Raises what Jinja raises."""
    return ChatEnvironment(now).metered(source)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}: it begins with an underscore")


def _raise(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _check_method(name: str, owner: str, args: tuple[Any, ...]) -> None:
    if name in ("ljust", "rjust", "center", "zfill") and args and isinstance(args[0], int):
        require_size(args[0])
    if name == "expandtabs":
        require_size(owner.count("\t") * max((arg for arg in args if isinstance(arg, int)), default=8))
    if name == "replace" and len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
        require_size(len(owner) + owner.count(args[0]) * len(args[1]))
    if name == "join" and args and isinstance(args[0], list | tuple):
        require_size(sum(len(item) for item in args[0] if isinstance(item, str)) + len(owner) * len(args[0]))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML escapes; takes the same arguments as transformers' filter."""
    width = len(indent) if isinstance(indent, str) else indent or 0
    if width > LONGEST_INDENT:
        raise SecurityError(f"an indent of more than {LONGEST_INDENT}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _format(text: str, *args: Any, **kwargs: Any) -> str:
    if WIDE.search(str(text)):
        raise SecurityError("a format with a width of 1,000 or more")
    given: Mapping[str, Any] | tuple[Any, ...] = kwargs or args
    return str(text) % given


def _bounded_parts(name: str) -> Callable[..., Any]:
    cut: Callable[..., Any] = FILTERS[name]

    def parts(value: Any, number: int, fill_with: Any = None) -> Any:
        if number > MOST_PARTS:
            raise SecurityError(f"{name} of more than {MOST_PARTS:,}")
        return cut(value, number, fill_with)

    return parts


@pass_environment
def _wordwrap(environment: Environment, text: str, width: int = 79, *args: Any, **kwargs: Any) -> str:
    """Jinja's filter; cutting a long word takes time in proportion to the square of its length."""
    longest = max(map(len, text.split()), default=0)
    require_size(len(text) + longest * (longest // max(width, 1)))
    wrapped: str = FILTERS["wordwrap"](environment, text, width, *args, **kwargs)
    return wrapped
