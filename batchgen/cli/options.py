"""Options that commands share, as annotated types."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchgen.cli.settings import tell_settings
from batchgen.errors import UsageError
from batchgen.formats.reading import ReadOptions, Source, find_sources
from batchgen.machine.limits import MemoryLimit, parse_memory
from batchgen.records import SamplingParams

if TYPE_CHECKING:
    from batchgen.formats.templates import Template

INPUT, MODEL, LENGTH, SAMPLING, BATCHES, CLUSTER, OUTPUT, DURABLE = (
    "Prompts",
    "Model",
    "Length and stopping",
    "Choosing tokens",
    "Batches",
    "On a Ray cluster",
    "Output",
    "Interrupted runs and bad rows",
)


class Dtype(StrEnum):
    """What weights are computed in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class EngineName(StrEnum):
    """What runs the batches."""

    auto = "auto"
    continuous = "continuous"
    reference = "reference"


class Format(StrEnum):
    """How results are written."""

    auto = "auto"
    table = "table"
    jsonl = "jsonl"
    text = "text"
    csv = "csv"
    tsv = "tsv"
    parquet = "parquet"
    openai_batch = "openai-batch"
    sqlite = "sqlite"


class InputFormat(StrEnum):
    """How prompts are read."""

    auto = "auto"
    text = "text"
    jsonl = "jsonl"
    csv = "csv"
    tsv = "tsv"
    parquet = "parquet"
    openai_batch = "openai-batch"


class TooLongPolicy(StrEnum):
    """What becomes of a prompt that the model cannot hold."""

    error = "error"
    truncate = "truncate"


def parse_batch_size(value: str) -> int | None:
    """Rows a batch; None for auto."""
    if value == "auto":
        return None
    if value.isascii() and value.isdigit() and int(value) > 0:
        return int(value)
    raise UsageError(f"--batch-size {value}: give auto or a number from 1 up")


def parse_bound(value: str | None) -> MemoryLimit | None:
    """The user's own bound on memory, where there is one."""
    return None if value is None else parse_memory(value)


def check_sampling(**values: Any) -> SamplingParams:
    """The sampling options as a record; what contradicts itself is a usage error."""
    try:
        return SamplingParams(**values)
    except ValueError as error:
        raise UsageError(str(error)) from None


def read_options(
    field: str | None,
    id_field: str | None,
    template: str | None,
    template_file: Path | None,
    input_format: InputFormat,
) -> ReadOptions:
    """The reading options as a record; what contradicts itself is a usage error, and so is a template that is none."""
    makers = {"--template": template, "--template-file": template_file, "--field": field}
    given = [flag for flag, value in makers.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} each say what the prompt is: choose one")
    if input_format is InputFormat.openai_batch and (given or id_field is not None):
        flag = given[0] if given else "--id-field"
        raise UsageError(f"{flag} has no place with OpenAI Batch files, which say themselves where prompt and id are")
    form = None if input_format is InputFormat.auto else input_format.value
    return ReadOptions(field, id_field, _template(template, template_file), form)


def _template(source: str | None, file: Path | None) -> Template | None:
    if source is None and file is None:
        return None
    from batchgen.formats.templates import Template, read_template

    return read_template(file) if file is not None else Template(source or "")


def find_prompts(
    context: typer.Context, inputs: list[str] | None, prompt: list[str] | None, reading: ReadOptions
) -> list[Source]:
    """The sources that a command line names; standard input if it names none and there is one.

    Raises `UsageError` with a short usage where there is nothing to read, or no columns for `--field`.
    """
    has_stdin = sys.stdin is not None and not sys.stdin.isatty()
    if not inputs and not prompt and not has_stdin:
        path = context.command_path
        raise UsageError(
            f"no prompts. Usage: {path} [OPTIONS] [INPUTS]..., such as {path} prompts.txt, or {path} --help"
        )
    is_said = reading.input_format is not None
    sources = find_sources(inputs or [], prompt or [], use_stdin=has_stdin, any_suffix=is_said)
    forms = {source.form if source.texts else reading.input_format or source.form for source in sources}
    for flag, column in (("--field", reading.field), ("--id-field", reading.id_field)):
        if column is not None and forms == {"text"}:
            raise UsageError(f"{flag} {column} is for JSON Lines and tables, and all prompts are plain text")
    return sources


Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUTS",
        help="Files (.txt, .jsonl, .csv, .tsv, .parquet, OpenAI Batch; .gz, .zst), directories, globs, or - for "
        "standard input.",
        show_default=False,
    ),
]
Prompt = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        "-p",
        metavar="TEXT",
        help="A prompt; repeat for more.",
        rich_help_panel=INPUT,
        allow_from_autoenv=False,  # a list would be cut at its spaces
    ),
]
Field = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Column or JSON field of the prompt (else prompt, else text).", rich_help_panel=INPUT
    ),
]
IdField = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Column or JSON field of the row's id (else id).", rich_help_panel=INPUT),
]
TemplateOption = Annotated[
    str | None,
    typer.Option(
        "--template",
        metavar="TEXT",
        help="Make the prompt from the row's columns, by Jinja: $'Q: {{ question }}\\nA:'.",
        rich_help_panel=INPUT,
    ),
]
TemplateFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The same from a file (less the newline at its end).", rich_help_panel=INPUT),
]
InputFormatOption = Annotated[
    InputFormat,
    typer.Option(help="auto: by suffix, else by the first line.", rich_help_panel=INPUT),
]
Limit = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Stop after the first N rows.", rich_help_panel=INPUT)
]
ParseSpecial = Annotated[
    bool,
    typer.Option(
        "--parse-special",
        metavar="",
        help="Let <|endoftext|> and the like in prompts become special tokens (trusted input only).",
        rich_help_panel=INPUT,
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Folder, Hub id, or bundled (else gpt2, where it can be had).",
        rich_help_panel=MODEL,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(metavar="REV", help="Branch, tag or commit of the model on the Hub.", rich_help_panel=MODEL),
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps.", rich_help_panel=MODEL)]
Devices = Annotated[
    str,
    typer.Option(
        metavar="DEVICES",
        help="auto (all CUDA devices), cpu, cuda:1, mps, or several: cuda:0,cuda:1.",
        rich_help_panel=MODEL,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Processes that share the rows, each with the model (else one a device).",
        rich_help_panel=BATCHES,
        show_default=False,
    ),
]
DtypeOption = Annotated[
    Dtype,
    typer.Option(help="auto: float32 on the CPU, as stored on an accelerator.", rich_help_panel=MODEL),
]
MaxNewTokens = Annotated[
    int, typer.Option(metavar="N", min=1, help="New tokens a row at most.", rich_help_panel=LENGTH)
]
MinNewTokens = Annotated[
    int, typer.Option(metavar="N", min=0, help="New tokens before a row may end itself.", rich_help_panel=LENGTH)
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="End a row where this appears (it is not included); repeat for more.",
        rich_help_panel=LENGTH,
        allow_from_autoenv=False,
    ),
]
TooLong = Annotated[
    TooLongPolicy,
    typer.Option(help="A prompt too long for the model: fail that row, or keep its right end.", rich_help_panel=LENGTH),
]
Temperature = Annotated[
    float, typer.Option(metavar="T", min=0.0, help="0 is greedy; higher is more varied.", rich_help_panel=SAMPLING)
]
TopK = Annotated[
    int,
    typer.Option(metavar="K", min=0, help="Sample from the K likeliest tokens.", rich_help_panel=SAMPLING),
]
TopP = Annotated[
    float,
    typer.Option(
        metavar="P", help="Sample from the fewest tokens whose probabilities reach P.", rich_help_panel=SAMPLING
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        metavar="P", help="Sample from tokens at least P times as likely as the likeliest.", rich_help_panel=SAMPLING
    ),
]
RepetitionPenalty = Annotated[
    float, typer.Option(metavar="R", help="Above 1 makes tokens already there less likely.", rich_help_panel=SAMPLING)
]
NoRepeatNgramSize = Annotated[
    int, typer.Option(metavar="N", min=0, help="Never repeat N tokens in a row.", rich_help_panel=SAMPLING)
]
NumBeams = Annotated[
    int, typer.Option(metavar="N", min=1, help="Search with N beams instead of one.", rich_help_panel=SAMPLING)
]
NumSamples = Annotated[
    int, typer.Option(metavar="N", min=1, help="Continuations of each prompt.", rich_help_panel=SAMPLING)
]
Seed = Annotated[
    int,
    typer.Option(
        metavar="N", help="Same seed, same row: same tokens, in any batch or order.", rich_help_panel=SAMPLING
    ),
]
BatchSize = Annotated[
    str,
    typer.Option(
        metavar="auto|N",
        help="Rows a batch; auto fits them to memory.",
        rich_help_panel=BATCHES,
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE|SHARE",
        help="Hold no more than this: 6G, weights included, or 80% of what there is.",
        rich_help_panel=BATCHES,
        show_default=False,
    ),
]
EngineOption = Annotated[
    EngineName,
    typer.Option(
        help="continuous refills slots (auto, where it applies); reference is transformers' generate.",
        rich_help_panel=BATCHES,
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Run on Ray: HOST:PORT, auto (the cluster of this machine) or local; -o is a folder then.",
        rich_help_panel=CLUSTER,
        show_default=False,
    ),
]
CpusPerWorker = Annotated[
    float | None,
    typer.Option(metavar="N", min=0.1, help="CPUs of a worker.", rich_help_panel=CLUSTER, show_default=False),
]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(
        metavar="N", min=0, help="GPUs of a worker, or a part of one.", rich_help_panel=CLUSTER, show_default=False
    ),
]
PartRows = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Rows of a part of the input, which is one output file (else 64 to 4,096).",
        rich_help_panel=CLUSTER,
        show_default=False,
    ),
]
SharePrefixes = Annotated[
    bool,
    typer.Option(
        "--share-prefixes/--no-share-prefixes",
        metavar="",
        help="Compute once what prompts have in common.",
        rich_help_panel=BATCHES,
    ),
]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact/--no-exact",
        metavar="",
        help="Decide near ties alone and unpadded (float32).",
        rich_help_panel=BATCHES,
    ),
]
FormatOption = Annotated[
    Format,
    typer.Option(help="auto: a table on a terminal, else JSON Lines.", rich_help_panel=OUTPUT),
]
Ids = Annotated[bool, typer.Option("--ids", metavar="", help="Add token ids and the batch.", rich_help_panel=OUTPUT)]
CsvRaw = Annotated[
    bool,
    typer.Option(
        "--csv-raw",
        metavar="",
        help="Leave CSV cells that a spreadsheet would run (=1+1) without an apostrophe.",
        rich_help_panel=OUTPUT,
    ),
]
OutputFile = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write here; the format by suffix.", rich_help_panel=OUTPUT),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", metavar="", help="Start anew, and replace FILE if it exists.", rich_help_panel=DURABLE),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", metavar="", help="Go on with an interrupted run, if there is one.", rich_help_panel=DURABLE
    ),
]
RetryErrors = Annotated[
    bool,
    typer.Option("--retry-errors", metavar="", help="--resume, and run failed rows again.", rich_help_panel=DURABLE),
]
KeepStore = Annotated[
    bool,
    typer.Option(
        "--keep-store",
        metavar="",
        help="Keep FILE.run.db when FILE is written, to add rows later.",
        rich_help_panel=DURABLE,
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", metavar="", help="Stop at the first row that fails.", rich_help_panel=DURABLE)
]
ManifestFile = Annotated[
    Path | None,
    typer.Option(
        "--manifest",
        metavar="FILE",
        help="Write what the run was made of (versions, model, options, hashes) as JSON.",
        rich_help_panel=OUTPUT,
    ),
]
StatsFile = Annotated[
    Path | None,
    typer.Option("--stats", metavar="FILE", help="Write the run's counts and times as JSON.", rich_help_panel=OUTPUT),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        metavar="",
        help="Errors only on stderr.",
        rich_help_panel=OUTPUT,
        callback=tell_settings,
    ),
]
