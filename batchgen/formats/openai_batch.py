"""OpenAI Batch files for `/v1/completions` and `/v1/chat/completions`: a request per line, with `custom_id` and `body`.
A body is either followed exactly, or the row fails and names what is not supported; nothing that would change the
answer is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from batchgen.errors import InputError
from batchgen.formats.content import Content
from batchgen.formats.json_values import parse_json
from batchgen.formats.jsonl import JsonLine, read_values
from batchgen.formats.messages import BESIDE, read_conversation
from batchgen.formats.openai_constraints import CONSTRAINT_KEYS, read_constraint
from batchgen.formats.row_options import row_keys
from batchgen.formats.rows import REPLACED, ReadOptions, Row
from batchgen.formats.seen_ids import SeenIds
from batchgen.records import Conversation, Message, SamplingParams, options_of

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TOP_LOGPROBS = "top_logprobs"
KEYS = {"custom_id", "method", "url", "body"}
# Options of a body that have another name here; all others have the same names as in a row's `sampling`.
RENAMED = {
    "max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens", "min_tokens": "min_new_tokens",
    "n": "num_samples",
}  # fmt: skip
OPTIONS = {key: key for key in row_keys() if key not in RENAMED.values()} | RENAMED
# A greedy request may set these, without effect, but not a number of samples.
UNUSED_WHEN_GREEDY = {key for key, item in options_of(SamplingParams).items() if item.option.only_sampled} - {
    "num_samples"
}
# Keys about the user, storage and transport: they do not change the text.
WITHOUT_EFFECT = {
    "model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "stream_options",
    "prompt_cache_retention",
}  # fmt: skip
# Values of unsupported keys that have no effect.
HARMLESS: dict[str, tuple[object, ...]] = {
    "stream": (False,), "echo": (False,), "suffix": ("",), "best_of": (1,),
    "modalities": (["text"],), "tool_choice": ("auto",),
    "parallel_tool_calls": (True,), "functions": ([],),
}  # fmt: skip


def read_openai_batch(content: Content, options: ReadOptions) -> Iterator[Row]:
    """Read one row per line from its `body`; `custom_id` is the id, which must be unique."""
    if options.field or options.id_field or options.template:
        raise InputError(
            f"{content.name} is an OpenAI Batch file, which has its own fields for prompt and id: "
            "remove --field, --id-field and --template, or add --input-format jsonl"
        )
    seen = SeenIds()
    for line in read_values(content):
        row = _row(line, seen, scores=options.scores)
        yield replace(row, endpoint=row.endpoint or COMPLETIONS)


def is_openai_batch(value: object) -> bool:
    """Whether a file's first JSON value shows that it is an OpenAI Batch file."""
    return isinstance(value, dict) and "custom_id" in value and "body" in value


def _row(line: JsonLine, seen: SeenIds, *, scores: bool) -> Row:
    value, source = line.value, line.source
    if not isinstance(value, dict):
        return Row(error="not a JSON object with custom_id and body", source=source)
    custom_id = value.get("custom_id")
    if line.problem or not isinstance(custom_id, str):
        known = custom_id if isinstance(custom_id, str) and REPLACED not in custom_id else None
        return Row(id=known, error=line.problem or "the custom_id is not a string", source=source)
    if place := seen.place_of(custom_id, source):
        return Row(id=custom_id, error=f"{place} has the same custom_id", source=source)
    metadata = {key: item for key, item in value.items() if key not in KEYS}
    row = partial(Row, id=custom_id, metadata=metadata, source=source, num_bytes=line.num_bytes)
    endpoint = _endpoint(value)
    try:
        body = _check_request(_to_score(value) if scores else value, endpoint)
        conversation = _conversation(body) if endpoint == CHAT else None
        prompt = "" if conversation else _prompt(body)
        sampling = _options(body, endpoint)
    except ValueError as problem:
        return row(error=str(problem), endpoint=endpoint)
    return row(prompt, sampling=sampling, option_names=_names(body), conversation=conversation, endpoint=endpoint)


def _endpoint(request: dict[str, Any]) -> str:
    """The API that a request is for: the one in its `url`, otherwise the one that fits its body."""
    body = request.get("body")
    natural = CHAT if isinstance(body, dict) and "messages" in body else COMPLETIONS
    return CHAT if request.get("url", natural) == CHAT else COMPLETIONS


def _check_request(request: dict[str, Any], endpoint: str) -> dict[str, Any]:
    """The body of a request. Raises `ValueError` for anything unsupported."""
    body = request.get("body")
    if not isinstance(body, dict):
        raise ValueError("the body is not an object")
    if request.get("url", endpoint) != endpoint:
        raise ValueError(f"url is neither {COMPLETIONS} nor {CHAT}")
    if request.get("method", "POST") != "POST":
        raise ValueError("method is not POST")
    own = {"messages", TOP_LOGPROBS, *BESIDE} if endpoint == CHAT else {"prompt"}
    for key in sorted(body.keys() - OPTIONS.keys() - CONSTRAINT_KEYS - WITHOUT_EFFECT - own):
        _check_harmless(key, body)
    return body


def _conversation(body: dict[str, Any]) -> Conversation:
    """The messages of a chat request, with the arguments of tool calls parsed from JSON, as templates expect them."""
    if "messages" not in body:
        raise ValueError(f"body.messages is missing: {CHAT} requires it")
    conversation = read_conversation(body, "messages", prefix="body.")
    return replace(conversation, messages=tuple(map(_with_arguments, conversation.messages)))


def _with_arguments(message: Message) -> Message:
    calls = message.more.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return replace(message, more={**message.more, "tool_calls": [_parsed_call(call) for call in calls]})


def _parsed_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    with suppress(ValueError):  # a model may have written invalid JSON
        return {**call, "function": {**function, "arguments": parse_json(function["arguments"])}}
    return call


def _options(body: dict[str, Any], endpoint: str) -> dict[str, Any]:
    """The sampling options of a body, under our names."""
    given = {key: item for key, item in body.items() if key in OPTIONS and item is not None}
    given["logprobs"] = _num_alternatives(body, endpoint)
    if len({str(given[key]) for key in ("max_tokens", "max_completion_tokens") if key in given}) > 1:
        raise ValueError("body.max_tokens and body.max_completion_tokens differ: give one")
    options = {OPTIONS[key]: item for key, item in given.items() if item is not None} | read_constraint(body)[0]
    if options.get("temperature") == 0:
        options = {key: item for key, item in options.items() if key not in UNUSED_WHEN_GREEDY}
    return options


def _num_alternatives(body: dict[str, Any], endpoint: str) -> Any:
    """The requested number of alternatives per token: `top_logprobs` in a chat, otherwise `logprobs` itself."""
    wanted, number = body.get("logprobs"), body.get(TOP_LOGPROBS)
    if endpoint != CHAT:
        return None if wanted is False else wanted
    if not isinstance(wanted, bool | None):
        raise ValueError(f"body.logprobs must be true or false: the number of alternatives goes in body.{TOP_LOGPROBS}")
    if number and not wanted:
        raise ValueError(f"body.{TOP_LOGPROBS} needs body.logprobs true")
    return (number or 0) if wanted else None


def _names(body: dict[str, Any]) -> dict[str, str]:
    """The body's names for our options, for errors."""
    names = {ours: f"body.{theirs}" for theirs, ours in OPTIONS.items() if body.get(theirs) is not None}
    names |= read_constraint(body)[1]
    return names | ({"logprobs": f"body.{TOP_LOGPROBS}"} if body.get(TOP_LOGPROBS) is not None else {})


def _to_score(request: dict[str, Any]) -> dict[str, Any]:
    """A request without the keys that ask for its prompt's score. Raises `ValueError` if it does not have them."""
    body = request.get("body")
    if not isinstance(body, dict) or body.get("echo") is not True or body.get("max_tokens") != 0:
        raise ValueError(f"score only takes requests for {COMPLETIONS} with body.echo true and body.max_tokens 0")
    return {**request, "body": {key: item for key, item in body.items() if key not in ("echo", "max_tokens")}}


def _check_harmless(key: str, body: dict[str, Any]) -> None:
    value = body[key]
    if key == "echo" and value is True and body.get("max_tokens") == 0:
        raise ValueError("body.echo with body.max_tokens 0 asks for scores: use batchgen score")
    # Types are compared too: in Python 0 == False, but logprobs 0 asks for something that false does not.
    known = any(value == other and type(value) is type(other) for other in HARMLESS.get(key, ()))
    if value is not None and not known and (key, value) != ("best_of", body.get("n")):
        raise ValueError(f"body.{key[:40]} is not supported: remove it")


def _prompt(body: dict[str, Any]) -> str:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if "messages" in body:
        raise ValueError(f"body.messages is for {CHAT}, and the url is {COMPLETIONS}")
    if not isinstance(prompt, str):
        raise ValueError("body.prompt must be a string: one prompt per line, and no token ids")
    return prompt
