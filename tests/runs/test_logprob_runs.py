"""Runs with log-probabilities: from Python and the command line, by workers, kept in a store, resumed."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

import batchgen
from batchgen.records import Logprobs
from batchgen.runs.store import Store
from tests.support.command import records, run
from tests.support.results import result_of

RAIN = "It will rain in the\nI want to eat a big bowl of\nMy dog is\n"
LIKELY = Logprobs((1, 2), ("a", "\u20ac"), (-0.25, -9999.0), (((1, -0.25),), ()), (("a",), ()))


def test_a_stored_result_comes_back_with_them(tmp_path: Path) -> None:
    result = result_of(logprobs=LIKELY, cumulative_logprob=-9999.25)
    store = Store(tmp_path / "x.db")
    store.add(result)
    store.add(replace(result, sample_index=1, logprobs=None, cumulative_logprob=None))
    first, second = store.results()
    store.discard()
    assert first == result
    assert (second.logprobs, second.cumulative_logprob) == (None, None)


def test_a_database_shows_them_to_any_reader(tmp_path: Path) -> None:
    output = tmp_path / "out.db"
    assert run("-p", "My dog is", "--logprobs", 1, "-o", output).exit_code == 0
    connection = sqlite3.connect(output)
    [(total, cell)] = connection.execute("SELECT cumulative_logprob, logprobs FROM results")
    connection.close()
    assert total == pytest.approx(sum(json.loads(cell)["token_logprobs"]), abs=1e-5)


def test_a_record_names_the_tokens_that_were_generated() -> None:
    [row] = records(run("-p", "My dog is", "--logprobs", 2, "--ids"))
    found = row["logprobs"]
    assert found["token_ids"] == row["output_ids"]
    assert "".join(found["tokens"]) == row["text"]
    assert row["cumulative_logprob"] == pytest.approx(sum(found["token_logprobs"]), abs=1e-5)
    assert [len(best) for best in found["top"]] == [2] * 5


def test_tokens_of_a_stop_that_the_text_does_not_hold_are_there_too() -> None:
    [row] = records(run("-p", "My dog is", "--logprobs", 0, "--ids", "--stop", " nice"))
    assert row["text"] == " a very"
    assert row["logprobs"]["token_ids"] == row["output_ids"]
    assert row["logprobs"]["tokens"][-1] == " nice"


def test_a_row_may_ask_for_itself(tmp_path: Path) -> None:
    lines = [{"prompt": "My dog is", "sampling": {"logprobs": 3}}, {"prompt": "My dog is"}]
    first, second = records(run(stdin="".join(json.dumps(line) + "\n" for line in lines)))
    assert [len(best) for best in first["logprobs"]["top"]] == [3] * 5
    assert "logprobs" not in second
    assert first["text"] == second["text"]


def test_a_failed_row_has_none() -> None:
    [row] = records(run("--logprobs", 1, "--input-format", "jsonl", stdin='{"prompt": ""}\n'))
    assert row["error"]
    assert "logprobs" not in row


def test_python_has_them() -> None:
    [result] = batchgen.generate("My dog is", model="bundled", max_new_tokens=4, logprobs=1)
    assert result.logprobs is not None
    assert result.logprobs.token_ids == result.output_ids
    assert result.cumulative_logprob == result.logprobs.total


def test_workers_and_a_resumed_run_write_the_same(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    options = ("--logprobs", 1, "--keep-store")
    run("-o", whole, "--workers", 2, *options, stdin=RAIN)
    run("-o", part, *options, stdin=RAIN.splitlines()[0])
    assert run("-o", part, "--resume", *options, stdin=RAIN).exit_code == 0
    rows = ([json.loads(line) for line in path.read_text().splitlines()] for path in (whole, part))
    for one, other in zip(*rows, strict=True):
        assert one["logprobs"]["token_ids"] == other["logprobs"]["token_ids"]
        numbers = (row["logprobs"]["token_logprobs"] for row in (one, other))
        assert next(numbers) == pytest.approx(next(numbers), abs=1e-4)


def test_a_run_that_was_begun_without_them_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    run("-o", output, "--keep-store", stdin=RAIN)
    refused = run("-o", output, "--resume", "--logprobs", 1, stdin=RAIN)
    assert refused.exit_code == 1
    assert "was started without --logprobs, but now it is 1" in refused.stderr
