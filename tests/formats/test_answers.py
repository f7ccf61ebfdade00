"""The output of a run is read back as it was, whatever its format."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.errors import InputError
from batchgen.formats.answers import read_answers
from batchgen.formats.writing import WRITERS, WriteOptions
from batchgen.records import Logprobs, Result
from tests.support.results import TEXT, result_of

FAILED = result_of("", index=5, finish_reason="error", error="rows.jsonl:6: empty", output_ids=(), id=None)


def written(folder: Path, form: str, results: Iterable[Result], *, ids: bool = True) -> Path:
    file = folder / f"out.{form}"
    with file.open("wb") as stream:
        WRITERS[form](results, stream, WriteOptions(ids=ids))
    return file


@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv", "parquet"])
def test_results_come_back(tmp_path: Path, form: str) -> None:
    results = [result_of("=1+1\n\t'x'"), FAILED, result_of("'tis", index=6, sample_index=1)]
    assert list(read_answers(written(tmp_path, form, results), form)) == results


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
@given(text=TEXT, prompt=TEXT)
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, form: str, text: str, prompt: str) -> None:
    folder = tmp_path_factory.mktemp("answers")
    if text.startswith("'") or prompt.startswith("'"):  # in CSV it may protect a formula
        return
    result = result_of(text, prompt=prompt)
    assert list(read_answers(written(folder, form, [result]), form)) == [result]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_logprobs_come_back(tmp_path: Path, form: str) -> None:
    logprobs = Logprobs((845, 1611), (" very", " kind"), (-0.5, -1.5), (((845, -0.5),), ((1611, -1.5), (7, -2.0))))
    result = result_of(logprobs=logprobs, cumulative_logprob=-2.0)
    assert list(read_answers(written(tmp_path, form, [result]), form)) == [result]
    [row] = read_answers(written(tmp_path, "csv", [result]), "csv")
    assert row.cumulative_logprob == -2.0


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_an_inputs_own_columns_are_metadata_again(tmp_path: Path, form: str) -> None:
    result = result_of(metadata={"source": "web", "topic": "dogs", "model": "mine"})
    other = result_of(index=5, metadata={"more": [1, 2]})
    first, second = read_answers(written(tmp_path, form, [result, other]), form)
    assert first == result
    assert second.metadata["more"] == [1, 2]


def test_without_ids_there_are_none(tmp_path: Path) -> None:
    result = result_of()
    [back] = read_answers(written(tmp_path, "jsonl", [result], ids=False), "jsonl")
    assert back == replace(result, input_ids=(), output_ids=(), batch_index=None, padded_length=None)


def test_answers_of_a_batch_come_back_with_their_failures_by_index(tmp_path: Path) -> None:
    samples = [result_of(index=0, sample_index=sample, endpoint="/v1/completions") for sample in (0, 1)]
    file = written(tmp_path, "openai-batch", [*samples, replace(samples[0], index=2)])
    failed = result_of("", index=1, finish_reason="error", error="empty", endpoint="/v1/completions")
    (tmp_path / "failed").mkdir()
    failures = written(tmp_path / "failed", "openai-batch", [failed])
    back = list(read_answers(file, "openai-batch", failures))
    assert [(result.index, result.sample_index, result.id) for result in back] == [
        (0, 0, "d1"), (0, 1, "d1"), (1, 0, "d1"), (2, 0, "d1"),
    ]  # fmt: skip
    assert [result.error for result in back] == [None, None, "empty", None]
    assert back[0].text == " very kind"


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("jsonl", '{"prompt": "x"}\n'),
        ("jsonl", "nonsense\n"),
        ("csv", "id,prompt\n1,x\n"),
        ("csv", "id,text,finish_reason\n1,x\n"),
        ("parquet", "nonsense"),
        ("text", "a\n"),
    ],
)
def test_what_is_no_output_is_refused_by_name(tmp_path: Path, form: str, content: str) -> None:
    file = tmp_path / "mine"
    file.write_text(content)
    with pytest.raises(InputError, match="mine"):
        list(read_answers(file, form))


@given(st.sampled_from(["=a", "+a", "-a", "@a", "\ta", "a'", "1", "-1"]))
def test_apostrophes_are_taken_off_that_were_put_before_formulas(cell: str) -> None:
    from batchgen.formats.delimited import neutral, plain_cell

    assert plain_cell(neutral(cell)) == cell
