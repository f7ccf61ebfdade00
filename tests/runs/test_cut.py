"""Inputs cut into parts: wherever they are cut, the parts' rows are those of the whole files."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.errors import InputError, UsageError
from batchgen.formats.reading import ReadOptions, find_sources, read_requests
from batchgen.formats.templates import Template
from batchgen.records import Request, SamplingParams
from batchgen.runs.ray.cut import choose_part_rows, cut_file, make_parts
from batchgen.runs.ray.file_parts import number_ids, read_part
from batchgen.runs.ray.inputs import InputFile, find_files

PARAMS, OPTIONS = SamplingParams(), ReadOptions()
LINES = [
    b'{"prompt": "x", "id": 1}\n', b"nonsense\r\n", b"\n", b"  \n", b"\xff\n", '{"prompt": "\u2028é"}\n'.encode(),
    b'{"id": "no prompt"}\n',
]  # fmt: skip
RECORDS = [
    b"a,1,x\n", b"\n", b"   \n", b'"two\nlines",2,"a ""quoted"" b"\r\n', b'"never closed,3,x\n', b"too,few\n",
    b'"closed" badly,4,x\n', b"\xff,5,x\n",
]  # fmt: skip


def whole(files: Iterable[Path]) -> list[Request]:
    return list(read_requests(find_sources([str(file) for file in files]), PARAMS, OPTIONS))


def in_parts(files: Iterable[Path], every: int = 1, part_rows: int = 1, limit: int | None = None) -> list[Request]:
    cuts = [cut_file(file, OPTIONS, every) for file in find_files([str(file) for file in files])]
    parts = number_ids(make_parts(cuts, part_rows, limit), OPTIONS)
    return [row for part in parts for row in read_part(part, PARAMS, OPTIONS)]


@given(lines=st.lists(st.sampled_from(LINES), max_size=30), bom=st.booleans(), part_rows=st.integers(1, 9))
@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
def test_parts_of_lines_have_the_rows_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, lines: list[bytes], bom: bool, part_rows: int
) -> None:
    file = tmp_path_factory.mktemp("cut") / f"rows{suffix}"
    file.write_bytes(b"\xef\xbb\xbf" * bom + b"".join(lines) + b"the last")
    assert in_parts([file], part_rows, part_rows) == whole([file])


@given(records=st.lists(st.sampled_from(RECORDS), max_size=20), part_rows=st.integers(1, 9))
def test_parts_of_a_table_have_its_rows(
    tmp_path_factory: pytest.TempPathFactory, records: list[bytes], part_rows: int
) -> None:
    file = tmp_path_factory.mktemp("cut") / "rows.csv"
    file.write_bytes(b'\nprompt,"a header\nof two lines",note\n' + b"".join(records))
    assert in_parts([file], part_rows, part_rows) == whole([file])


def test_indices_run_on_over_files_and_a_packed_file_is_one_part(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"three\nfour\n\nfive\n"))
    (tmp_path / "c.txt").write_text("")
    (tmp_path / "d.jsonl").write_text('{"prompt": "six"}\n')
    cuts = [cut_file(file, OPTIONS, 1) for file in find_files([str(tmp_path)])]
    parts = make_parts(cuts, 1)
    assert [(Path(part.file.name).name, part.first_index, part.num_rows) for part in parts] == [
        ("a.txt", 0, 1),
        ("a.txt", 1, 1),
        ("b.txt.gz", 2, 3),
        ("d.jsonl", 5, 1),
    ]
    assert [cut.num_blanks for cut in cuts] == [1, 1, 0, 0]
    assert in_parts([tmp_path]) == whole([tmp_path])


def test_row_groups_of_parquet_are_parts(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "rows.parquet"
    table = pa.table({"prompt": [f"prompt {i}" for i in range(25)], "id": list(range(25))})
    parquet.write_table(table, file, row_group_size=10)
    cut = cut_file(*find_files([str(file)]), OPTIONS)
    assert [part.num_rows for part in make_parts([cut], 1)] == [10, 10, 5]
    assert [part.num_rows for part in make_parts([cut], 15)] == [20, 5]
    assert in_parts([file], part_rows=15) == whole([file])


def test_an_openai_batch_is_one_part_since_its_ids_must_differ(tmp_path: Path) -> None:
    file = tmp_path / "batch.jsonl"
    line = '{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}\n'
    file.write_text(line * 3)
    assert in_parts([file]) == whole([file])


def test_a_limit_ends_the_last_part(tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_text("row\n" * 20)
    assert in_parts([file], 4, 4, limit=10) == whole([file])[:10]


def test_an_id_that_came_in_an_earlier_part_or_file_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no ids here\n" * 3)
    (tmp_path / "b.jsonl").write_text('{"prompt": "x", "id": "same"}\n' * 3 + '{"prompt": "x", "id": 1}\n')
    (tmp_path / "c.csv").write_text("prompt,id\nx,same\nx,\nx,1\n")
    files = [tmp_path / name for name in ("a.txt", "b.jsonl", "c.csv")]
    rows = in_parts(files)
    assert [row.occurrence for row in rows] == [0, 0, 0, 0, 1, 2, 1, 3, 0, 2]
    assert rows == whole(files)


def test_counting_ids_needs_no_text_of_a_template(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("question,id\nwhy?,a\nhow?,a\n")
    options = ReadOptions(template=Template("{{ question }} {{ 1 / 0 }}"))
    parts = number_ids(make_parts([cut_file(*find_files([str(file)]), options, 1)], 1), options)
    assert [part.occurrences for part in parts] == [(), (1,)]


def test_rows_of_a_part_can_be_read_apart(tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_text("row\n" * 20)
    [part] = make_parts([cut_file(*find_files([str(file)]), OPTIONS)], 64)
    assert list(read_part(part, PARAMS, OPTIONS, 5, 7)) == whole([file])[5:7]


def test_a_file_is_known_by_all_its_bytes(tmp_path: Path) -> None:
    for number, content in enumerate([b"one\ntwo\n", gzip.compress(b"one\n") + b"\0", b""]):
        file = tmp_path / f"{number}.txt"
        file.write_bytes(content)
        cut = cut_file(InputFile(str(file), str(file)), OPTIONS)
        assert cut.digest == blake2b(content, digest_size=16).hexdigest()


def test_a_url_is_as_good_as_a_path() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/in/b.jsonl", b'{"prompt": "two"}\n')
    memory.pipe("/in/a.txt", b"one\n")
    memory.pipe("/in/readme.bin", b"no prompts")
    files = find_files(["memory://in"])
    assert [file.name for file in files] == ["memory:///in/a.txt", "memory:///in/b.jsonl"]
    assert find_files(["memory://in/*.jsonl"]) == files[1:]
    parts = make_parts([cut_file(file, OPTIONS) for file in files], 1)
    rows = [row for part in parts for row in read_part(part, PARAMS, OPTIONS)]
    assert [(row.index, row.prompt) for row in rows] == [(0, "one"), (1, "two")]


@pytest.mark.parametrize(
    ("given", "kind", "part"),
    [
        ("memory://nowhere/x.txt", InputError, "no prompt file at memory://nowhere/x.txt"),
        ("nonsense://x", UsageError, "nonsense://x cannot be reached"),
        ("-", UsageError, "--ray only reads files"),
    ],
)
def test_inputs_that_workers_cannot_read_are_refused(given: str, kind: type[Exception], part: str) -> None:
    with pytest.raises(kind, match=part):
        find_files([given])


@given(st.integers(0, 10**7), st.integers(1, 100))
def test_parts_are_neither_tiny_nor_huge(num_rows: int, num_workers: int) -> None:
    part_rows = choose_part_rows(num_rows, num_workers)
    assert 64 <= part_rows <= 4096
    assert part_rows % 64 == 0


def test_lines_are_numbered_as_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(["", '{"prompt": "a"}', "", "bad", "bad"]) + "\n")
    assert [row.source for row in in_parts([file])] == [f"{file}:{line}" for line in (2, 4, 5)]
