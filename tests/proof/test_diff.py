"""What differs between two outputs: which rows are joined, where they diverge, and how many."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchgen.formats.writing import WRITERS, WriteOptions
from batchgen.proof import pairs
from batchgen.proof.diff import Comparison, RowDifference, diff_results, likely_causes
from batchgen.proof.pairs import join_results
from batchgen.records import Logprobs, Result
from batchgen.render.diff import buckets
from tests.support.command import failure, invoke, run
from tests.support.results import result_of


def rows(count: int = 3, **changes: Any) -> list[Result]:
    return [result_of(f" answer {index}", index=index, id=f"r{index}", **changes) for index in range(count)]


def compared(a: Iterable[Result], b: Iterable[Result], **options: Any) -> tuple[list[RowDifference], Comparison]:
    comparison = Comparison()
    return list(diff_results(a, b, comparison, **options)), comparison


def names(joined: Iterable[pairs.Pair]) -> list[tuple[str | None, str | None]]:
    return [(a and a.text, b and b.text) for a, b in joined]


# Joining.


@pytest.mark.parametrize("most_held", [0, 2, 4096])
def test_rows_are_joined_by_id_whatever_their_order(monkeypatch: pytest.MonkeyPatch, most_held: int) -> None:
    monkeypatch.setattr(pairs, "MOST_HELD", most_held)
    a, b = rows(50), rows(50)
    random.Random(1).shuffle(b)
    joined = list(join_results(a, b[:-1]))
    assert sorted(left.index for left, _ in joined if left) == list(range(50))
    assert all(right is None or left == right for left, right in joined)
    assert sum(right is None for _, right in joined) == 1


@pytest.mark.parametrize("most_held", [0, 4096])
def test_of_equal_ids_the_first_is_joined_with_the_first(monkeypatch: pytest.MonkeyPatch, most_held: int) -> None:
    monkeypatch.setattr(pairs, "MOST_HELD", most_held)
    a = [result_of(text, id=name) for text, name in (("1", "x"), ("2", "y"), ("3", "x"))]
    b = [result_of(text, id=name) for text, name in (("2", "y"), ("1", "x"), ("3", "x"), ("4", "x"))]
    assert Counter(names(join_results(a, b))) == Counter([("1", "1"), ("2", "2"), ("3", "3"), (None, "4")])


def test_ids_are_compared_as_text_and_samples_apart() -> None:
    a = [result_of("1", id=7), result_of("2", id=7, sample_index=1), result_of("3", id=None, index=9)]
    b = [result_of("2", id="7", sample_index=1), result_of("1", id="7"), result_of("3", id="9")]
    assert Counter(names(join_results(a, b))) == Counter([("1", "1"), ("2", "2"), ("3", "3")])


def test_nothing_with_nothing_is_nothing() -> None:
    assert list(join_results([], [])) == []


# Comparing.


def test_equal_rows_are_the_same_wherever_they_ran() -> None:
    found, comparison = compared(rows(), rows(batch_index=9, padded_length=99, source="elsewhere:1"))
    assert (found, comparison.same, comparison.is_same) == ([], 3, True)


def test_where_rows_part_is_a_token_and_a_character() -> None:
    a = result_of(" very kind", output_ids=(1, 2, 3))
    [found], comparison = compared([a], [replace(a, text=" very bad", output_ids=(1, 2, 4, 5), num_output_tokens=4)])
    assert (found.id, found.token, found.character, found.parts) == ("d1", 2, 6, ("text", "tokens"))
    assert (comparison.tokens_a, comparison.tokens_b, comparison.first_tokens) == (2, 4, Counter({2: 1}))


def test_without_token_ids_there_is_no_token() -> None:
    a = result_of(" very kind")
    [found], _ = compared([a], [replace(a, text=" very", output_ids=())])
    assert (found.token, found.character) == (None, 5)


def test_tokens_that_give_one_text_differ() -> None:
    a = result_of()
    [found], _ = compared([a], [replace(a, output_ids=(845, 7))])
    assert (found.token, found.character, found.parts) == (1, None, ("tokens",))


def test_a_row_that_failed_differs_from_one_that_did_not() -> None:
    a = result_of()
    failed = replace(a, text="", finish_reason="error", error="p.txt:1: empty", output_ids=(), num_output_tokens=0)
    [found], comparison = compared([a], [failed])
    assert "error" in found.parts
    assert comparison.finish_reasons == Counter({("length", "error"): 1})
    assert compared([failed], [replace(failed, error="q.txt:1: empty")])[0] == []


def logprobs(*values: float) -> Logprobs:
    ids = tuple(range(len(values)))
    return Logprobs(ids, tuple(map(str, ids)), values, tuple(() for _ in values))


def test_scores_may_be_apart_by_the_tolerance() -> None:
    a = result_of(logprobs=logprobs(-0.5, -1.0), cumulative_logprob=-1.5)
    b = replace(a, logprobs=logprobs(-0.5, -1.01), cumulative_logprob=-1.51)
    [found], comparison = compared([a], [b])
    assert (found.parts, found.score) == (("scores",), pytest.approx(0.01))
    assert compared([a], [b], tolerance=0.02)[0] == []
    assert comparison.compared_scores == 1
    assert compared([replace(a, logprobs=None)], [replace(b, logprobs=None)])[0][0].score == pytest.approx(0.01)


def test_what_cannot_be_compared_says_why() -> None:
    assert compared(rows(), [result_of(id="other")])[1].problem == "they have no rows in common"
    assert "different prompts" in str(compared(rows(), rows(prompt="Once"))[1].problem)
    assert compared([], [])[1].problem is None


def test_causes_are_what_the_runs_were_made_of() -> None:
    a = {
        "options": {"--dtype": "float32", "--seed": 1},
        "machine": {"memory_bytes": 1},
        "engine": {"engine": "x", "rows": 8},
    }
    b = {
        "options": {"--dtype": "bfloat16", "--seed": 1},
        "machine": {"memory_bytes": 2},
        "engine": {"engine": "y", "rows": 9},
    }
    causes = [(cause.name, cause.a, cause.b) for cause in likely_causes(a, b)]
    assert causes == [("dtype", "float32", "bfloat16"), ("engine", "x", "y"), ("engine's rows", 8, 9)]
    assert likely_causes({}, b) == []


def test_places_are_counted_in_widths_that_double() -> None:
    assert list(buckets(Counter({0: 1, 2: 1, 3: 1, 1000: 2}))) == [("0", 1), ("2-3", 2), ("512-1023", 2)]


# The command.


def written(folder: Path, name: str, form: str, results: Iterable[Result], *, ids: bool = True) -> Path:
    file = folder / name
    with file.open("wb") as stream:
        WRITERS[form](results, stream, WriteOptions(ids=ids))
    return file


@pytest.mark.parametrize("name", ["b.jsonl", "b.csv", "b.tsv", "b.parquet"])
def test_formats_may_be_mixed(tmp_path: Path, name: str) -> None:
    hard = [
        result_of("=1+1\n\t\\n", index=5, id="=x"),
        result_of("'=1", index=6, id="f"),
        result_of("half \ud83e", id="h"),
    ]
    a = written(tmp_path, "a.jsonl", "jsonl", [*rows(), *hard])
    b = written(tmp_path, name, name.rpartition(".")[2], [*rows(), *hard])
    assert invoke("diff", a, b).exit_code == 0
    other = [replace(row, text=row.text + "!") for row in rows()]
    b = written(tmp_path, name, name.rpartition(".")[2], [*other, *hard], ids=False)
    assert invoke("diff", a, b).exit_code == 4


def test_json_has_counts_and_each_row(tmp_path: Path) -> None:
    changed = [*rows()[:1], replace(rows()[1], text=" answer X", output_ids=(845, 7)), result_of(id="new")]
    a, b = written(tmp_path, "a.jsonl", "jsonl", rows()), written(tmp_path, "b.jsonl", "jsonl", changed)
    said = invoke("diff", a, b, "--json")
    facts = json.loads(said.stdout)
    assert said.exit_code == 4
    assert [facts[name] for name in ("compared", "same", "different", "only_in_a", "only_in_b")] == [2, 1, 1, 1, 1]
    [row] = facts["differences"]
    assert [row[name] for name in ("id", "sample_index", "token", "character")] == ["r1", 0, 1, 8]


def test_the_summary_says_how_many_differ_and_how_many_are_only_in_one(tmp_path: Path) -> None:
    changed = [replace(rows()[0], text=" answer"), rows()[1]]
    a, b = written(tmp_path, "a.jsonl", "jsonl", rows()), written(tmp_path, "b.jsonl", "jsonl", changed)
    said = invoke("diff", a, b)
    assert "1 of 2 rows differ (50.0% the same), 1 only in A, 0 only in B" in said.stdout
    assert "row r0: first difference: character 7" in said.stdout
    assert "only in A      r2" in said.stdout
    assert "row r0" not in invoke("diff", a, b, "--limit", 0).stdout


def test_stores_are_compared_too_and_their_manifests_tell_the_cause(tmp_path: Path) -> None:
    for name, options in (("a.db", []), ("b.jsonl", ["--max-new-tokens", 4])):
        assert run("-p", "My dog is", "-o", tmp_path / name, *options).exit_code == 0
    said = invoke("diff", tmp_path / "a.db", tmp_path / "b.jsonl")
    assert said.exit_code == 4
    assert "likely cause   max-new-tokens 5 / 4" in said.stdout


def test_what_is_no_output_is_not_comparable(tmp_path: Path) -> None:
    a = written(tmp_path, "a.jsonl", "jsonl", rows())
    assert "not comparable" in failure(invoke("diff", a, written(tmp_path, "b.txt", "text", rows())), 2)
    assert "does not exist" in failure(invoke("diff", a, tmp_path / "c.jsonl"), 1)
    other = written(tmp_path, "d.jsonl", "jsonl", [result_of(id="other")])
    assert invoke("diff", a, other).exit_code == 2


SCORED = [
    {"id": "t", "text": "My dog is"},
    {"id": "q", "prompt": "My dog is", "choices": [" a very nice dog", " Tuesday"], "answer": 0},
    {"id": "c", "prompt": "My dog", "continuation": " is"},
    {"id": "bad", "text": ""},
]


def test_scores_are_compared_whatever_they_are_written_to(tmp_path: Path) -> None:
    stdin = "".join(json.dumps(row) + "\n" for row in SCORED)
    names = ("s.jsonl", "s.csv", "s.parquet", "s.db")
    for name in names:
        assert invoke("score", "--model", "bundled", "-o", tmp_path / name, stdin=stdin).exit_code == 3
    for name in names[1:]:
        said = invoke("diff", tmp_path / "s.jsonl", tmp_path / name)
        assert said.exit_code == 0, said.stdout + said.stderr
        assert "0 of 4 rows differ" in said.stdout
    lines = (tmp_path / "s.jsonl").read_text().splitlines()
    other = json.loads(lines[1])
    other["choices"][1]["logprob"] += 0.25
    (tmp_path / "o.jsonl").write_text("\n".join([lines[0], json.dumps(other), *lines[2:]]) + "\n")
    words = ("diff", tmp_path / "s.jsonl", tmp_path / "o.jsonl", "--json")
    [row] = json.loads(invoke(*words).stdout)["differences"]
    assert (row["id"], row["parts"], row["score"]) == ("q", ["scores"], 0.25)
    assert invoke(*words, "--tolerance", 0.3).exit_code == 0
