"""Results to bytes: JSON Lines, text, CSV, TSV, Parquet, OpenAI Batch.

Every row of text is flushed, so that a reader down the pipe sees it at once. The same results are the same bytes.
Knows nothing of terminals; what draws tables is `render`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import BinaryIO

from batchgen.records import Result
from batchgen.writers.delimited import write_csv, write_tsv
from batchgen.writers.fields import Rows, WriteOptions, to_dict, to_json
from batchgen.writers.lines import write_jsonl, write_text
from batchgen.writers.openai_batch import write_openai_batch
from batchgen.writers.parquet import write_parquet

__all__ = ["WRITERS", "Rows", "WriteOptions", "Writer", "to_dict", "to_json"]

Writer = Callable[[Iterable[Result], BinaryIO, WriteOptions], None]
WRITERS: dict[str, Writer] = {
    "jsonl": write_jsonl,
    "text": write_text,
    "csv": write_csv,
    "tsv": write_tsv,
    "parquet": write_parquet,
    "openai-batch": write_openai_batch,
}
