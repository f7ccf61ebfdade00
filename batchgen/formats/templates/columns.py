"""Find the columns that a template needs."""

from __future__ import annotations

from collections.abc import Iterator

import jinja2
from jinja2 import meta, nodes

ROW = "row"
OURS = {ROW, "range", "dict", "namespace"}
ROW_METHODS = {"get", "items", "keys", "values"}
FALLBACKS = {"default", "d"}
TESTS = {"defined", "undefined"}


def needed_columns(source: str) -> frozenset[str]:
    """Names of the columns that a template uses without checking that they exist.
    >>> sorted(needed_columns("{{ who }}: {{ row.topic }} {{ row['a b'] }} {{ note | default('') }}"))
    ['a b', 'topic', 'who']
    """
    tree = jinja2.Environment(autoescape=False).parse(source)
    named = meta.find_undeclared_variables(tree) - OURS
    return frozenset((named | set(_row_columns(tree))) - set(_optional(tree)))


def _row_columns(tree: nodes.Template) -> Iterator[str]:
    """Columns written as `row.name` or `row['name']`."""
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        if (name := _column_of(node)) is not None:
            yield name


def _optional(tree: nodes.Template) -> Iterator[str]:
    """Columns that have a default, or whose existence a condition checks."""
    for guard in tree.find_all((nodes.Filter, nodes.Test)):
        if guard.name in (FALLBACKS if isinstance(guard, nodes.Filter) else TESTS):
            name = _column_of(guard.node)
            if name is not None:
                yield name
    for question in tree.find_all(nodes.Compare):  # "name" in row
        container = question.ops[0].expr
        if isinstance(question.expr, nodes.Const) and isinstance(container, nodes.Name) and container.name == ROW:
            yield str(question.expr.value)


def _column_of(node: nodes.Node | None) -> str | None:
    if isinstance(node, nodes.Name):
        return node.name
    if not isinstance(node, nodes.Getattr | nodes.Getitem):
        return None
    if not isinstance(node.node, nodes.Name) or node.node.name != ROW:
        return None
    name = node.attr if isinstance(node, nodes.Getattr) else getattr(node.arg, "value", None)
    return name if isinstance(name, str) and name not in ROW_METHODS else None
