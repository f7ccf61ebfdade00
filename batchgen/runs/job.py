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
        """Every row, in input order; `on_blank` is told of each blank line."""
        ...

    def count(self) -> int | None:
        """Rows to come; None where counting costs much, or they can be read only once."""
        ...

    def check_extras(self) -> None:
        """Raises `InputError` where reading them needs a package that is not installed."""
        ...


@dataclass(frozen=True, slots=True)
class FilePrompts:
    """The first `limit` rows of files, pipes, standard input, texts. What is odd about them is told to `say`."""

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
    """Rows that a caller hands over."""

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
    """Which model, where and in what it computes. `loaded` is one that the caller has opened, on its own device."""

    name: str | None = None
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    loaded: Model | None = None


@dataclass(frozen=True, slots=True)
class OutputForm:
    """How results are written: a format, token ids with `ids`, formulas in CSV as they are with `csv_raw`.

    With `in_kind`, for JSON Lines that nobody asked for by name, OpenAI's requests are answered in OpenAI's form.
    """

    form: str = "jsonl"
    ids: bool = False
    csv_raw: bool = False
    in_kind: bool = False
    columns: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """By the names of the command line."""
        facts = {"--format": self.form, "--ids": self.ids, "--csv-raw": self.csv_raw}
        return facts | {"--columns": self.columns}


@dataclass(frozen=True, slots=True)
class Job:
    """What a run is to do. Without a `target` its rows go to the caller.

    `manifest` and `stats` are files to write beside it. With `owns_process` it may set how the process allocates.
    `command` is what was typed, where a command line asks for it. With `scoring` rows are scored,
    and nothing is generated.
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
        """Every row, with what is scored of it where the job is to score."""
        requests = self.prompts.requests(self.sampling, on_blank)
        return scored_requests(requests) if self.scoring else requests

    @property
    def columns(self) -> tuple[str, ...] | None:
        """What a table has columns for, as `WriteOptions` takes it: the properties that the run's schema names."""
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
        """Whether anybody will ask what the run was made of."""
        return self.is_durable or self.manifest is not None or self.output_form.form == "parquet"  # it stands inside

    @property
    def options(self) -> dict[str, Any]:
        """What rows' results depend on, by the names of the command line."""
        reading = self.prompts.reading
        flags = {"--" + name.replace("_", "-"): value for name, value in values_of(self.sampling).items()}
        scoring = {"--stride": self.scoring.stride} if self.scoring else {}
        return {
            "command": "score" if self.scoring else "run",  # first: other defaults come with it
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
            "--chat": self.chat.wraps_prompts,
            "--system": self.chat.system,
            "--chat-template": self.chat.template,
            "--chat-template-arg": dict(self.chat.arguments),
            "--split-reasoning": self.chat.split_reasoning,
        }
