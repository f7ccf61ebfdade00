"""Constrained rows: outputs meet their constraints in any batch, and unconstrained rows beside them do not change."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from batchgen import Model
from batchgen.engines import finish_all, make_engine
from batchgen.engines.sampling.grammars import compile_grammar
from batchgen.engines.sampling.sampler import Sampler
from batchgen.engines.sampling.token_reader import token_reader
from batchgen.engines.sampling.trying import Trials, check_constraint, kill_in
from batchgen.model.stops import decode_output
from batchgen.records import Constraint, EngineOptions, FieldError, Request, SamplingParams, Sequence
from tests.support.models import make_chat_model
from tests.support.rows import encoded, ragged_prompts

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["big", "small", "old"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
DATE = r"[0-9]{4}-(0[1-9]|1[0-2])-[0-3][0-9]"
ANSWERS = ("yes", "yes, of course", "no", 'nö \N{BANANA} "really"\nnot\\n')
LIST = 'start: "- " item ("\\n- " item)*\nitem: /[a-z]{2,6}/'
# Constraints, and whether a text meets them.
KINDS: list[tuple[dict[str, object], Callable[[str], object]]] = [
    ({"json_schema": PERSON}, lambda text: jsonschema.validate(json.loads(text), PERSON) is None),
    ({"regex": DATE}, lambda text: re.fullmatch(DATE, text)),
    ({"choice": ANSWERS}, lambda text: text in ANSWERS),
    ({"grammar": LIST, "max_new_tokens": 12}, lambda text: re.fullmatch(r"- [a-z]{2,6}(\n- [a-z]{2,6})*", text)),
    ({}, lambda text: True),
]
WAYS = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2},
    {"logprobs": 2, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    {"temperature": 1.5, "logprobs": 0, "min_p": 0.01, "no_repeat_ngram_size": 9},
]
ENGINES = ["reference", "continuous"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A random model with 400 tokens: constraints do not depend on the model, and this one is fast."""
    return make_chat_model("chatml", tmp_path_factory.mktemp("small"), spread=0.3)


def mixed_rows(model: Model, number: int = len(KINDS) * len(WAYS)) -> list[Sequence]:
    prompts = ragged_prompts(number, longest=15)
    rows = []
    for index, prompt in enumerate(prompts):
        options = {"max_new_tokens": 30, **KINDS[index % len(KINDS)][0], **WAYS[index // len(KINDS) % len(WAYS)]}
        [row] = encoded([prompt], model, **options)
        rows.append(Sequence(replace(row.request, index=index, id=str(index)), 0, row.input_ids))
    return rows


def finished(model: Model, rows: list[Sequence], engine: str, batch_size: int = 8) -> list[Sequence]:
    return list(finish_all(make_engine(model, EngineOptions(engine, batch_size=batch_size)), rows))


def outputs(rows: list[Sequence]) -> dict[int, list[int]]:
    return {row.request.index: row.output_ids for row in rows}


def one(model: Model, engine: str = "continuous", **options: object) -> Sequence:
    [row] = finished(model, encoded(["My dog is"], model, **options), engine)
    return row


@pytest.mark.parametrize("engine", ENGINES)
def test_a_row_that_stopped_is_what_its_constraint_says(small: Model, engine: str) -> None:
    rows = finished(small, mixed_rows(small), engine)
    assert all(row.error is None for row in rows)
    checked = 0
    for row in rows:
        kind, fits = KINDS[row.request.index % len(KINDS)]
        if kind and row.finish_reason == "stop":
            checked += 1
            assert fits(decode_output(small.checkpoint.tokenizer, row))
    assert checked >= 8


@pytest.mark.parametrize("engine", ENGINES)
def test_tokens_do_not_depend_on_the_batch(small: Model, engine: str) -> None:
    alone = outputs(finished(small, mixed_rows(small), engine, batch_size=1))
    for batch_size in (7, 64):
        rows = mixed_rows(small)
        random.Random(batch_size).shuffle(rows)
        assert outputs(finished(small, rows, engine, batch_size=batch_size)) == alone


def test_both_engines_give_the_same_tokens(small: Model) -> None:
    one, other = (outputs(finished(small, mixed_rows(small), engine)) for engine in ENGINES)
    assert one == other


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_without_a_constraint_are_unchanged_beside_constrained_ones(small: Model, engine: str) -> None:
    free = [row for row in mixed_rows(small) if not row.sampling.is_constrained]
    beside = outputs(finished(small, mixed_rows(small), engine, batch_size=15))
    assert {index: beside[index] for index in (row.request.index for row in free)} == outputs(
        finished(small, free, engine)
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_complete_text_ends_its_row(small: Model, engine: str) -> None:
    row = one(small, engine, choice=["no way"], max_new_tokens=30)
    assert row.finish_reason == "stop"
    assert decode_output(small.checkpoint.tokenizer, row) == "no way"
    assert row.output_ids[-1] not in small.checkpoint.eos_token_ids


def test_a_text_that_is_complete_with_the_last_token_is_not_cut_short(bundled: Model) -> None:
    whole = one(bundled, choice=["no way"], max_new_tokens=30)
    assert one(bundled, choice=["no way"], max_new_tokens=whole.num_output_tokens).finish_reason == "stop"
    assert one(bundled, choice=["no way"], max_new_tokens=whole.num_output_tokens - 1).finish_reason == "length"


def test_the_end_token_is_taken_only_where_the_text_is_complete(bundled: Model) -> None:
    [eos] = bundled.checkpoint.eos_token_ids
    row = one(bundled, regex="[a-z]{3,}", logit_bias={eos: 100.0}, max_new_tokens=30)
    assert re.fullmatch("[a-z]{3,}", decode_output(bundled.checkpoint.tokenizer, row))
    assert row.output_ids[-1] == eos


def test_a_row_that_ignores_the_end_token_ends_where_nothing_may_follow(bundled: Model) -> None:
    row = one(bundled, regex="[a-z]{3,5}", ignore_eos=True, max_new_tokens=30)
    assert row.finish_reason == "stop"
    assert len(decode_output(bundled.checkpoint.tokenizer, row)) == 5


@pytest.mark.parametrize("engine", ENGINES)
def test_forced_tokens_are_those_that_a_decision_would_take(small: Model, engine: str) -> None:
    for options in ({"json_schema": PERSON}, {"choice": ANSWERS}, {"grammar": 'start: "abcdef" /[0-9]/ "ghi"'}):
        taken = one(small, engine, **options, temperature=1.0)
        decided = one(small, engine, **options, temperature=1.0, logprobs=0)  # rows that read their logits
        assert taken.output_ids == decided.output_ids
        assert taken.forced
        assert not decided.forced


def test_a_forced_token_is_the_only_one_that_its_mask_allows(small: Model) -> None:
    checkpoint, choose = small.checkpoint, random.Random(0)
    reader = token_reader(checkpoint.tokenizer, checkpoint.config.vocab_size, checkpoint.eos_token_ids)
    num_forced = 0
    for constraint in (Constraint("json_schema", json.dumps(PERSON)), Constraint("choice", json.dumps(ANSWERS))):
        matcher, forced = compile_grammar(reader, constraint), []
        while not matcher.is_stopped():
            forced = forced or matcher.compute_ff_tokens()
            allowed = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little").nonzero()[0]
            if forced:
                assert list(allowed) == forced[:1]
            num_forced += bool(forced)
            forced = forced[1:]
            matcher.consume_token(int(choose.choice(allowed)))
    assert num_forced > 10


def test_a_row_without_a_choice_takes_one_forward(bundled: Model) -> None:
    seen: list[int] = []
    engine = make_engine(bundled, EngineOptions("continuous"), on_logits=lambda logits, rows: seen.append(len(rows)))
    [row] = finish_all(engine, encoded(["My dog is"], bundled, choice=["no way, not today"], max_new_tokens=30))
    assert decode_output(bundled.checkpoint.tokenizer, row) == "no way, not today"
    assert row.forced == list(range(row.num_output_tokens))
    assert seen == [1]


def test_a_forced_row_that_is_no_number_fails(small: Model) -> None:
    sampler = Sampler(small.checkpoint.eos_token_ids, small.checkpoint.tokenizer)
    rows = encoded(["a", "b"], small, choice=["xy"])
    logits = torch.zeros(2, small.checkpoint.config.vocab_size)
    logits[1] = torch.nan
    fine, broken = sampler.choose(logits, rows)
    assert fine is not None
    assert broken is None


@pytest.mark.parametrize("choice", ["0", "ab0", "a\u00e9b"])
def test_what_a_vocabulary_has_no_tokens_for_fails_its_row_by_name(choice: str) -> None:
    letters = {letter: token for token, letter in enumerate("abcdef\u00c3")}  # the last is the first byte of \u00e9
    plain = Tokenizer(BPE(vocab=letters, merges=[]))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    plain.add_special_tokens(["<end>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>")
    sampler = Sampler({len(letters)}, tokenizer)
    row = Sequence(Request(0, "0", "", SamplingParams(choice=(choice,))), 0, [0])
    while not row.is_finished and (token := sampler.choose(torch.zeros(1, len(letters) + 1), [row])[0]) is not None:
        sampler.extend(row, token)
    assert row.error == "the list of choices cannot be met: the model has no tokens for what must come next"


def test_samples_of_a_row_each_fit(bundled: Model) -> None:
    rows = encoded(["My dog is"], bundled, choice=["a", "b", "c"], temperature=5.0, num_samples=12)
    texts = {decode_output(bundled.checkpoint.tokenizer, row) for row in finished(bundled, rows, "continuous")}
    assert texts == {"a", "b", "c"}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_stop_string_may_end_a_text_that_is_not_complete(small: Model, engine: str) -> None:
    row = one(small, engine, regex="ab-[a-z]{3}-cd", stop=["-"], max_new_tokens=30)
    assert (decode_output(small.checkpoint.tokenizer, row), row.finish_reason) == ("ab", "stop")
    row = one(small, engine, regex="[a-z]{3}-cd", stop=["cd"], max_new_tokens=30)
    assert re.fullmatch("[a-z]{3}-", decode_output(small.checkpoint.tokenizer, row))


@pytest.mark.parametrize("engine", ENGINES)
def test_each_token_of_a_constrained_row_has_its_log_probability(small: Model, engine: str) -> None:
    row = one(small, engine, json_schema=PERSON, logprobs=1, max_new_tokens=60)
    assert len(row.logprobs) == row.num_output_tokens > 10


def test_log_probabilities_are_the_models_own(bundled: Model) -> None:
    row = one(bundled, choice=["Q"], logprobs=1)
    assert row.logprobs[0].logprob < -5
    assert row.logprobs[0].top[0][0] != row.output_ids[0]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"regex": r"\d{2}", "min_new_tokens": 9}, "min_new_tokens 9 cannot be met"),
        ({"grammar": 'start: "abcdef"', "min_new_tokens": 9}, "min_new_tokens 9 cannot be met"),
        ({"regex": "(ha){9,}", "no_repeat_ngram_size": 1}, "the regular expression and"),
        ({"regex": "a{1000000000}"}, "too large or too complex"),
        ({"json_schema": {"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object"}}, "too complex"),
        ({"grammar": "start: nothing"}, "unknown name"),
    ],
)
def test_what_cannot_be_met_fails_its_row_alone(
    small: Model, engine: str, options: dict[str, object], problem: str
) -> None:
    rows = encoded(["My dog is"], small, max_new_tokens=20) + encoded(["It"], small, max_new_tokens=20, **options)
    good, bad = sorted(finished(small, rows, engine), key=lambda row: row.error is not None)
    assert good.output_ids == one(small, engine, max_new_tokens=20).output_ids
    assert problem in str(bad.error)
    assert "\n" not in str(bad.error)


HOSTILE = {
    "schema without end": Constraint("json_schema", '{"$ref":"#"}'),
    "circle": Constraint("json_schema", '{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/a"}}}'),
    "never": Constraint("json_schema", "false"),
    "contradiction": Constraint("json_schema", '{"type":"integer","minimum":5,"maximum":3}'),
    "keyword": Constraint("json_schema", '{"type":"array","uniqueItems":true}'),
    "condition": Constraint("json_schema", '{"if":{"type":"string"},"then":{"maxLength":3}}'),
    "type": Constraint("json_schema", '{"type":"strin"}'),
    "format": Constraint("json_schema", '{"type":"string","format":"colour"}'),
    "elsewhere": Constraint("json_schema", '{"$ref":"https://example.org/schema.json"}'),
    "pattern": Constraint("json_schema", '{"type":"string","pattern":"(?!a)b"}'),
    "product": Constraint(
        "json_schema",
        json.dumps({"allOf": [{"anyOf": [{"properties": {f"{i} {j}": {}}} for j in range(20)]} for i in range(20)]}),
    ),
    "ahead": Constraint("regex", "(?=a)b"),
    "back": Constraint("regex", r"(a)\1"),
    "open": Constraint("regex", "(a"),
    "deep": Constraint("regex", "(" * 9000 + "a" + ")" * 9000),
    "names": Constraint("grammar", "start: nothing"),
    "deep grammar": Constraint("grammar", "start: " + "(" * 200_000 + '"a"' + ")" * 200_000),
    "loop": Constraint("grammar", "start: start"),
    "both": Constraint("grammar", "start: A\nA: /(.*a.{20})/ & /(.*b.{20})/ & ~/(.*c.{20})/"),
    "empty": Constraint("grammar", "start: A\nA: /a/ & /b/"),
}


@pytest.fixture
def trials() -> Iterator[Trials]:
    trials = Trials()
    yield trials
    trials.close()


def test_hostile_constraints_are_refused_in_one_line_each(trials: Trials) -> None:
    for name, constraint in HOSTILE.items():
        problem = trials.problem(constraint)
        assert problem is not None, name
        assert "cannot be used: " in problem
        assert len(problem) < 300
        assert "\n" not in problem
    assert trials.problem(Constraint("choice", '["a"]')) is None


def test_an_unsupported_keyword_is_named(trials: Trials) -> None:
    assert "uniqueItems is not supported" in str(trials.problem(HOSTILE["keyword"]))
    assert "if, then are not supported" in str(trials.problem(HOSTILE["condition"]))


@pytest.mark.parametrize(
    ("kind", "text", "problem"),
    [
        ("json_schema", '{"$ref":"file:///a.json"}', "cannot be used: file:///a.json is outside the schema"),
        ("json_schema", '{"oneOf":[{"type":"integer"},{"type":"number"}]}', "use anyOf"),
        ("json_schema", '{"type":"array","uniqueItems":true,"x-guidance":{"lenient":true}}', "uniqueItems is not"),
        ("grammar", "start: <|endoftext|>", "special tokens in grammars are not supported"),
    ],
)
def test_what_is_wrong_with_a_constraint_can_be_mended(trials: Trials, kind: Any, text: str, problem: str) -> None:
    assert problem in str(trials.problem(Constraint(kind, text)))


def test_a_choice_may_have_any_character(trials: Trials) -> None:
    assert trials.problem(Constraint("choice", json.dumps(['\x01\x7f\x9f\u2028\U0001f600"\\']))) is None


def test_a_schema_may_be_true_or_false(trials: Trials) -> None:
    assert trials.problem(Constraint("json_schema", "true")) is None
    assert "no text can match it" in str(trials.problem(HOSTILE["never"]))


def test_compiling_without_end_is_given_up() -> None:
    trials = Trials(most_seconds=0.0)
    assert "takes too much time" in str(trials.problem(Constraint("regex", "given up")))
    trials.close()


class AfterNaps(threading.Event):
    """An event that is set after a number of waits, each of which the machine may have slept through."""

    def __init__(self, naps: int) -> None:
        super().__init__()
        self.naps = naps

    def wait(self, timeout: float | None = None) -> bool:
        self.naps -= 1
        return self.naps <= 0


@pytest.mark.parametrize(("naps", "is_killed"), [(3, False), (4, True)])
def test_however_long_a_machine_sleeps_it_counts_once(naps: int, is_killed: bool) -> None:
    killed: list[bool] = []
    kill_in(3.0, SimpleNamespace(kill=lambda: killed.append(True)), AfterNaps(naps))  # type: ignore[arg-type]
    assert bool(killed) is is_killed


def test_a_constraint_of_the_whole_run_is_refused_by_name() -> None:
    with pytest.raises(FieldError, match=r"^regex: the regular expression cannot be used"):
        check_constraint(SamplingParams(regex="(a"))
    check_constraint(SamplingParams(regex="a"))


def test_a_row_has_one_constraint_and_no_beams() -> None:
    for options, named in [
        ({"regex": "a", "choice": ["a"]}, "regex and choice"),
        ({"regex": "a", "num_beams": 2}, "num_beams 2"),
        ({"choice": ["ab"], "min_new_tokens": 3}, "min_new_tokens 3"),
        ({"json_schema": "[1]"}, "json_schema must be a JSON schema"),
        ({"json_schema": "{"}, "json_schema is not JSON"),
        ({"json_schema": {"const": float("inf")}}, "json_schema is not JSON"),
        ({"regex": ""}, "regex must be a non-empty text"),
        ({"choice": []}, "choice needs at least one text"),
        ({"grammar": "\ud800"}, "lone surrogate"),
    ]:
        with pytest.raises(FieldError, match=named):
            SamplingParams(**options)


def test_twins_of_one_constraint_share_an_answer(bundled: Model) -> None:
    rows = [Sequence(Request(i, str(i), "", SamplingParams(choice=("a", "b"))), 0, [10, 11]) for i in range(3)]
    assert len(set(map(tuple, outputs(finished(bundled, rows, "continuous")).values()))) == 1
