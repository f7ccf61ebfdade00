from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from batchgen import generate
from batchgen.formats.reading import ReadOptions, Source, read_requests, row_of_object, to_requests
from batchgen.formats.row_options import override, row_keys
from batchgen.records import Request, SamplingParams
from batchgen.records.sampling import CONSTRAINT_FIELDS

GREEDY = SamplingParams()
NUCLEUS = SamplingParams(temperature=1.0, top_p=0.9, top_k=40, min_p=0.1, num_samples=4)
BEAMS = SamplingParams(num_beams=3)
OTHER_VALUES: dict[str, Any] = {
    "max_new_tokens": 7,
    "min_new_tokens": 2,
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.5,
    "min_p": 0.5,
    "repetition_penalty": 1.5,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "logit_bias": {"7": 1, "3": -100},
    "no_repeat_ngram_size": 2,
    "num_samples": 2,
    "stop": ["a", "b"],
    "stop_token_ids": [5, 6],
    "ignore_eos": True,
    "logprobs": 2,
    "json_schema": {"type": "object"},
    "json_object": True,
    "regex": "[a-z]+",
    "choice": ["a", "b"],
    "grammar": 'start: "a"',
    "json_whitespace": "any",
    "seed": -3,
}


def request_of(row: dict[str, Any], run: SamplingParams = GREEDY, field: str | None = None) -> Request:
    [request] = to_requests([row_of_object({"prompt": "a", **row}, "rows.jsonl:7", ReadOptions(field))], run)
    return request


def problem_of(sampling: object, run: SamplingParams = GREEDY) -> str:
    with pytest.raises(ValueError, match="sampling") as caught:
        override(run, sampling)
    return str(caught.value)


def test_a_row_may_name_every_option_but_beams() -> None:
    assert set(row_keys()) == set(OTHER_VALUES) == set(SamplingParams.__dataclass_fields__) - {"num_beams"}
    for kept in CONSTRAINT_FIELDS:  # one row has one
        values = {key: value for key, value in OTHER_VALUES.items() if key == kept or key not in CONSTRAINT_FIELDS}
        values["min_new_tokens"] = 1
        assert override(NUCLEUS, values) == SamplingParams(**values)


@pytest.mark.parametrize("key", OTHER_VALUES)
def test_a_row_changes_only_what_it_names(key: str) -> None:
    run = SamplingParams(temperature=1.0)
    assert override(run, {key: OTHER_VALUES[key]}) == SamplingParams(**{"temperature": 1.0, key: OTHER_VALUES[key]})


@pytest.mark.parametrize("sampling", [{}, {"temperature": None, "stop": None}])
def test_what_a_row_does_not_name_or_gives_as_null_stays_the_runs(sampling: dict[str, None]) -> None:
    assert override(NUCLEUS, sampling) == NUCLEUS


def test_a_whole_number_does_where_any_number_is_due() -> None:
    temperature = override(GREEDY, {"temperature": 1}).temperature
    assert (temperature, type(temperature)) == (1.0, float)


@pytest.mark.parametrize(("stop", "stops"), [("a", ("a",)), (["a", "b"], ("a", "b")), ([], ())])
def test_stop_is_a_string_or_a_list_of_them(stop: object, stops: tuple[str, ...]) -> None:
    assert override(SamplingParams(stop=("x",)), {"stop": stop}).stop == stops


def test_a_greedy_row_leaves_the_runs_cuts_and_samples_behind() -> None:
    assert override(NUCLEUS, {"temperature": 0}) == GREEDY


def test_a_greedy_row_that_names_a_cut_contradicts_itself() -> None:
    problem = problem_of({"temperature": 0, "top_p": 0.5}, NUCLEUS)
    assert problem == "sampling.top_p 0.5 needs sampling.temperature above 0 (0 is greedy)"


def test_a_greedy_row_that_names_samples_contradicts_itself() -> None:
    assert "sampling.num_samples 2" in problem_of({"temperature": 0, "num_samples": 2}, NUCLEUS)


def test_a_row_that_samples_contradicts_a_run_with_beams() -> None:
    problem = problem_of({"temperature": 0.7}, BEAMS)
    assert problem == "the run's num_beams 3 does not work with sampling.temperature 0.7: choose one"


def test_a_greedy_row_goes_with_beams() -> None:
    assert override(BEAMS, {"temperature": 0, "max_new_tokens": 3}) == SamplingParams(num_beams=3, max_new_tokens=3)


def test_the_rows_options_are_named_as_keys_and_the_runs_as_the_runs() -> None:
    problem = problem_of({"max_new_tokens": 20}, SamplingParams(min_new_tokens=30))
    assert problem == "the run's min_new_tokens 30 is larger than sampling.max_new_tokens 20"


@pytest.mark.parametrize(
    ("sampling", "problem"),
    [
        ({"top_p": 2}, "sampling.top_p 2.0 is not in (0, 1]"),
        ({"top_p": float("nan")}, "sampling.top_p must be a number such as 0.7"),
        ({"top_k": -2}, "sampling.top_k -2 is less than -1"),
        ({"max_new_tokens": 0}, "sampling.max_new_tokens 0 is less than 1"),
        ({"temperature": -1}, "sampling.temperature -1.0 is less than 0"),
        ({"temperature": 1e-320}, "sampling.temperature 1e-320 is not in [1e-06, 1e+06], nor 0 (greedy)"),
        (
            {"repetition_penalty": 1e-320},
            "sampling.repetition_penalty 1e-320 is not a number above 0, in [1e-06, 1e+06]",
        ),
        ({"top_k": 10**400}, "sampling.top_k is larger than 9223372036854775807"),
        ({"temperature": 10**400}, "sampling.temperature is larger than 9223372036854775807"),
        ({"temperature": "hot"}, "sampling.temperature must be a number such as 0.7"),
        ({"temperature": True}, "sampling.temperature must be a number such as 0.7"),
        ({"max_new_tokens": 20.0}, "sampling.max_new_tokens must be a whole number such as 20"),
        ({"seed": False}, "sampling.seed must be a whole number such as 20"),
        ({"seed": "1"}, "sampling.seed must be a whole number such as 20"),
        ({"presence_penalty": 2.5}, "sampling.presence_penalty 2.5 is not in [-2, 2]"),
        ({"frequency_penalty": -3}, "sampling.frequency_penalty -3.0 is not in [-2, 2]"),
        ({"logit_bias": {"7": 101}}, "sampling.logit_bias 101 of token 7 is not in [-100, 100]"),
        ({"logit_bias": {"dog": 1}}, "sampling.logit_bias has 'dog', which is not a token id"),
        ({"logit_bias": [7, 1]}, "sampling.logit_bias must map token ids to what is added to their logits"),
        ({"logit_bias": {"7": "high"}}, "sampling.logit_bias must be a number"),
        ({"stop_token_ids": ["<eos>"]}, "sampling.stop_token_ids must be a token id or a list of token ids"),
        ({"stop_token_ids": [-1]}, "sampling.stop_token_ids must be a token id or a list of token ids"),
        ({"ignore_eos": 1}, "sampling.ignore_eos must be true or false"),
        ({"stop": 7}, "sampling.stop must be a string or a list of strings"),
        ({"stop": ["a", 7]}, "sampling.stop must be a string or a list of strings"),
        ({"stop": ""}, "sampling.stop needs a non-empty text"),
        ({"stop": "\ud83d"}, "sampling.stop has a lone surrogate"),
        ({"num_beams": 2}, "sampling.num_beams cannot be set per row: set num_beams for the whole run"),
        ({"max_tokens": 2}, 'sampling has no key "max_tokens": did you mean max_new_tokens?'),
        ({"topP": 0.5}, 'sampling has no key "topP": did you mean top_p?'),
        ({"best_of": 2}, 'sampling has no key "best_of"; known keys: max_new_tokens, min_new_tokens, '),
        ({"a\n\ud83d": None}, 'sampling has no key "a\\n\\ud83d"; '),
        (
            "greedy",
            'sampling must be an object such as {"temperature": 0.7}; if the column means something else, rename it',
        ),
        ([], "sampling must be an object"),
        (False, "sampling must be an object"),
    ],
    ids=str,
)
def test_the_message_names_the_key_and_the_mend_in_one_line(sampling: object, problem: str) -> None:
    message = problem_of(sampling)
    assert message.startswith(problem)
    assert message.isprintable()


NAMED = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": {"const": 1}}}


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        ({"response_format": NAMED, "temperature": 0}, {"json_schema": {"const": 1}}),
        ({"response_format": None, "guided_regex": None}, {"regex": "run"}),
        (
            {"structured_outputs": {"json": {"const": 1}, "disable_any_whitespace": False}},
            {"json_schema": {"const": 1}, "json_whitespace": "any"},
        ),
        ({"structured_outputs": {"choice": ["a", "b"]}}, {"choice": ["a", "b"]}),
        ({"guided_grammar": 'start: "a"'}, {"grammar": 'start: "a"'}),
        ({"json_schema": {}}, {"json_schema": {}}),
        ({"json_schema": False}, {"json_schema": False}),
        ({"json_object": False}, {"regex": "run"}),
    ],
)
def test_a_rows_constraint_in_any_spelling_replaces_that_of_the_run(
    sampling: dict[str, object], expected: dict[str, object]
) -> None:
    assert override(SamplingParams(regex="run"), sampling) == SamplingParams(**expected)


@pytest.mark.parametrize(
    ("sampling", "problem"),
    [
        ({"response_format": {"type": "xml"}}, "sampling.response_format is not one of text, json_object, json_schema"),
        ({"response_format": {"type": "json_schema"}}, "sampling.response_format.json_schema.schema is missing"),
        ({"response_format": NAMED, "regex": "a"}, "sampling.response_format and sampling.regex both constrain"),
        (
            {"response_format": NAMED, "json_schema": {}},
            "sampling.json_schema and sampling.response_format cannot be used",
        ),
        ({"structured_outputs": {"choice": []}}, "sampling.structured_outputs needs at least one text"),
        ({"structured_outputs": {"regex": ""}}, "sampling.structured_outputs must be a non-empty text"),
        (
            {"structured_outputs": {"structural_tag": "a"}},
            "sampling.structured_outputs.structural_tag is not supported",
        ),
    ],
    ids=str,
)
def test_a_constraint_in_another_spelling_is_refused_by_that(sampling: object, problem: str) -> None:
    assert problem_of(sampling).startswith(problem)


def test_a_bad_sampling_fails_its_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a", "id": "x", "n": 1, "sampling": {"top_p": 2}}, {"prompt": "b", "sampling": {"seed": 3}}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad, good = read_requests([Source(str(path), path)], NUCLEUS)
    assert bad.error == f"{path}:1: sampling.top_p 2.0 is not in (0, 1]"
    assert (bad.id, bad.prompt, bad.metadata) == ("x", "a", {"n": 1})
    assert (good.error, good.sampling.seed, good.sampling.top_p) == (None, 3, 0.9)


@pytest.mark.parametrize("sampling", [{"seed": 3}, {"top_p": 2}, "greedy", None])
def test_sampling_is_not_metadata(sampling: object) -> None:
    assert request_of({"sampling": sampling, "temperature": 2}).metadata == {"temperature": 2}


def test_null_is_no_sampling() -> None:
    request = request_of({"sampling": None}, NUCLEUS)
    assert (request.error, request.sampling) == (None, NUCLEUS)


def test_a_prompt_may_stand_in_a_field_called_sampling() -> None:
    request = request_of({"sampling": "My dog is"}, field="sampling")
    assert (request.error, request.prompt) == (None, "My dog is")


def test_an_earlier_error_of_the_row_comes_first() -> None:
    assert "surrogate" in (request_of({"prompt": "\ud83d", "sampling": {"top_p": 2}}).error or "")


def test_generate_takes_a_rows_sampling() -> None:
    prompts = [
        {"prompt": "My dog is", "sampling": sampling} for sampling in (None, {"max_new_tokens": 2}, {"seed": ""})
    ]
    whole, short, bad = generate(prompts, "bundled", max_new_tokens=4)
    assert (whole.num_output_tokens, short.num_output_tokens) == (4, 2)
    assert whole.text.startswith(short.text)
    assert bad.error == "prompts[2]: sampling.seed must be a whole number such as 20"


def test_a_constraint_of_a_row_takes_the_place_of_the_runs() -> None:
    run = SamplingParams(regex="[a-z]+")
    assert override(run, {"choice": ["a"]}) == SamplingParams(choice=("a",))
    assert override(run, {"seed": 3}) == SamplingParams(regex="[a-z]+", seed=3)
    assert override(run, {"choice": None}) == run


def test_a_schema_is_an_object_or_its_text() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    asked = override(GREEDY, {"json_schema": schema})
    assert asked == override(GREEDY, {"json_schema": json.dumps(schema)})
    assert asked.json_schema == '{"type":"object","properties":{"b":{},"a":{}}}'
    assert "sampling.json_schema is not JSON" in problem_of({"json_schema": "{"})
    assert "sampling.regex and sampling.choice" in problem_of({"regex": "a", "choice": ["a"]})
