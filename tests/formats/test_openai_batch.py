"""OpenAI Batch files in and out."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from batchgen.errors import InputError
from batchgen.formats.reading import ReadOptions, Source, find_sources, read_requests
from batchgen.formats.templates import Template
from batchgen.formats.writing import WRITERS, WriteOptions
from batchgen.records import Request, SamplingParams
from tests.support.results import result_of


def line(custom_id: object = "a", **body: Any) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/completions",
        "body": {"model": "gpt-3.5-turbo-instruct", "prompt": "My dog is", **body},
    }


def read(folder: Path, *lines: Any, run: SamplingParams | None = None, **options: Any) -> list[Request]:
    path = folder / "batch.jsonl"
    path.write_text("".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in lines))
    return list(read_requests([Source(path.name, path)], run, ReadOptions(**options)))


def problem(folder: Path, item: Any, run: SamplingParams | None = None) -> str:
    bad, good = read(folder, item, line("z"), run=run, input_format="openai-batch")
    assert (good.id, good.error) == ("z", None)
    return (bad.error or "").removeprefix("batch.jsonl:1: ")


# In.


def test_a_request_has_its_id_prompt_and_options(tmp_path: Path) -> None:
    [request] = read(
        tmp_path, line("r-1", max_tokens=7, temperature=0.5, top_p=0.9, n=2, stop=["\n"], seed=3, user="u")
    )
    assert (request.id, request.prompt, request.metadata, request.error) == ("r-1", "My dog is", {}, None)
    assert request.sampling == SamplingParams(
        max_new_tokens=7, temperature=0.5, top_p=0.9, num_samples=2, stop=("\n",), seed=3
    )


def test_a_request_has_vllm_s_and_newer_options_too(tmp_path: Path) -> None:
    [request] = read(
        tmp_path,
        line(
            max_completion_tokens=7,
            min_tokens=2,
            presence_penalty=0.5,
            frequency_penalty=-1,
            logit_bias={"50256": -100, "13": 2},
            stop_token_ids=[13],
            ignore_eos=True,
            temperature=1,
            top_k=-1,
        ),
    )
    assert request.error is None
    assert request.sampling == SamplingParams(
        max_new_tokens=7,
        min_new_tokens=2,
        presence_penalty=0.5,
        frequency_penalty=-1,
        logit_bias={50256: -100, 13: 2},
        stop_token_ids=(13,),
        ignore_eos=True,
        temperature=1,
    )


def test_a_greedy_request_may_turn_top_k_off(tmp_path: Path) -> None:
    [request] = read(tmp_path, line(temperature=0, top_k=-1, max_tokens=3, max_completion_tokens=3))
    assert (request.error, request.sampling) == (None, SamplingParams(max_new_tokens=3))


def test_what_a_request_does_not_say_is_the_run_s(tmp_path: Path) -> None:
    run = SamplingParams(temperature=0.7, max_new_tokens=9)
    [request] = read(tmp_path, line(max_tokens=None), run=run)
    assert request.sampling == run


def test_a_prompt_may_stand_alone_in_a_list(tmp_path: Path) -> None:
    assert read(tmp_path, line(prompt=["It"]))[0].prompt == "It"


@pytest.mark.parametrize(
    "harmless",
    [
        {"stream": False}, {"echo": False}, {"logprobs": None}, {"logprobs": False}, {"best_of": 1}, {"suffix": None},
        {"frequency_penalty": 0}, {"presence_penalty": 0.0}, {"logit_bias": {}}, {"n": 2, "best_of": 2},
        {"temperature": 0, "top_p": 0.5}, {"user": "u", "metadata": {"a": "b"}},
    ],
    ids=str,
)  # fmt: skip
def test_what_asks_for_nothing_is_accepted(tmp_path: Path, harmless: dict[str, Any]) -> None:
    [request] = read(tmp_path, line(**harmless), run=SamplingParams(temperature=1.0))
    assert request.error is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"logprobs": 21}, "body.logprobs 21 is not in [0, 20]"),
        ({"logprobs": True}, "body.logprobs must be a whole number"),
        ({"top_logprobs": 2}, "body.top_logprobs is not supported"),
        ({"echo": True}, "body.echo is not supported"),
        ({"suffix": "."}, "body.suffix is not supported"),
        ({"best_of": 3}, "body.best_of is not supported"),
        ({"frequency_penalty": 2.5}, "body.frequency_penalty 2.5 is not in [-2, 2]"),
        ({"logit_bias": {"50256": -101}}, "body.logit_bias -101 of token 50256 is not in [-100, 100]"),
        ({"top_k": -2, "temperature": 1}, "body.top_k -2 is less than -1"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "body.max_tokens and body.max_completion_tokens differ"),
        ({"max_completion_tokens": 0}, "body.max_completion_tokens 0 is less than 1"),
        ({"stream": True}, "body.stream is not supported"),
        ({"response_format": {}, "guided": 1}, "body.guided is not supported"),
        ({"n": 2}, "body.n 2 needs the run's temperature above 0"),
        ({"n": 2, "temperature": 0}, "body.n 2 needs body.temperature above 0"),
        ({"max_tokens": 0}, "body.max_tokens 0 is less than 1"),
        ({"max_tokens": "7"}, "body.max_tokens must be a whole number"),
        ({"top_p": 2, "temperature": 1}, "body.top_p 2.0 is not in (0, 1]"),
        ({"stop": [1]}, "body.stop must be a string or a list of strings"),
        ({"prompt": ["a", "b"]}, "body.prompt must be a string"),
        ({"prompt": [3666, 3290]}, "body.prompt must be a string"),
        ({"prompt": None}, "body.prompt must be a string"),
        ({"prompt": "\ud800"}, "a lone surrogate"),
        ({"messages": []}, "body.messages is not supported"),
    ],
    ids=str,
)
def test_what_cannot_be_done_fails_its_row_and_says_so(tmp_path: Path, body: dict[str, Any], reason: str) -> None:
    assert problem(tmp_path, line(**body)).startswith(reason)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({**line(), "url": "/v1/chat/completions"}, "body.prompt is not supported"),
        ({**line(), "url": "/v1/embeddings"}, "url is neither /v1/completions nor /v1/chat/completions"),
        ({**line(), "method": "GET"}, "method is not POST"),
        ({**line(), "body": []}, "the body is not an object"),
        ({"custom_id": "a"}, "the body is not an object"),
        (line(7), "the custom_id is not a string"),
        ({"body": {}}, "the custom_id is not a string"),
        ([1], "not a JSON object"),
        ("{", "not valid JSON"),
    ],
    ids=str,
)
def test_what_is_no_request_fails_alone(tmp_path: Path, item: Any, reason: str) -> None:
    assert problem(tmp_path, item).startswith(reason)


def test_an_id_that_came_before_fails_and_names_the_first(tmp_path: Path) -> None:
    requests = read(tmp_path, line("a"), line("b"), line("a"), line("a"))
    assert [request.error for request in requests] == [
        None, None,
        "batch.jsonl:3: batch.jsonl:1 has the same custom_id",
        "batch.jsonl:4: batch.jsonl:1 has the same custom_id",
    ]  # fmt: skip


def test_other_keys_of_a_request_are_metadata(tmp_path: Path) -> None:
    assert read(tmp_path, {**line(), "topic": "dogs"})[0].metadata == {"topic": "dogs"}


@pytest.mark.parametrize("options", [{"field": "x"}, {"id_field": "x"}, {"template": Template("x")}], ids=str)
def test_reading_options_have_no_place(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"batch\.jsonl is an OpenAI Batch file"):
        read(tmp_path, line(), **options)


@pytest.mark.parametrize("name", ["a.jsonl", "a"])
def test_the_first_line_shows_the_format(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("\n" + json.dumps(line("r-1")) + "\n")
    assert [request.id for request in read_requests(find_sources([str(tmp_path / name)]))] == ["r-1"]


def test_it_is_json_lines_where_that_is_said(tmp_path: Path) -> None:
    [request] = read(tmp_path, {"custom_id": "a", "body": {}, "prompt": "x"}, input_format="jsonl")
    assert (request.prompt, request.id) == ("x", "0")


# Out.


def write(*results: Any, **options: Any) -> list[dict[str, Any]]:
    stream = io.BytesIO()
    WRITERS["openai-batch"](results, stream, WriteOptions(**options))
    return [json.loads(item) for item in stream.getvalue().splitlines()]


FAILED = result_of("", index=5, id="e", finish_reason="error", error="batch.jsonl:6: bad", metadata={})


def test_a_response_is_written_like_this() -> None:
    assert write(result_of(metadata={})) == [
        {
            "id": "batch_req_4",
            "custom_id": "d1",
            "response": {
                "status_code": 200,
                "request_id": "req_4",
                "body": {
                    "id": "cmpl-4",
                    "object": "text_completion",
                    "created": 0,
                    "model": "gpt2",
                    "choices": [{"index": 0, "text": " very kind", "finish_reason": "length", "logprobs": None}],
                    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
                },
            },
            "error": None,
        }
    ]


def test_samples_of_a_row_are_the_choices_of_one_response() -> None:
    first, second = write(result_of(), result_of(" brown", sample_index=1), result_of(index=5))
    assert [choice["text"] for choice in first["response"]["body"]["choices"]] == [" very kind", " brown"]
    assert first["response"]["body"]["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert second["id"] == "batch_req_5"


def test_a_failed_row_is_an_error() -> None:
    assert write(FAILED) == [
        {
            "id": "batch_req_5",
            "custom_id": "e",
            "response": None,
            "error": {"code": "row_failed", "message": "batch.jsonl:6: bad"},
        }
    ]


def test_answers_and_failures_can_be_two_files() -> None:
    results = [result_of(), FAILED, result_of(index=6)]
    assert [item["id"] for item in write(*results)] == ["batch_req_4", "batch_req_5", "batch_req_6"]
    assert [item["id"] for item in write(*results, rows="answered")] == ["batch_req_4", "batch_req_6"]
    assert [item["id"] for item in write(*results, rows="failed")] == ["batch_req_5"]


def test_metadata_comes_back_where_there_is_any() -> None:
    assert write(result_of())[0]["metadata"] == {"topic": "dogs"}


def test_an_id_that_is_a_number_is_written_as_text() -> None:
    assert write(result_of(id=7))[0]["custom_id"] == "7"
