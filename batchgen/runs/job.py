"""What a run is asked to do, checked and complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from batchgen.formats.extras import check_input_extras
from batchgen.formats.reading import (
    ReadOptions,
    Row,
    Source,
    count_rows,
    read_requests,
    to_requests,
    warn_of_option_columns,
)
from batchgen.formats.scored_rows import scored_requests
from batchgen.model import Model
from batchgen.records import ChatOptions, EngineOptions, Request, SamplingParams, ScoringOptions, TooLong, values_of
from batchgen.runs.target import Target


class Prompts(Protocol):
    """Where a run's requests come from."""

    @property
    def reading(self) -> ReadOptions: ...

    def requests(self, sampling: SamplingParams, on_blank: Callable[[], None]) -> Iterator[Request]:
        """Yield every row, in input order; `on_blank` is called for each blank line."""
        ...

    def count(self) -> int | None:
        """Return the number of rows; None if counting is expensive, or if they can be read only once."""
        ...

    def check_extras(self) -> None:
        """Raise `InputError` if reading them needs a package that is not installed."""
        ...


@dataclass(frozen=True, slots=True)
class FilePrompts:
    """The first `limit` rows of files, pipes, standard input or texts. Warnings about them are passed to `say`."""

    sources: tuple[Source, ...]
    reading: ReadOptions = field(default_factory=ReadOptions)
    limit: int | None = None
    say: Callable[[str], None] = lambda line: None

    def requests(self, sampling: SamplingParams, on_blank: Callable[[], None] = lambda: None) -> Iterator[Request]:
        requests = read_requests(self.sources, sampling, self.reading, on_blank=on_blank, say=self.say)
        return islice(requests, self.limit)

    def count(self) -> int | None:
        return count_rows(self.sources, self.limit, self.reading)

    def check_extras(self) -> None:
        check_input_extras(self.sources, self.reading.input_format)


@dataclass(frozen=True, slots=True)
class GivenPrompts:
    """Rows passed by the caller."""

    rows: Iterable[Row]
    reading: ReadOptions = field(default_factory=ReadOptions)
    say: Callable[[str], None] = lambda line: None

    def requests(self, sampling: SamplingParams, on_blank: Callable[[], None] = lambda: None) -> Iterator[Request]:
        return to_requests(warn_of_option_columns(self.rows, self.reading, self.say), sampling)

    def count(self) -> int | None:
        return None

    def check_extras(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which model, on which device, in which dtype. `loaded` is a model opened by the caller, on its own device."""

    name: str | None = None
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    loaded: Model | None = None


@dataclass(frozen=True, slots=True)
class OutputForm:
    """How results are written: the format, token ids with `ids`, unescaped CSV formulas with `csv_raw`.

    With `in_kind`, which is set for JSON Lines unless the format was chosen explicitly, OpenAI requests get answers in
    OpenAI's format.
    """

    form: str = "jsonl"
    ids: bool = False
    csv_raw: bool = False
    in_kind: bool = False
    columns: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The options, keyed by their command-line names."""
        facts = {"--format": self.form, "--ids": self.ids, "--csv-raw": self.csv_raw}
        return facts | {"--columns": self.columns}


@dataclass(frozen=True, slots=True)
class Job:
    """What a run has to do. Without a `target`, results go to the caller.

    `manifest` and `stats` are additional files to write. With `owns_process`, the run may change how the process
    allocates memory. `command` is the command line as typed, if there is one. With `scoring`, rows are scored and
    nothing is generated.
    """

    prompts: Prompts
    sampling: SamplingParams = field(default_factory=SamplingParams)
    model: ModelChoice = field(default_factory=ModelChoice)
    engine: EngineOptions = field(default_factory=EngineOptions)
    chat: ChatOptions = field(default_factory=ChatOptions)
    output_form: OutputForm = field(default_factory=OutputForm)
    target: Target | None = None
    too_long: TooLong = "error"
    parse_special: bool = False
    strict: bool = False
    manifest: Path | None = None
    stats: Path | None = None
    owns_process: bool = False
    command: tuple[str, ...] = ()
    scoring: ScoringOptions | None = None

    def requests(self, on_blank: Callable[[], None] = lambda: None) -> Iterator[Request]:
        """Yield every row, with its texts to score if the job scores."""
        requests = self.prompts.requests(self.sampling, on_blank)
        return scored_requests(requests) if self.scoring else requests

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The columns of a table, as `WriteOptions` takes them: the properties named by the run's schema."""
        if not self.output_form.columns:
            return None
        schema = json.loads(self.sampling.json_schema or "{}")
        properties = schema.get("properties") if isinstance(schema, dict) else None
        return tuple(properties) if isinstance(properties, dict) else ()

    @property
    def is_durable(self) -> bool:
        return self.target is not None and not self.target.is_stream

    @property
    def is_noted(self) -> bool:
        """Whether what the run is made of must be recorded."""
        return self.is_durable or self.manifest is not None or self.output_form.form == "parquet"  # Parquet contains it

    @property
    def options(self) -> dict[str, Any]:
        """Everything that rows' results depend on, keyed by command-line names."""
        reading = self.prompts.reading
        flags = {"--" + name.replace("_", "-"): value for name, value in values_of(self.sampling).items()}
        scoring = {"--stride": self.scoring.stride} if self.scoring else {}
        return {
            "command": "score" if self.scoring else "run",  # first: the command decides the other defaults
            **flags,
            **scoring,
            "--field": reading.field,
            "--id-field": reading.id_field,
            "--choices-field": reading.choices_field,
            "--template": reading.template and reading.template.source,
            "--input-format": reading.input_format,
            "--delimiter": reading.delimiter,
            "--whole-files": reading.whole_files,
            "--parse-special": self.parse_special,
            "--too-long": self.too_long,
            "--exact": self.engine.exact,
            "--quantize": self.engine.quantize,
            "--system": self.chat.system,
            "--chat": self.chat.wraps_prompts,  # after the options that imply it: the first difference is reported
            "--chat-template": self.chat.template,
            "--chat-template-arg": dict(self.chat.arguments),
            "--split-reasoning": self.chat.split_reasoning,
        }
