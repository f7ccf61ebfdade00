"""What is wrong with the values of a record, in words that name fields."""

from __future__ import annotations

import re
from collections.abc import Callable

FIELD = re.compile(r"\{([a-z_]+)\}")


class FieldError(ValueError):
    """What is wrong with the values of a record. Its template has `{name}` where a field is named.

    >>> error = FieldError("{top_p} 3.0 is not in (0, 1]")
    >>> str(error), error.named(lambda field: f"body.{field}")
    ('top_p 3.0 is not in (0, 1]', 'body.top_p 3.0 is not in (0, 1]')
    """

    def __init__(self, template: str) -> None:
        super().__init__(FIELD.sub(r"\1", template))
        self.template = template

    def named(self, name: Callable[[str], str]) -> str:
        """The message with other names for the fields: flags of a command, keys of a row."""
        return FIELD.sub(lambda match: name(match[1]), self.template)
