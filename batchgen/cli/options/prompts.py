"""Where prompts come from, and how files are read."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from batchgen.cli.options.completion import complete_column
from batchgen.cli.options.panels import INPUT
from batchgen.cli.settings import flag_of
from batchgen.errors import UsageError
from batchgen.formats.reading import (
    ReadOptions,
    Source,
    check_beginnings,
    check_read_options,
    find_sources,
    read_delimiter,
)

if TYPE_CHECKING:
    from batchgen.formats.templates import Template

InputFormat = Literal["auto", "text", "jsonl", "json", "csv", "tsv", "parquet", "openai-batch"]


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """What is read, and which rows of it."""

    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUTS",
            help="Files (.txt, .jsonl, .json, .csv, .tsv, .parquet, OpenAI Batch; .gz, .zst), folders, globs, or - for "
            "standard input.",
            show_default=False,
        ),
    ] = None
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            "-p",
            metavar="TEXT",
            help="A prompt. Can be repeated.",
            rich_help_panel=INPUT,
            allow_from_autoenv=False,  # typer would split a list at spaces
        ),
    ] = None
    field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Column or JSON field with the prompt. Default: prompt, otherwise text.",
            rich_help_panel=INPUT,
            autocompletion=complete_column,
        ),
    ] = None
    id_field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Column or JSON field with the row's id. Default: id.",
            rich_help_panel=INPUT,
            autocompletion=complete_column,
        ),
    ] = None
    choices_field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Column with a list of choices; the answer is one of them.",
            rich_help_panel=INPUT,
            autocompletion=complete_column,
        ),
    ] = None
    template: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Jinja template that makes the prompt from the row's columns: $'Q: {{ question }}\\nA:'.",
            rich_help_panel=INPUT,
        ),
    ] = None
    template_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Read it from a file, without the newline at the end.", rich_help_panel=INPUT
        ),
    ] = None
    input_format: Annotated[
        InputFormat, typer.Option(help="auto: from the suffix, otherwise from the content.", rich_help_panel=INPUT)
    ] = "auto"
    delimiter: Annotated[
        str | None,
        typer.Option(metavar="CHAR", help="Separator of CSV or TSV cells: ';' or '\\t'.", rich_help_panel=INPUT),
    ] = None
    recursive: Annotated[
        bool, typer.Option("--recursive", metavar="", help="Also read subfolders.", rich_help_panel=INPUT)
    ] = False
    whole_files: Annotated[
        bool,
        typer.Option(
            "--whole-files",
            metavar="",
            help="Read each file as one prompt, not one prompt per line.",
            rich_help_panel=INPUT,
        ),
    ] = False
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Stop after the first N rows.", rich_help_panel=INPUT)
    ] = None
    parse_special: Annotated[
        bool,
        typer.Option(
            "--parse-special",
            metavar="",
            help="Encode special tokens such as <|endoftext|> in prompts. Use it only with trusted input.",
            rich_help_panel=INPUT,
        ),
    ] = False

    def reading(self) -> ReadOptions:
        """Return how files are read. Raises `UsageError` for conflicting options or an invalid template."""
        makers = {"--template": self.template, "--template-file": self.template_file, "--field": self.field}
        given = [flag for flag, value in makers.items() if value is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} both set the prompt: choose one")
        if self.input_format == "openai-batch" and (given or self.id_field is not None):
            flag = given[0] if given else "--id-field"
            raise UsageError(
                f"{flag} does not work with OpenAI Batch files, which have their own fields for prompt and id"
            )
        form = None if self.input_format == "auto" else self.input_format
        options = ReadOptions(
            self.field,
            self.id_field,
            self._read_template(),
            form,
            read_delimiter(self.delimiter),
            self.whole_files,
            choices_field=self.choices_field,
        )
        check_read_options(options, flag_of)
        return options

    def _read_template(self) -> Template | None:
        if self.template is None and self.template_file is None:
            return None
        from batchgen.formats.templates import Template, read_template

        return read_template(self.template_file) if self.template_file is not None else Template(self.template or "")

    def sources(
        self, context: typer.Context, reading: ReadOptions, say: Callable[[str], None] = lambda line: None
    ) -> list[Source]:
        """Return the inputs of the command line, or standard input if none is given and it is not a terminal.

        Skipped files of a folder are reported to `say`. Raises `UsageError`, with a short usage, if there is nothing to
        read or if `--field` needs columns and there are none; `InputError` for files that cannot be prompts.
        """
        has_stdin = sys.stdin is not None and not sys.stdin.isatty()
        if not self.inputs and not self.prompt and not has_stdin:
            path = context.command_path
            raise UsageError(
                f"no prompts. Usage: {path} [OPTIONS] [INPUTS]..., such as {path} prompts.txt, or {path} --help"
            )
        if self.recursive and not any(Path(given).is_dir() for given in self.inputs or []):
            raise UsageError("--recursive only works with folders, and no input is one")
        sources = find_sources(
            self.inputs or [], self.prompt or [], reading, use_stdin=has_stdin, recursive=self.recursive, say=say
        )
        forms = {source.form if source.texts else reading.input_format or source.form for source in sources}
        for flag, column in (("--field", reading.field), ("--id-field", reading.id_field)):
            if column is not None and forms == {"text"}:
                raise UsageError(
                    f"{flag} {column} only works with JSON Lines and tables, and all prompts are plain text"
                )
        if reading.delimiter is not None and forms.isdisjoint({"csv", "tsv", None}):
            raise UsageError("--delimiter only works with CSV and TSV, and no input is one (--input-format csv)")
        check_beginnings(sources, reading)
        return sources
