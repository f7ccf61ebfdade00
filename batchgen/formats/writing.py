"""Write results as JSON Lines, text, CSV, TSV, Parquet or OpenAI Batch.

Every row of a text format is flushed, so that the next program in a pipe sees it at once. The same results always give
the same bytes. Knows nothing about terminals; `render` draws tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import BinaryIO

from batchgen.formats.delimited import write_csv, write_tsv
from batchgen.formats.fields import Rows, WriteOptions, to_dict, to_json
from batchgen.formats.jsonl import write_jsonl
from batchgen.formats.openai_answers import write_in_kind, write_openai_batch
from batchgen.formats.parquet import write_parquet
from batchgen.formats.plain import write_text
from batchgen.records import Result

__all__ = ["WRITERS", "Rows", "WriteOptions", "Writer", "to_dict", "to_json", "write_in_kind"]

Writer = Callable[[Iterable[Result], BinaryIO, WriteOptions], None]
WRITERS: dict[str, Writer] = {
    "jsonl": write_jsonl,
    "text": write_text,
    "csv": write_csv,
    "tsv": write_tsv,
    "parquet": write_parquet,
    "openai-batch": write_openai_batch,
}
