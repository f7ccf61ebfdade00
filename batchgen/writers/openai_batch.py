"""OpenAI Batch output: a line a request, with all its samples as `choices`; failed ones as an error file has them.

No clock and no chance is in it: a run that is repeated or resumed writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any, BinaryIO

from batchgen.records import Result
from batchgen.writers.fields import WriteOptions, to_bytes, to_json


def write_openai_batch(results: Iterable[Result], stream: BinaryIO, options: WriteOptions) -> None:
    """A request is written when the next one's first result is there: only then its samples are complete."""
    for _, samples in groupby(results, key=lambda result: result.index):
        request = list(samples)
        failed = next((result for result in request if result.error is not None), None)
        if options.rows in ("all", "failed" if failed else "answered"):
            stream.write(to_bytes(to_json(_failure(failed) if failed else _answer(request)) + "\n"))
            stream.flush()


def _answer(samples: list[Result]) -> dict[str, Any]:
    first = samples[0]
    new_tokens = sum(sample.num_output_tokens for sample in samples)
    choices = [
        {"index": sample.sample_index, "text": sample.text, "finish_reason": sample.finish_reason, "logprobs": None}
        for sample in samples
    ]
    body = {
        "id": f"cmpl-{first.index}",
        "object": "text_completion",
        "created": 0,
        "model": first.model,
        "choices": choices,
        "usage": {
            "prompt_tokens": first.num_prompt_tokens,
            "completion_tokens": new_tokens,
            "total_tokens": first.num_prompt_tokens + new_tokens,
        },
    }
    response = {"status_code": 200, "request_id": f"req_{first.index}", "body": body}
    return _request(first, response, None)


def _failure(result: Result) -> dict[str, Any]:
    return _request(result, None, {"code": "row_failed", "message": result.error})


def _request(result: Result, response: object, error: object) -> dict[str, Any]:
    """Metadata, which the format does not know, only where there is any."""
    own = {"id": f"batch_req_{result.index}", "custom_id": str(result.id), "response": response, "error": error}
    return own | ({"metadata": result.metadata} if result.metadata else {})
