"""The options of the Python functions: their types, for editors, and suggestions for misspelled names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict

from batchgen.errors import BatchgenError, UsageError
from batchgen.machine.limits import parse_memory
from batchgen.records import ChatOptions, EngineOptions, FieldError, SamplingParams, TooLong, near_name


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams`."""

    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | Mapping[str, float]
    no_repeat_ngram_size: int
    num_samples: int
    num_beams: int
    stop: str | Iterable[str]
    stop_token_ids: int | Iterable[int]
    ignore_eos: bool
    logprobs: int | None
    json_schema: Mapping[str, Any] | str | type | None
    json_object: bool
    regex: str | None
    choice: str | Iterable[str]
    grammar: str | None
    json_whitespace: Literal["compact", "any"]
    seed: int


class GenerateOptions(SamplingOptions, total=False):
    """How `generate` and `stream` choose tokens, and what they run on."""

    revision: str | None
    device: str
    dtype: str
    engine: str
    batch_size: int | Literal["auto"]
    memory: str | None
    exact: bool
    share_prefixes: bool
    prompt_lookup: bool
    workers: int | None
    quantize: Literal["int8"] | None
    too_long: TooLong
    parse_special: bool
    chat: bool | None
    system: str | None
    chat_template: str | None
    chat_template_args: Mapping[str, Any]
    split_reasoning: bool


class ScoreOptions(TypedDict, total=False):
    """What `score` computes, and what it runs on."""

    logprobs: int | None
    tokens: bool
    stride: int | None
    revision: str | None
    device: str
    dtype: str
    batch_size: int | Literal["auto"]
    memory: str | None
    share_prefixes: bool
    workers: int | None
    quantize: Literal["int8"] | None
    too_long: TooLong
    parse_special: bool
    chat: bool | None
    system: str | None
    chat_template: str | None
    chat_template_args: Mapping[str, Any]


class FileOptions(GenerateOptions, total=False):
    """The options of `generate`, plus how `run` reads files and writes its output."""

    field: str | None
    id_field: str | None
    choices_field: str | None
    template: str | None
    input_format: str | None
    delimiter: str | None
    whole_files: bool
    recursive: bool
    limit: int | None
    format: str | None
    ids: bool
    csv_raw: bool
    columns: bool
    retry_errors: bool
    keep_store: bool
    strict: bool
    manifest: str | None
    stats: str | None


NAMES = {"model", "output", "resume", "overwrite", *FileOptions.__annotations__, *ScoreOptions.__annotations__}
FLAG = re.compile(r"(?<![\w-])--([a-z]+(?:-[a-z]+)*)")


@contextmanager
def python_words() -> Iterator[None]:
    """Rewrite errors raised inside, so that they name parameters instead of command-line flags."""
    try:
        yield
    except BatchgenError as error:
        error.args = (in_python_words(str(error)),)
        raise


def in_python_words(message: str) -> str:
    """Rewrite a message for the command line so that it names Python parameters.

    >>> in_python_words("--dtype float7 is not one of float32; see --no-such-flag")
    'dtype float7 is not one of float32; see --no-such-flag'
    """

    def name(flag: re.Match[str]) -> str:
        known = flag[1].replace("-", "_")
        return known if known in NAMES else flag[0]

    return FLAG.sub(name, message)


@dataclass(frozen=True, slots=True)
class Keywords:
    """Known options by name; each record takes its own."""

    given: Mapping[str, Any]

    def sampling(self) -> SamplingParams:
        """Return the sampling options. Raises `ValueError` for an invalid value."""
        return SamplingParams(**self._of(SamplingParams))

    def engine(self) -> EngineOptions:
        """Return the engine options. Raises `UsageError` for an invalid value."""
        options = self._of(EngineOptions)
        if options.get("batch_size") == "auto":
            options["batch_size"] = None
        if isinstance(memory := options.get("memory"), str):
            options["memory"] = parse_memory(memory)
        try:
            return EngineOptions(**options)
        except FieldError as error:
            raise UsageError(str(error)) from None

    def chat(self) -> ChatOptions:
        """Return the chat options. Raises `UsageError` if they conflict."""
        names = {"chat_template": "template", "chat_template_args": "arguments"}
        given = self.of("chat", "system", "split_reasoning", *names)
        try:
            return ChatOptions(**{names.get(name, name): value for name, value in given.items()})
        except FieldError as error:
            raise UsageError(str(error)) from None

    def of(self, *names: str) -> dict[str, Any]:
        """Return those of the named options that were given."""
        return {name: self.given[name] for name in names if name in self.given}

    def _of(self, record: type) -> dict[str, Any]:
        return self.of(*(field.name for field in fields(record)))


def read_keywords(function: str, options: Mapping[str, Any], known: type) -> Keywords:
    """Check a call's options against `known` (a TypedDict). Raises `TypeError` with a suggestion for unknown names."""
    names = [name for base in known.__mro__ for name in getattr(base, "__annotations__", {})]
    for name in options:
        if name not in names:
            raise TypeError(f"{function}() has no option {name!r}{_hint(name, names)}")
    too_long = options.get("too_long", "error")
    if too_long not in ("error", "truncate"):
        raise ValueError(f"too_long {too_long!r} is neither error nor truncate")
    return Keywords(options)


def _hint(name: str, names: list[str]) -> str:
    near = near_name(name, names)
    return f": did you mean {near}?" if near else ""
