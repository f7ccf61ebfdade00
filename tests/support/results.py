"""Made-up results of a run, and text that is hard to write."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

from batchgen.records import Result

C0 = [chr(code) for code in range(0x20)]
DEL_AND_C1 = [chr(code) for code in range(0x7F, 0xA0)]
BIDI = [*"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"]
SEPARATORS = [*"\u2028\u2029"]
UNSAFE = [*C0, *DEL_AND_C1, *BIDI, *SEPARATORS, "\ufeff"]

TEXT = st.text(st.sampled_from(UNSAFE) | st.characters(exclude_categories=["Cs"]))


def result_of(text: str = " very kind", **changes: Any) -> Result:
    fields = {
        "index": 4, "id": "d1", "sample_index": 0, "prompt": "My dog is", "text": text, "finish_reason": "length",
        "num_prompt_tokens": 3, "num_output_tokens": 2, "error": None, "metadata": {"topic": "dogs"}, "model": "gpt2",
        "input_ids": (3666, 3290, 318), "output_ids": (845, 1611), "batch_index": 1, "padded_length": 8,
        "source": "rows.jsonl:5",
    }  # fmt: skip
    return Result(**{**fields, **changes})


def output_ids(results: Iterable[Result]) -> list[list[int]]:
    return [list(result.output_ids) for result in results]
