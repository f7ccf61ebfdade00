"""`batchgen score` and `batchgen.score`: records in every format, sums, errors, workers, resuming, OpenAI lines."""

from __future__ import annotations

import io
import json
import math
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

import batchgen
from batchgen.records import RowScore, ScoredText
from batchgen.runs.sums import ScoreSums, right_choice
from tests.support.command import failure, invoke, records, run

CHOICES = [" a very nice dog", " Tuesday"]
ROWS: list[dict[str, Any]] = [
    {"prompt": "My dog is", "continuation": " a very nice dog", "topic": "pets"},
    {"prompt": "My dog is", "choices": CHOICES, "answer": 0, "topic": "pets"},
    {"prompt": "My dog is", "choices": CHOICES, "answer": " Tuesday", "topic": "days"},
    {"text": "It will rain in the morning.", "topic": "days"},
]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def score(*arguments: object, stdin: str | None = None) -> Result:
    return invoke("score", "--model", "bundled", *arguments, stdin=lines(ROWS) if stdin is None else stdin)


# Records.


def test_the_row_of_the_guide_is_what_its_numbers_say() -> None:
    """docs/scores.md, "One row by hand": logits and their log-sum-exp give the printed numbers."""
    [row] = records(score("-p", "My dog is", "--tokens", stdin=""))
    model = batchgen.open_model("bundled")
    with torch.no_grad():
        logits = model.network(torch.tensor([[50256, 3666, 3290]])).logits[0]
    places = list(zip(logits, [3666, 3290, 318], strict=True))
    shown = [f"{own[token]:.3f} - {own.logsumexp(0):.3f}" for own, token in places]
    assert shown == ["6.030 - 15.142", "2.698 - 8.568", "6.684 - 8.797"]
    assert row["logprobs"]["token_ids"] == [3666, 3290, 318]
    assert [f"{number:.3f}" for number in row["logprobs"]["token_logprobs"]] == ["-9.112", "-5.870", "-2.113"]
    assert (f"{row['logprob']:.3f}", f"{row['perplexity']:.1f}") == ("-17.095", "298.4")


def test_each_kind_of_row_has_its_own_record() -> None:
    continuation, choices, _, text = records(score())
    tail = ["error", "metadata", "model", "source"]
    numbers = ["logprob", "num_tokens", "is_greedy"]
    assert list(continuation) == ["id", "index", "prompt", "continuation", *numbers, *tail]
    best = ["best", "best_per_token", "best_per_byte", "is_tie"]
    assert list(choices) == ["id", "index", "prompt", "choices", *best, *tail]
    assert list(choices["choices"][0]) == ["text", *numbers]
    assert list(text) == ["id", "index", "text", *numbers, "perplexity", *tail]
    assert (continuation["continuation"], text["text"]) == (" a very nice dog", "It will rain in the morning.")
    assert continuation["metadata"] == {"topic": "pets"}


def test_a_choice_is_the_same_as_a_continuation() -> None:
    continuation, choices, *_ = records(score())
    assert choices["choices"][0]["logprob"] == pytest.approx(continuation["logprob"], abs=1e-3)
    assert (continuation["num_tokens"], continuation["is_greedy"]) == (4, True)
    assert (choices["best"], choices["is_tie"], choices["choices"][1]["is_greedy"]) == (0, False, False)


def test_equal_choices_are_a_tie() -> None:
    [row] = records(score(stdin=lines([{"prompt": "My dog is", "choices": [" a", " a"]}])))
    assert (row["best"], row["best_per_byte"], row["is_tie"]) == (0, 0, True)


def test_perplexity_is_that_of_the_sum() -> None:
    *_, text = records(score("--tokens"))
    assert text["perplexity"] == pytest.approx(math.exp(-text["logprob"] / text["num_tokens"]))
    assert sum(text["logprobs"]["token_logprobs"]) == pytest.approx(text["logprob"], abs=1e-5)
    assert "".join(text["logprobs"]["tokens"]) == text["text"]


def test_alternatives_come_with_a_number() -> None:
    _, choices, *_ = records(score("--logprobs", 2))
    found = choices["choices"][0]["logprobs"]
    assert [len(best) for best in found["top"]] == [2] * 4


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "continuation": ""}, "the continuation is empty"),
        ({"prompt": "a", "continuation": 3}, "the continuation is not a string"),
        ({"prompt": "a", "choices": []}, "the choices are not a list of texts"),
        ({"prompt": "a", "choices": ["b", ""]}, "choices[1] is empty"),
        ({"prompt": "a", "choices": ["b"], "continuation": "c"}, "remove one"),
        ({"text": ""}, "the text is empty"),
        ({"prompt": "a", "text": "b"}, "the row has a prompt and a text"),
        ({"prompt": "a", "continuation": "\ud800"}, "a lone surrogate"),
        ({"messages": [{"role": "user", "content": "a"}]}, "the messages end with user"),
    ],
    ids=str,
)
def test_a_row_that_cannot_be_scored_is_an_error_record(row: dict[str, Any], reason: str) -> None:
    result = score(stdin=lines([row, ROWS[0]]))
    bad, good = records(result)
    assert reason in bad["error"]
    assert "-:1" in bad["error"]
    assert good["error"] is None
    assert result.exit_code == 3


def test_a_table_has_choices_as_json_in_cells() -> None:
    table = 'prompt,choices,answer\nMy dog is,"["" a very nice dog"", "" Tuesday""]",0\n'
    [row] = records(score("--input-format", "csv", stdin=table))
    assert (row["best"], [choice["text"] for choice in row["choices"]]) == (0, CHOICES)


def test_csv_has_a_column_for_each_number() -> None:
    header, first, *_ = score("--format", "csv", "--tokens").stdout.splitlines()
    assert header == "id,index,prompt,continuation,logprob,num_tokens,is_greedy,error,model,source,topic,metadata"
    assert first.startswith("0,0,My dog is, a very nice dog,-7.")


def test_parquet_has_choices_as_lists(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    output = tmp_path / "out.parquet"
    score("-o", output, "--tokens", stdin=lines(ROWS[1:3]))
    first, _ = pq.read_table(io.BytesIO(output.read_bytes())).to_pylist()
    assert (first["best"], first["is_tie"], first["choices"][0]["num_tokens"]) == (0, False, 4)
    assert first["choices"][0]["logprobs"]["tokens"] == [" a", " very", " nice", " dog"]


def test_a_database_has_them_as_json(tmp_path: Path) -> None:
    output = tmp_path / "out.db"
    score("-o", output)
    connection = sqlite3.connect(output)
    cells = [json.loads(cell) for (cell,) in connection.execute("SELECT score FROM results")]
    connection.close()
    assert [cell["kind"] for cell in cells] == ["continuation", "choices", "choices", "text"]


def test_scores_are_no_plain_text(tmp_path: Path) -> None:
    assert "scores are not plain text" in failure(score("-o", tmp_path / "out.txt"), 2)


def test_log_probabilities_are_no_plain_text_either(tmp_path: Path) -> None:
    line = "--logprobs does not work with plain text"
    assert line in failure(run("-p", "a", "--logprobs", "5", "-o", tmp_path / "out.txt"), 2)
    shown = run("-p", "a", "--logprobs", "1", "--format", "table", "--max-new-tokens", "1")
    assert "a table does not show log-probabilities" in shown.stderr


def test_a_prompt_of_the_command_line_is_a_text() -> None:
    [row] = records(score("-p", "My dog is", stdin=""))
    assert (row["text"], row["num_tokens"]) == ("My dog is", 3)


# Sums.


def test_the_closing_line_and_stats_have_the_sums(tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    result = score("--stats", stats)
    continuation, _, _, text = records(result)
    facts = json.loads(stats.read_text())
    total, tokens = (continuation[name] + text[name] for name in ("logprob", "num_tokens"))
    size = len(" a very nice dog") + len("It will rain in the morning.")
    assert facts["token_perplexity"] == pytest.approx(math.exp(-total / tokens))
    assert facts["word_perplexity"] == pytest.approx(math.exp(-total / (5 + 6)))  # as re.split(r"\s+") counts
    assert facts["byte_perplexity"] == pytest.approx(math.exp(-total / size))
    assert facts["bits_per_byte"] == pytest.approx(-total / size / math.log(2))
    assert (facts["accuracy"], facts["num_answered"]) == (0.5, 2)
    assert "perplexity" in result.stderr
    assert "accuracy 50.00%" in result.stderr


def test_groups_have_sums_of_their_own(tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    result = score("--stats", stats, "--by", "topic")
    groups = json.loads(stats.read_text())["by"]
    assert [groups[name]["accuracy"] for name in ("pets", "days")] == [1.0, 0.0]
    assert "pets" in result.stderr


@pytest.mark.parametrize(
    ("answer", "place"),
    [(1, 1), ("b", 1), ("1", 1), (" b ", 1), (2, None), (-1, None), (True, None), (None, None), ("x", None)],
)
def test_an_answer_is_a_place_or_a_text(answer: object, place: int | None) -> None:
    texts = tuple(ScoredText(text, -1.0, 1, False) for text in (" a", " b"))
    assert right_choice(RowScore("choices", texts), answer) == place


def test_a_number_that_a_table_made_a_decimal_is_a_place() -> None:
    texts = tuple(ScoredText(text, -1.0, 1, False) for text in (" a", " b"))
    assert [right_choice(RowScore("choices", texts), answer) for answer in (1.0, "1.0", 0.5, 2.0)] == [1, 1, None, None]


def test_rows_that_accuracy_leaves_out_are_counted_and_said(tmp_path: Path) -> None:
    stats, row = tmp_path / "stats.json", {"prompt": "My dog is", "choices": CHOICES}
    rows = [{**row, "answer": answer} for answer in (0, "B", 7, None, "")]
    result = score("--stats", stats, stdin=lines(rows))
    facts = json.loads(stats.read_text())
    assert (facts["num_answered"], facts["unknown_answers"], result.exit_code) == (1, 2, 0)
    assert "2 rows (the first: -:2) without accuracy: the answer is neither one of the choices" in result.stderr


def test_rows_without_the_column_of_the_groups_are_a_group_of_their_own(tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    result = score("--stats", stats, "--by", "topic", stdin=lines([*ROWS, {"text": "Once upon a time"}]))
    assert list(json.loads(stats.read_text())["by"]) == ["pets", "days", "(none)"]
    assert result.stderr.count("-:5 has no column topic (--by)") == 1


def test_groups_beyond_the_most_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchgen.runs.execute.ScoreSums", partial(ScoreSums, most_groups=1))
    assert "2 rows in no group: --by sums up 1 values at most" in score("--by", "topic").stderr


def test_an_answer_that_is_a_choice_of_digits_is_that_choice() -> None:
    texts = tuple(ScoredText(text, -1.0, 1, False) for text in ("1", "0"))
    assert right_choice(RowScore("choices", texts), "0") == 1


def test_bests_differ_by_what_they_are_measured_by() -> None:
    long, short = ScoredText("a very long choice", -6.0, 5, False), ScoredText("b", -5.0, 1, False)
    found = RowScore("choices", (long, short))
    assert (found.best, found.best_per_token, found.best_per_byte, found.is_tie) == (1, 0, 0, False)


# How runs work.


def test_workers_a_stopped_run_and_a_whole_one_write_the_same_bytes(tmp_path: Path) -> None:
    rows = [{**row, "id": str(index)} for index, row in enumerate(ROWS * 6)]
    whole, parts, shared = (tmp_path / f"{name}.jsonl" for name in ("whole", "parts", "shared"))
    options = ("--logprobs", 1, "--keep-store")
    score("-o", whole, *options, stdin=lines(rows))
    score("-o", parts, *options, stdin=lines(rows[:7]))
    assert score("-o", parts, "--resume", *options, stdin=lines(rows)).exit_code == 0
    score("-o", shared, "--workers", 2, *options, stdin=lines(rows))
    assert whole.read_bytes() == parts.read_bytes() == shared.read_bytes()


def test_a_run_is_not_resumed_as_scores(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    run("-o", output, "--keep-store", stdin="My dog is\n")
    assert "was started with" in score("-o", output, "--resume", stdin="My dog is\n").stderr


def test_sums_of_a_resumed_run_are_those_of_all_rows(tmp_path: Path) -> None:
    output, stats = tmp_path / "out.jsonl", tmp_path / "stats.json"
    score("-o", output, "--keep-store", stdin=lines(ROWS[:2]))
    score("-o", output, "--resume", "--stats", stats)
    facts = json.loads(stats.read_text())
    assert (facts["num_answered"], facts["rows_kept"]) == (2, 2)


def test_python_has_the_same_names() -> None:
    continuation, choices, _, text = batchgen.score(ROWS, model="bundled", tokens=True)
    assert (continuation.num_tokens, continuation.is_greedy, continuation.continuation) == (4, True, CHOICES[0])
    assert (choices.best, choices.best_per_token, choices.best_per_byte, choices.is_tie) == (0, 0, 0, False)
    assert choices.choices is not None
    assert choices.choices[0].logprob == pytest.approx(continuation.logprob, abs=1e-3)
    assert text.logprobs is not None
    assert text.perplexity == pytest.approx(math.exp(-text.logprob / text.num_tokens))


def test_python_says_what_is_wrong_with_a_row() -> None:
    [bad] = batchgen.score([{"prompt": "a", "choices": []}], model="bundled")
    assert bad.error is not None
    assert (bad.best, bad.logprob) == (None, None)


# OpenAI.


def openai(custom_id: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "body": {"prompt": "My dog is", "echo": True, "max_tokens": 0, **body}}


def test_requests_that_echo_are_answered_in_kind() -> None:
    [answer] = records(score(stdin=lines([openai("a", logprobs=1)])))
    body = answer["response"]["body"]
    [choice] = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("My dog is", "length")
    assert choice["logprobs"]["tokens"] == ["My", " dog", " is"]
    assert choice["logprobs"]["text_offset"] == [0, 2, 6]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert all(number < 0 for number in choice["logprobs"]["token_logprobs"][1:])
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}


def test_requests_that_do_not_echo_are_refused_by_name() -> None:
    [answer] = records(score(stdin=lines([openai("a", max_tokens=5)])))
    assert "body.echo true and body.max_tokens 0" in answer["error"]["message"]
    [answer] = records(run(stdin=lines([openai("a")])))
    assert "use batchgen score" in answer["error"]["message"]


def test_a_terminal_shows_each_text(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = score("--format", "table").stdout
    assert shown.startswith("row ")
    assert "perplexity" in shown
    assert "*" in next(line for line in shown.splitlines() if "a very nice dog" in line and "*" in line)
