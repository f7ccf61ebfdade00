"""Answers to OpenAI Batch requests: one line per request, with its samples as `choices`; failures as in an error file.

They contain no times and nothing random, so a run that is repeated or resumed writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from typing import Any, BinaryIO

from batchgen.formats.fields import WriteOptions, to_bytes, to_json
from batchgen.formats.jsonl import write_jsonl
from batchgen.formats.openai_batch import CHAT
from batchgen.formats.openai_logprobs import chat_logprobs, text_logprobs
from batchgen.records import Result

Json = dict[str, Any]


def write_in_kind(results: Iterable[Result], stream: BinaryIO, options: WriteOptions) -> None:
    """Write OpenAI's format if the input was OpenAI requests, otherwise JSON Lines; the first row decides."""
    results = iter(results)
    if (first := next(results, None)) is None:
        return
    write = write_openai_batch if first.endpoint else write_jsonl
    write(chain([first], results), stream, options)


def write_openai_batch(results: Iterable[Result], stream: BinaryIO, options: WriteOptions) -> None:
    """Write one line per request, when the first result of the next one arrives: only then are its samples complete."""
    for _, samples in groupby(results, key=lambda result: result.index):
        request = list(samples)
        failed = next((result for result in request if result.error is not None), None)
        if options.rows in ("all", "failed" if failed else "answered"):
            stream.write(to_bytes(to_json(_failure(failed) if failed else _answer(request)) + "\n"))
            stream.flush()


def results_of_answer(line: Json, number: int) -> Iterator[Result]:
    """The results in one line of a Batch's answers, one per sample; the line has neither the prompt nor tokens."""
    index = int(str(line.get("id", "")).rpartition("_")[2] or number) if line.get("id") else number
    common = {"index": index, "id": line.get("custom_id"), "metadata": line.get("metadata") or {}, "prompt": ""}
    body = (line.get("response") or {}).get("body") or {}
    usage = body.get("usage") or {}
    if not (choices := body.get("choices")):
        error = str((line.get("error") or body.get("error") or {}).get("message") or "failed")
        yield _read_back(common, text="", finish_reason="error", error=error)
        return
    for choice in choices:
        message = choice.get("message") or {}
        reason = choice.get("finish_reason")
        calls = message.get("tool_calls")
        yield _read_back(
            common,
            sample_index=choice.get("index", 0),
            text=choice.get("text", message.get("content")) or "",
            finish_reason="stop" if reason == "tool_calls" else reason,
            model=body.get("model", ""),
            num_prompt_tokens=usage.get("prompt_tokens", 0),
            num_output_tokens=usage.get("completion_tokens", 0) if len(choices) == 1 else 0,
            reasoning=message.get("reasoning_content"),
            tool_calls=[call["function"] for call in calls] if calls else None,
        )


def _read_back(common: Json, **values: Any) -> Result:
    blank = {"sample_index": 0, "num_prompt_tokens": 0, "num_output_tokens": 0, "error": None, "model": ""}
    return Result(**{**blank, **common, **values})


def _answer(samples: list[Result]) -> Json:
    first = samples[0]
    is_chat = first.endpoint == CHAT
    new_tokens = 0 if first.score else sum(sample.num_output_tokens for sample in samples)
    choices = [{"index": sample.sample_index, **(_message(sample) if is_chat else _text(sample))} for sample in samples]
    body = {
        "id": f"chatcmpl-{first.index}" if is_chat else f"cmpl-{first.index}",
        "object": "chat.completion" if is_chat else "text_completion",
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


def _text(sample: Result) -> Json:
    reason = "length" if sample.score else sample.finish_reason
    return {"text": sample.text, "finish_reason": reason, "logprobs": text_logprobs(sample)}


def _message(sample: Result) -> Json:
    """A choice of a chat. Arguments of tool calls are JSON in a string, as in a request."""
    message: Json = {"role": "assistant", "content": sample.text, "refusal": None}
    if sample.reasoning is not None:
        message["reasoning_content"] = sample.reasoning
    finish_reason: str = sample.finish_reason
    if sample.tool_calls:
        message |= {"content": sample.text or None, "tool_calls": _tool_calls(sample)}
        finish_reason = "tool_calls" if finish_reason == "stop" else finish_reason
    return {"message": message, "finish_reason": finish_reason, "logprobs": chat_logprobs(sample)}


def _tool_calls(sample: Result) -> list[Json]:
    """The tool calls, each with a generated id if the model gave none."""
    calls = []
    for number, call in enumerate(sample.tool_calls or []):
        function = call.get("function", call)
        arguments = function.get("arguments", {})
        text = arguments if isinstance(arguments, str) else to_json(arguments)
        name = call.get("id") or f"call_{sample.index}_{sample.sample_index}_{number}"
        calls.append({"id": name, "type": "function", "function": {"name": function.get("name"), "arguments": text}})
    return calls


def _failure(result: Result) -> Json:
    return _request(result, None, {"code": "row_failed", "message": result.error})


def _request(result: Result, response: object, error: object) -> Json:
    """A line of the output. Metadata, which is not part of OpenAI's format, is added only if there is any."""
    custom_id = None if result.id is None else str(result.id)
    own = {"id": f"batch_req_{result.index}", "custom_id": custom_id, "response": response, "error": error}
    return own | ({"metadata": result.metadata} if result.metadata else {})
