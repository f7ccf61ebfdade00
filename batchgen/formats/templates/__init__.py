"""Make a row's prompt from its columns, with a Jinja template from the command line or a file.

The template is untrusted: it runs in a sandbox with limits on its work and output (`templates.sandbox`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchgen.errors import InputError, UsageError

if TYPE_CHECKING:
    import jinja2

LONGEST_TEMPLATE = 2**20  # bytes
LONGEST_REASON = 200  # characters of an error that are shown


@dataclass(frozen=True, slots=True)
class Template:
    """A checked template; two with the same source are equal. `name` is used in errors."""

    source: str
    name: str = field(default="--template", compare=False)
    _compiled: jinja2.Template = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises `UsageError`, which names the line, for an invalid template."""
        object.__setattr__(self, "_compiled", _compile(self.source, self.name))

    @property
    def columns(self) -> frozenset[str]:
        """The columns that every row must have."""
        from batchgen.formats.templates.columns import needed_columns

        return needed_columns(self.source)

    def render(self, columns: Mapping[str, Any]) -> str:
        """Render the prompt of one row; the template sees its columns by name, and all of them as `row`.

        Raises a one-line `ValueError` for a missing column or any other problem.
        >>> Template("Q: {{ question }}\\nA:").render({"question": "why?"})
        'Q: why?\\nA:'
        """
        try:
            return self._compiled.render({"row": columns, **columns})
        except Exception as error:  # noqa: BLE001 - a template can raise anything
            raise ValueError(f"{self.name}: {_reason(error)}") from None


def read_template(path: Path) -> Template:
    """Read a template from a file, without the newline that editors add at the end.

    Raises `InputError` if the file cannot be read, `UsageError` if it is not a valid template.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(LONGEST_TEMPLATE + 1)
        source = content.decode("utf-8").replace("\r\n", "\n").removesuffix("\n")
    except OSError as error:
        raise InputError(f"--template-file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"--template-file {path} is not UTF-8 at byte {error.start}") from None
    return Template(source, str(path))


def _compile(source: str, name: str) -> jinja2.Template:
    import jinja2

    from batchgen.formats.templates.sandbox import Sandbox

    if len(source) > LONGEST_TEMPLATE:
        raise UsageError(f"{name}: longer than {LONGEST_TEMPLATE:,} characters")
    try:
        return Sandbox().metered(source)
    except jinja2.TemplateSyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        raise UsageError(f"{name}{line}: {_reason(error)}") from None
    except (RecursionError, SyntaxError, MemoryError):
        raise UsageError(f"{name}: nested too deeply") from None


def _reason(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:LONGEST_REASON]
