"""Folders and their ignored files, whole files, similar names, columns of templates and options."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from batchgen.errors import InputError, UsageError
from batchgen.formats.nearby import near_file
from batchgen.formats.reading import (
    ReadOptions,
    Source,
    check_beginnings,
    check_read_options,
    count_rows,
    find_sources,
    read_delimiter,
    read_requests,
)
from batchgen.formats.templates import Template
from tests.support.reading import read


def make_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name}\n")


def found(folder: Path, **options: Any) -> tuple[list[str], list[str]]:
    """Return which files of a folder are read, and what is said about the others."""
    said: list[str] = []
    sources = find_sources([str(folder)], say=said.append, **options)
    return [str(source.path.relative_to(folder)) for source in sources if source.path], said


# Folders.


def test_a_folder_says_which_files_it_leaves_out(tmp_path: Path) -> None:
    make_files(tmp_path, "a.txt", "notes.md", "b.png", ".hidden.txt", ".git/c.txt")
    names, [said] = found(tmp_path)
    assert names == ["a.txt"]
    assert (
        said
        == f"{tmp_path}: 2 files (b.png, notes.md) not read, because the suffix is unknown (name them, or use a glob)"
    )


def test_a_folder_says_which_folders_it_leaves_out(tmp_path: Path) -> None:
    make_files(tmp_path, "a.txt", "more/b.txt", "deep/er/c.txt")
    names, [said] = found(tmp_path)
    assert names == ["a.txt"]
    assert said == f"{tmp_path}: 2 subfolders (deep, more) not read (add --recursive)"


def test_recursive_reads_the_folders_in_a_folder(tmp_path: Path) -> None:
    make_files(tmp_path, "b.txt", "a/z.txt", "a/b/c.jsonl", "a/.hidden/d.txt", "a/x.bin")
    (tmp_path / "round").symlink_to(tmp_path)
    names, [said] = found(tmp_path, recursive=True)
    assert names == ["a/b/c.jsonl", "a/z.txt", "b.txt"]
    assert "1 file (x.bin) not read" in said
    assert "1 subfolder (round) not read (links are not followed)" in said


def test_a_folder_of_known_files_says_nothing(tmp_path: Path) -> None:
    make_files(tmp_path, "a.txt", "b.json")
    assert found(tmp_path) == (["a.txt", "b.json"], [])


def test_a_folder_without_prompt_files_says_what_it_has(tmp_path: Path) -> None:
    make_files(tmp_path, "notes.md", "more/a.txt")
    with pytest.raises(InputError, match=r"has no prompt files .*: 1 file \(notes.md\).*1 subfolder \(more\)"):
        find_sources([str(tmp_path)])


# Whole files.


def whole(path: Path, content: bytes, **options: Any) -> list[Any]:
    return read(path, content, whole_files=True, **options)


@pytest.mark.parametrize(
    ("content", "prompt"),
    [
        (b"My dog is\n\n  very\n", "My dog is\n\n  very"),
        (b"one", "one"),
        (b"a\r\nb\r\n", "a\r\nb"),
        (b"a\n\n", "a\n"),
        (b"\xef\xbb\xbfa\n", "a"),
        (b'{"prompt": "a"}\n', '{"prompt": "a"}'),
        (b"", ""),
    ],
)
def test_a_whole_file_is_a_prompt(tmp_path: Path, content: bytes, prompt: str) -> None:
    [request] = whole(tmp_path / "a.jsonl", content)
    assert (request.prompt, request.source, request.error) == (prompt, "a.jsonl:1", None)


def test_a_whole_file_may_be_packed_or_seen_by_a_template(tmp_path: Path) -> None:
    [request] = whole(tmp_path / "a.txt.gz", gzip.compress(b"My\ndog\n"), template=Template("<{{ text }}>"))
    assert request.prompt == "<My\ndog>"


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"a\xff", "not UTF-8 at byte 1 of the file"), (b"\x89PNG\r\n\0", "the file is a PNG image")],
)
def test_a_whole_file_that_is_no_text_fails_alone(tmp_path: Path, content: bytes, problem: str) -> None:
    [request] = whole(tmp_path / "a.png", content)
    assert problem in (request.error or "")


def test_whole_files_of_a_folder_are_all_its_files(tmp_path: Path) -> None:
    make_files(tmp_path, "a.txt", "b.md", "c")
    options = ReadOptions(whole_files=True)
    sources = find_sources([str(tmp_path)], options=options)
    assert [request.prompt for request in read_requests(sources, options=options)] == ["a.txt", "b.md", "c"]
    assert count_rows(sources, options=options) == 3


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"whole_files": True, "field": "x"}, "field selects a column"),
        ({"whole_files": True, "delimiter": ";"}, "delimiter selects a column"),
        ({"whole_files": True, "input_format": "csv"}, "whole_files reads text, not csv"),
        ({"delimiter": ";;"}, "delimiter ';;' is not a single separator character"),
        ({"delimiter": '"'}, "is not a single separator character"),
        ({"delimiter": ""}, "is not a single separator character"),
        ({"delimiter": ";", "input_format": "jsonl"}, "delimiter only works with CSV and TSV"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        check_read_options(ReadOptions(**options), str)


@pytest.mark.parametrize(("given", "sign"), [(r"\t", "\t"), ("tab", "\t"), (";", ";"), ("\t", "\t"), (None, None)])
def test_a_delimiter_is_read_as_it_is_typed(given: str | None, sign: str | None) -> None:
    assert read_delimiter(given) == sign


# Names.


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("promts/rain.txt", "prompts/rain.txt"),
        ("prompts/rian.txt", "prompts/rain.txt"),
        ("promts/rian.txt", "prompts/rain.txt"),
        ("Prompts/Rain.TXT", "prompts/rain.txt"),
        ("prompts/rain.jsonl", "prompts/rain.txt"),
        ("prompts/rain", "prompts/rain.txt"),
        ("rain.txt", "prompts/rain.txt"),
        ("prompt", "prompts"),
        ("My dog is", None),
        ("/nowhere/at/all.txt", None),
        ("zebra.csv", None),
        ("a\0b", None),
    ],
)
def test_a_near_name_is_suggested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, near: str | None
) -> None:
    make_files(tmp_path, "prompts/rain.txt", "other.csv", ".hidden/rain.txt")
    monkeypatch.chdir(tmp_path)
    assert near_file(given) == near


def test_a_missing_file_s_error_has_the_near_name(tmp_path: Path) -> None:
    make_files(tmp_path, "prompts/rain.txt")
    with pytest.raises(InputError, match=r"there is no file .*/promts/rain\.txt: did you mean .*/prompts/rain\.txt\?"):
        find_sources([str(tmp_path / "promts" / "rain.txt")])


@pytest.mark.parametrize("given", ["My dog is", "What is rain?"])
def test_a_prompt_in_the_place_of_a_file_is_told_where_to_go(given: str) -> None:
    with pytest.raises(InputError, match=r"\(to give a prompt directly, use -p\)"):
        find_sources([given])


@pytest.mark.parametrize("url", ["s3://bucket/x.jsonl", "https://host/*.txt", "hf://datasets/x", "GS://a/b?c"])
def test_a_url_is_one_clear_line(url: str) -> None:
    with pytest.raises(InputError, match=r"is a URL, which is only supported with --ray: download it first"):
        find_sources([url])


# Empty input, and columns that are missing or look like options.


def said_of(path: Path, content: str, **options: Any) -> list[str]:
    path.write_text(content)
    said: list[str] = []
    list(read_requests([Source(path.name, path)], options=ReadOptions(**options), say=said.append))
    return said


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", ""), ("a.jsonl", "\n\n"), ("a.csv", "prompt\n"), ("a.json", "[]")]
)
def test_an_empty_file_is_said(tmp_path: Path, name: str, content: str) -> None:
    assert said_of(tmp_path / name, content) == [f"{name} is empty: it has no prompts"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"prompt": "a", "max_tokens": 2, "kind": "a"}\n{"prompt": "b", "max_tokens": 2}', ["max_tokens"]),
        ('{"prompt": "a", "temperature": 0.5, "top-p": "0.9"}', ["temperature", "top-p"]),
        ('{"prompt": "a"}\n{"prompt": "b", "stop": ["x"]}', ["stop"]),
        ('{"prompt": "a", "Max_New_Tokens": 5}', ["Max_New_Tokens"]),
    ],
)
def test_columns_like_options_are_said_once(tmp_path: Path, content: str, named: list[str]) -> None:
    [said] = said_of(tmp_path / "p.jsonl", content)
    assert said.startswith("p.jsonl: the column")
    assert all(name in said for name in named)
    assert "sampling" in said
    assert "kind" not in said


@pytest.mark.parametrize(
    "row",
    [
        '{"prompt": "a", "kind": 1, "n": 2}',
        '{"prompt": "a", "seed": "of a sunflower"}',
        '{"prompt": "a", "stop": null, "top_k": true}',
        '{"prompt": "a", "sampling": {"max_new_tokens": 3}}',
        '{"custom_id": "a", "max_tokens": 3, "body": {"prompt": "a", "max_tokens": 3}}',
    ],
)
def test_other_columns_are_not_said(tmp_path: Path, row: str) -> None:
    assert said_of(tmp_path / "p.jsonl", row) == []


def test_a_column_that_the_template_uses_is_no_option(tmp_path: Path) -> None:
    template = Template("It is {{ temperature }} degrees.")
    assert said_of(tmp_path / "p.csv", "temperature\n20\n", template=template) == []


@pytest.mark.parametrize(
    ("name", "content", "template", "problem"),
    [
        (
            "k.csv",
            "kind,who\na,b\n",
            "{{ knd }} of {{ who }}",
            "k.csv has no column knd, which --template uses, but kind, who",
        ),
        ("k.csv", "kind,who\na,b\n", "{{ row.knd }}{{ row['wh o'] }}", "k.csv has no column knd and wh o"),
        (
            "k.csv",
            "kind;who\na;b\n",
            "{{ kind }}",
            "but kind;who; it looks separated by semicolons: add --delim",
        ),
        (
            "k.txt",
            "a\n",
            "{{ knd }}",
            "k.txt is plain text, with the columns text and prompt only, and",
        ),
    ],
)
def test_a_template_s_unknown_column_stops_at_once(
    tmp_path: Path, name: str, content: str, template: str, problem: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as error:
        check_beginnings([Source(name, tmp_path / name)], ReadOptions(template=Template(template)))
    assert problem in str(error.value)


@pytest.mark.parametrize(
    "template", ["{{ x | default('') }}", "{% if x is defined %}{{ x }}{% endif %}", "{{ row.get('x') }}", "{{ row }}",
                 "{% if 'x' in row %}{{ row.x }}{% endif %}", "{% set x = kind %}{{ x }}"],
)  # fmt: skip
def test_a_column_that_a_template_can_do_without_may_be_missing(tmp_path: Path, template: str) -> None:
    [request] = read(tmp_path / "k.csv", b"kind\na\n", template=Template(template))
    assert request.error is None
