"""An error about a record's values whose message can name the fields in different ways."""

from __future__ import annotations

import re
from collections.abc import Callable

FIELD = re.compile(r"\{([a-z_]+)\}")


class FieldError(ValueError):
    """A record has an invalid value. The template has `{name}` where it names a field.
    >>> error = FieldError("{top_p} 3.0 is not in (0, 1]")
    >>> str(error), error.named(lambda field: f"body.{field}")
    ('top_p 3.0 is not in (0, 1]', 'body.top_p 3.0 is not in (0, 1]')
    """

    def __init__(self, template: str) -> None:
        super().__init__(FIELD.sub(r"\1", template))
        self.template = template

    def named(self, name: Callable[[str], str]) -> str:
        """The message with other names for the fields, such as a command's flags or a row's keys."""
        return FIELD.sub(lambda match: name(match[1]), self.template)
