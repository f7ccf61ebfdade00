"""The command line, in one process: options, formats, errors, exit codes."""

from __future__ import annotations

import gzip
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import batchgen
import batchgen.model.stops
from batchgen.model import Model
from batchgen.text import UNSAFE
from tests.support.command import failure, invoke, records, run
from tests.support.models import decide_alone
from tests.support.rows import RAIN

FIELDS = [
    "id", "index", "sample_index", "prompt", "text", "finish_reason",
    "num_prompt_tokens", "num_output_tokens", "error", "metadata", "model", "source",
]  # fmt: skip


@pytest.fixture
def rain(tmp_path: Path) -> Path:
    path = tmp_path / "rain.txt"
    path.write_text("".join(f"{prompt}\n" for prompt in RAIN))
    return path


@pytest.fixture
def dog(said: Callable[[str, int], str]) -> str:
    return said("My dog is", 5)


# What goes in and what comes out.


def test_into_a_pipe_goes_one_complete_record_a_row(rain: Path, dog: str) -> None:
    result = run(rain)
    assert result.exit_code == 0
    assert [list(record) for record in records(result)] == [FIELDS] * 3
    assert [record["prompt"] for record in records(result)] == RAIN
    assert records(result)[2] == {
        "id": "2", "index": 2, "sample_index": 0, "prompt": "My dog is", "text": dog,
        "finish_reason": "length", "num_prompt_tokens": 3, "num_output_tokens": 5, "error": None, "metadata": {},
        "model": "bundled", "source": f"{rain}:3",
    }  # fmt: skip


def test_ids_add_the_batch(rain: Path, bundled: Model) -> None:
    record = records(run(rain, "--ids"))[2]
    assert list(record) == [*FIELDS[:-1], "input_ids", "output_ids", "batch_index", "padded_length", "source"]
    assert record["input_ids"] == [3666, 3290, 318]
    assert record["output_ids"] == decide_alone(bundled, "My dog is", 5)
    assert (record["batch_index"], record["padded_length"]) == (0, 8)


def test_standard_input_is_read_when_nothing_else_is_named() -> None:
    assert records(run(stdin="My dog is\n"))[0]["prompt"] == "My dog is"


def test_a_dash_is_standard_input_among_files(rain: Path) -> None:
    assert [r["index"] for r in records(run(rain, "-", stdin="One\n\nTwo\n"))] == [0, 1, 2, 3, 4]


def test_prompts_on_the_command_line_leave_standard_input_alone() -> None:
    assert [r["prompt"] for r in records(run("-p", "One", "-p", "Two", stdin="Three\n"))] == ["One", "Two"]


def test_json_lines_keep_their_id_and_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 7, "question": "My dog is", "topic": "pets", "tags": ["a"]}\n')
    [record] = records(run(path, "--field", "question"))
    assert (record["id"], record["metadata"]) == (7, {"topic": "pets", "tags": ["a"]})


def test_samples_are_numbered() -> None:
    result = run("-p", "My dog is", "--temperature", 1, "--num-samples", 3)
    assert [(r["index"], r["sample_index"]) for r in records(result)] == [(0, 0), (0, 1), (0, 2)]


def test_limit_stops_reading(rain: Path) -> None:
    assert len(records(run(rain, "--limit", 2))) == 2


def test_no_rows_are_no_error() -> None:
    result = run(stdin="")
    assert (result.exit_code, result.stdout) == (0, "")


def test_text_is_the_continuations_alone(rain: Path, said: Callable[[str, int], str]) -> None:
    assert run(rain, "--format", "text", "--limit", 1).stdout == said(RAIN[0], 5) + "\n"


def test_a_table_has_the_padded_ids_and_masks_of_the_article(rain: Path) -> None:
    table = " ".join(run(rain, "--format", "table").stdout.split())
    for row in (
        "50256 50256 50256 1026 481 6290 287 262", "0 0 0 1 1 1 1 1",
        "40 765 284 4483 257 1263 9396 286", "1 1 1 1 1 1 1 1",
        "50256 50256 50256 50256 50256 3666 3290 318", "0 0 0 0 0 1 1 1",
    ):  # fmt: skip
        assert row in table


def test_python_gives_the_same_records(rain: Path) -> None:
    results = batchgen.generate(RAIN, "bundled", max_new_tokens=5)
    assert [r.text for r in results] == [r["text"] for r in records(run(rain))]


def test_special_text_is_text_unless_trusted() -> None:
    plain, special = (
        records(run("-p", "a <|endoftext|>", *flags))[0]["num_prompt_tokens"] for flags in ([], ["--parse-special"])
    )
    assert plain > special


# stderr.


def test_the_summary_is_one_line(rain: Path) -> None:
    [line] = run(rain).stderr.splitlines()
    for part in (
        "3 rows",
        "16 prompt + 15 new tokens",
        "tokens/s",
        "padding 33%",
        "1 batch",
        "bundled",
        "cpu",
        "float32",
    ):
        assert part in line


def test_the_summary_counts_blank_lines() -> None:
    assert "2 blank lines skipped" in run(stdin="One\n\n  \nTwo\n").stderr


def test_quiet_is_silent(rain: Path) -> None:
    result = invoke("run", rain, "--quiet", "--max-new-tokens", 2)
    assert (result.exit_code, result.stderr) == (0, "")


def test_for_programs_all_of_stderr_is_json(rain: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(rain.read_text() + "x " * 2000)
    done = invoke("run", prompts, "--max-new-tokens", 2, "--progress", "json", "-o", tmp_path / "out.jsonl")
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.exit_code == 3
    assert [event["event"] for event in events][-4:] == ["message", "message", "error", "end"]
    progress = [event for event in events if event["event"] == "progress"]
    assert (progress[-1]["done"], progress[-1]["total"], progress[-1]["failed"]) == (4, 4, 1)
    end = events[-1]
    assert (end["state"], end["exit_code"], end["stats"]["rows"]) == ("complete", 3, 4)
    assert end["written"] == [str(tmp_path / "out.jsonl")]


def test_an_error_is_json_for_programs_too(tmp_path: Path) -> None:
    done = invoke("run", tmp_path / "nowhere.txt", "--progress", "json", "--quiet")
    assert done.exit_code == 1
    assert json.loads(done.stderr) == {"event": "error", "text": f"there is no file {tmp_path}/nowhere.txt"}


def test_what_libraries_log_or_warn_does_not_appear(rain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = batchgen.model.stops.decode

    def noisy(*arguments: Any) -> str:
        logging.getLogger("transformers").error("a line of their own")
        warnings.warn("another", stacklevel=1)
        return decode(*arguments)

    monkeypatch.setattr(batchgen.model.stops, "decode", noisy)
    result = run(rain, "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")


def test_falling_back_to_the_bundled_model_is_said_once() -> None:
    lines = invoke("run", "-p", "My dog is", "--max-new-tokens", 2).stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("batchgen: warning: gpt2 is not in the local cache")


# Rows that fail.


def test_bad_rows_are_records_and_the_others_go_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": ""}\n{"prompt": "My dog is"}\nnonsense\n')
    result = run(path)
    assert result.exit_code == 3
    assert [r["finish_reason"] for r in records(result)] == ["error", "length", "error"]
    assert f"{path}:3: not valid JSON" in records(result)[2]["error"]
    assert f"2 of 3 rows failed, the first with id 0: {path}:1: the prompt is empty" in result.stderr


def test_an_over_long_prompt_fails_alone() -> None:
    result = run("-p", "rain " * 1100, "-p", "My dog is")
    assert result.exit_code == 3
    assert [r["finish_reason"] for r in records(result)] == ["error", "length"]
    assert "1024 positions" in records(result)[0]["error"]


def test_truncating_keeps_the_right_end_and_says_so() -> None:
    prompt = "rain " * 1100 + "My dog is"
    result = run("-p", prompt, "--too-long", "truncate")
    [record] = records(result)
    assert result.exit_code == 0
    assert (record["num_prompt_tokens"], record["prompt"], record["error"]) == (1019, prompt, None)
    assert record["metadata"]["batchgen_truncated_tokens"] > 0


# The output file.


def test_an_output_file_is_written_whole(rain: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    result = run(rain, "-o", output)
    assert (result.exit_code, result.stdout) == (0, "")
    assert len(output.read_text().splitlines()) == 3
    assert sorted(tmp_path.iterdir()) == [tmp_path / ".out.jsonl.run", output, rain]


def test_an_existing_output_is_kept(rain: Path, tmp_path: Path, said: Callable[[str, int], str]) -> None:
    output = tmp_path / "out.txt"
    output.write_text("precious")
    assert "exists: add --overwrite" in failure(run(rain, "-o", output), 1)
    assert output.read_text() == "precious"
    assert run(rain, "-o", output, "--overwrite").exit_code == 0
    assert output.read_text().startswith(said(RAIN[0], 5))


def test_a_run_that_fails_before_its_first_row_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes("text".encode("utf-16"))
    failure(run(tmp_path / "in.txt", "-q", "-o", tmp_path / "out.jsonl"), 1)
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_an_output_that_is_an_input_is_refused(rain: Path) -> None:
    assert "is also an input" in failure(run(rain, "-o", rain, "--overwrite"), 1)


def test_an_output_in_no_folder_is_refused(tmp_path: Path) -> None:
    assert "there is no folder" in failure(run("-p", "x", "-o", tmp_path / "no" / "out.jsonl"), 1)
    for words in (["-o", "s3://bucket/out.jsonl"], ["--stats", "gs://bucket/stats.json"]):
        assert f"{words[1]} is a URL: write to a file on this machine" in failure(run("-p", "x", *words), 1)


def test_a_folder_as_output_is_refused(tmp_path: Path) -> None:
    assert "is a folder" in failure(run("-p", "x", "-o", tmp_path), 1)


def test_a_dash_as_output_is_standard_output() -> None:
    assert len(records(run("-p", "My dog is", "-o", "-"))) == 1


def test_rows_that_may_depend_on_their_batch_are_said_to() -> None:
    assert "depend" not in run("-p", "My dog is", "--dtype", "bfloat16").stderr
    inexact = run("-p", "My dog is", "--no-exact").stderr
    assert "float32 (rows may depend on the batch: exactness is off)" in inexact


def test_an_unknown_suffix_is_a_usage_error(tmp_path: Path) -> None:
    assert "unknown suffix" in failure(run("-p", "x", "-o", tmp_path / "out.doc"), 2)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line() -> None:
    line = run("-p", "x", "-q", "--format", "jsonl", "-o", "/dev/full", "--overwrite").stderr
    assert line == "batchgen: error: cannot write /dev/full: No space left on device: free some space and run again\n"


# Formats.

CSV = 'id,question,topic\n7,My dog is,pets\n"8",It will rain in the,"sky, high"\n'


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.csv"
    path.write_text(CSV)
    return path


def test_a_table_goes_in_and_out(questions: Path, tmp_path: Path, dog: str) -> None:
    assert run(questions, "--field", "question", "-o", tmp_path / "out.tsv").exit_code == 0
    header, first, second = (tmp_path / "out.tsv").read_text().splitlines()
    assert header.split("\t")[-4:] == ["model", "source", "topic", "metadata"]
    assert first.split("\t")[:5] == ["7", "0", "0", "My dog is", dog]
    assert second.split("\t")[-2] == "sky, high"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".jsonl.gz", ".csv.zst"])
def test_a_file_comes_out_in_the_format_of_its_suffix_and_goes_in_again(
    questions: Path, tmp_path: Path, suffix: str, dog: str
) -> None:
    output = tmp_path / f"out{suffix}"
    assert run(questions, "--field", "question", "-o", output).exit_code == 0
    again = run(output, "--limit", 1)
    expected = dog if suffix == ".txt" else "My dog is"
    assert [record["prompt"] for record in records(again)] == [expected]


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet", "openai-batch", "jsonl", "text"])
def test_a_pipe_and_a_file_get_the_same_bytes(rain: Path, tmp_path: Path, form: str) -> None:
    shown = run(rain, "--format", form)
    assert run(rain, "--format", form, "-o", tmp_path / "out").exit_code == 0
    assert shown.stdout_bytes == (tmp_path / "out").read_bytes()


@pytest.mark.parametrize("command", ["run", "inspect", "plan"])
def test_every_command_reads_alike(questions: Path, command: str) -> None:
    result = invoke(
        command, questions, "--id-field", "topic", "--template", "Q: {{ question }}\nA:", "--model", "bundled",
        *(["--max-new-tokens", "1"] if command == "run" else ["--json"]),
    )  # fmt: skip
    assert result.exit_code == 0
    if command == "plan":
        assert json.loads(result.stdout)["rows"] == 2
        return
    rows = records(result) if command == "run" else json.loads(result.stdout)["rows"]
    assert [(row["id"], row["prompt"]) for row in rows] == [
        ("pets", "Q: My dog is\nA:"), ("sky, high", "Q: It will rain in the\nA:"),
    ]  # fmt: skip


def test_the_input_format_may_be_said() -> None:
    assert records(run("--input-format", "csv", "--field", "question", stdin=CSV))[0]["metadata"] == {"topic": "pets"}


def test_a_template_may_be_in_a_file(questions: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.jinja").write_text("Q: {{ question }}\nA:\n")
    record = records(run(questions, "--template-file", tmp_path / "prompt.jinja"))[0]
    assert (record["prompt"], record["metadata"]) == ("Q: My dog is\nA:", {"question": "My dog is", "topic": "pets"})


BATCH = [
    {"custom_id": "a", "body": {"prompt": "My dog is", "max_tokens": 2}},
    {"custom_id": "a", "body": {"prompt": "My dog is"}},
    {"custom_id": "b", "body": {"prompt": "My dog is", "n": 2, "temperature": 1, "seed": 1}},
]


def test_an_openai_batch_has_its_failures_in_a_file_of_their_own(
    tmp_path: Path, said: Callable[[str, int], str]
) -> None:
    (tmp_path / "batch.jsonl").write_text("".join(json.dumps(line) + "\n" for line in BATCH))
    output, failures = tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl"
    arguments = (tmp_path / "batch.jsonl", "--format", "openai-batch", "-o", output)
    assert run(*arguments).exit_code == 3
    first, second = (json.loads(line) for line in output.read_text().splitlines())
    assert first["response"]["body"]["choices"][0]["text"] == said("My dog is", 2)
    assert [choice["index"] for choice in second["response"]["body"]["choices"]] == [0, 1]
    [failed] = (json.loads(line) for line in failures.read_text().splitlines())
    assert "batch.jsonl:1 has the same custom_id" in failed["error"]["message"]
    output.unlink()
    assert f"{failures} exists" in failure(run(*arguments), 1)
    (tmp_path / "batch.jsonl").write_text(json.dumps(BATCH[0]) + "\n")
    assert run(*arguments, "--overwrite").exit_code == 0
    assert not failures.exists()


def test_an_openai_batch_in_a_pipe_is_one_stream() -> None:
    result = run("--format", "openai-batch", stdin="".join(json.dumps(line) + "\n" for line in BATCH))
    assert [record["error"] is None for record in records(result)] == [True, False, True]


def test_a_damaged_file_is_one_line_behind_the_rows_that_are_whole(tmp_path: Path) -> None:
    lines = "".join(f"My dog is {number}\n" for number in range(1000))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(lines.encode())[:-100])
    result = invoke("run", tmp_path / "a.txt.gz", "-q", "--model", "bundled", "--max-new-tokens", 1, "--format", "text")
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) > 0
    assert result.stderr.count("\n") == 1
    assert "a.txt.gz is damaged after line" in result.stderr


def test_an_input_under_another_name_is_no_output(rain: Path, tmp_path: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to(rain)
    (tmp_path / "hard.jsonl").hardlink_to(rain)
    for name in ("link.jsonl", "hard.jsonl"):
        assert "is also an input" in failure(run(rain, "-o", tmp_path / name, "--overwrite"), 1)
    with rain.open() as stream:
        command = [sys.executable, "-m", "batchgen", "run", "-o", str(rain), "--overwrite"]
        done = subprocess.run(command, stdin=stream, capture_output=True, text=True)
    assert (done.returncode, "is also an input" in done.stderr) == (1, True)


def test_an_input_that_standard_output_is_appended_to_is_refused(rain: Path) -> None:
    with rain.open("a") as stream:
        command = [sys.executable, "-m", "batchgen", "run", str(rain)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, "standard output is also an input" in done.stderr) == (1, True)
    assert rain.read_text().splitlines() == RAIN


# Mistakes.


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--top-k", "5"], "--top-k 5 needs --temperature above 0"),
        (["--top-p", "0.5"], "--top-p 0.5 needs --temperature above 0"),
        (["--min-p", "0.5"], "--min-p 0.5 needs --temperature above 0"),
        (["--num-samples", "2"], "--num-samples 2 needs --temperature above 0"),
        (["--num-beams", "2", "--temperature", "1"], "--num-beams 2 does not work with --temperature 1"),
        (["--min-new-tokens", "9"], "--min-new-tokens 9 is larger than --max-new-tokens 5"),
        (["--temperature", "inf"], "--temperature inf is not in [1e-06, 1e+06]"),
        (["--top-p", "1.5", "--temperature", "1"], "--top-p 1.5 is not in (0, 1]"),
        (["--repetition-penalty", "0"], "--repetition-penalty 0.0 is not a number above 0"),
        (["--stop", ""], "--stop needs a non-empty text"),
        (["--batch-size", "0"], "'--batch-size': '0' is neither auto nor a whole number"),
        (["--batch-size", "many"], "'--batch-size': 'many' is neither auto nor a whole number"),
        (["--device", "toaster"], "--device toaster is not a device"),
        (["--ids", "--format", "text"], "--ids does not work with --format text"),
        (["--ids", "--format", "openai-batch"], "--ids does not work with --format openai-batch"),
        (["--csv-raw", "--format", "jsonl"], "--csv-raw only works with --format csv and tsv"),
        (["-o", "out.parquet.gz"], "parquet cannot be compressed: remove .gz"),
        (["--template", "{{ x"], "--template, line 1: "),
        (["--template", "x", "--field", "y"], "--template and --field both set the prompt"),
        (["--template", "x", "--template-file", "y"], "--template and --template-file both set the prompt"),
        (["--field", "y"], "--field y only works with JSON Lines and tables"),
        (["--id-field", "y", "--input-format", "openai-batch"], "--id-field does not work with OpenAI Batch files"),
        (["--template", "y", "--input-format", "openai-batch"], "--template does not work with OpenAI Batch files"),
        (["--id-field", "y"], "--id-field y only works with JSON Lines and tables"),
        (["--revision", "main"], "--revision only works with a Hub model"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(options: list[str], reason: str) -> None:
    assert reason in failure(run("-p", "x", *options), 2)


@pytest.mark.parametrize(
    "options", [["--format", "wat"], ["--no-such-option"], ["--max-new-tokens", "0"], ["--temperature", "-1"]], ids=str
)
def test_options_that_typer_refuses_are_usage_errors(options: list[str]) -> None:
    result = run("-p", "x", *options)
    assert (result.exit_code, result.stdout) == (2, "")


@pytest.mark.parametrize("command", ["run", "inspect"])
def test_a_missing_file_is_one_line(command: str) -> None:
    assert "there is no file nowhere.txt" in failure(invoke(command, "nowhere.txt"), 1)


@pytest.mark.parametrize("command", ["run", "inspect"])
def test_a_missing_model_is_one_line(command: str) -> None:
    assert "./nowhere is neither a folder nor a Hub id" in failure(
        invoke(command, "-p", "x", "--model", "./nowhere"), 1
    )


def test_a_file_of_another_format_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_text("prompt\nx\n")
    assert "cannot read .xlsx files" in failure(run(tmp_path / "rows.xlsx"), 1)


def test_control_characters_of_a_path_do_not_reach_the_terminal() -> None:
    assert "\\x1b[31m" in failure(run("no\x1b[31mwhere"), 1)


# inspect.


def test_inspect_as_json(rain: Path) -> None:
    result = invoke("inspect", rain, "--json", "--model", "bundled")
    shown = json.loads(result.stdout)
    assert list(shown) == ["model", "pad_token_id", "rows"]
    assert (shown["model"], shown["pad_token_id"]) == ("bundled", 50256)
    assert shown["rows"][2] == {
        "id": "2",
        "prompt": "My dog is",
        "tokens": ["<|endoftext|>"] * 5 + ["My", "Ġdog", "Ġis"],
        "input_ids": [50256] * 5 + [3666, 3290, 318],
        "attention_mask": [0, 0, 0, 0, 0, 1, 1, 1],
        "position_ids": [0, 0, 0, 0, 0, 0, 1, 2],
    }


def test_inspect_draws_the_columns(rain: Path) -> None:
    lines = invoke("inspect", rain, "--model", "bundled").stdout.splitlines()
    assert lines[0] == "3 rows, 8 columns, padding 33%, pad = eos = 50256, model bundled"
    row = lines.index("row 2: 5 pads + 3 tokens = 8 columns, padding 62%")
    assert [line.split() for line in lines[row + 1 : row + 5]] == [
        ["tokens", "pad", "pad", "pad", "pad", "pad", "My", "·dog", "·is"],
        ["input_ids", *["50256"] * 5, "3666", "3290", "318"],
        ["attention_mask", *"00000111"],
        ["position_ids", *"00000012"],
    ]


def test_inspect_shows_the_first_sixteen_rows() -> None:
    prompts = "".join(f"Prompt {i}\n" for i in range(30))
    assert len(json.loads(invoke("inspect", "--json", stdin=prompts).stdout)["rows"]) == 16
    assert len(json.loads(invoke("inspect", "--json", "--limit", 20, stdin=prompts).stdout)["rows"]) == 20


def test_inspect_loads_no_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folders["gpt2"] / name).read_bytes())
    assert invoke("inspect", "-p", "My dog is", "--model", tmp_path).exit_code == 0


def test_inspect_tells_a_genuine_eos_from_a_pad() -> None:
    result = invoke("inspect", "-p", "<|endoftext|>", "-p", "My dog", "--parse-special")
    tokens = next(line for line in result.stdout.splitlines() if line.startswith("tokens"))
    assert tokens.split() == ["tokens", "pad", "<|endoftext|>"]


def test_inspect_names_rows_that_cannot_be_in_the_batch() -> None:
    result = invoke("inspect", "-p", "", "-p", "My dog is", "--json", "--quiet")
    assert result.exit_code == 3
    assert [row["id"] for row in json.loads(result.stdout)["rows"]] == ["1"]
    assert "row 0 is not in the batch: the prompt is empty" in result.stderr


def test_inspect_of_nothing_is_empty() -> None:
    assert json.loads(invoke("inspect", "--json").stdout)["rows"] == []
    assert invoke("inspect").exit_code == 0


# Help.


@pytest.mark.parametrize("command", [[], ["run"], ["inspect"]], ids=str)
def test_help_has_a_sentence_for_every_option(command: list[str]) -> None:
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.stdout


def test_help_of_run_is_in_sections_with_an_example_on_top() -> None:
    text = invoke("run", "--help").stdout
    panels = [
        "batchgen run prompts.txt",
        "Prompts",
        "Model",
        "Length and stopping",
        "Choosing tokens",
        "Batches",
        "Output",
    ]
    example, *titles = panels
    places = [text.index(example), *(text.index(f"\n{title}\n") for title in titles)]
    assert places == sorted(places)


def test_version() -> None:
    assert invoke("--version").stdout == f"batchgen {batchgen.__version__}\n"


# What typer refuses.


@pytest.mark.parametrize(
    "arguments",
    [
        ["{}"],
        ["--{}"],
        ["run", "--{}"],
        ["run", "--dtype", "{}"],
        ["run", "--temperature", "{}"],
        ["inspect", "--limit", "{}"],
    ],
    ids=str,
)
def test_what_typer_refuses_is_one_line_without_control_characters(arguments: list[str]) -> None:
    hostile = "\x1b]0;title\x07\x9b31m\u202e[red]x\ny"
    line = failure(invoke(*(part.replace("{}", hostile) for part in arguments)), 2)
    assert line.endswith(" --help")
    assert not UNSAFE.search(line)


def test_without_a_command_there_is_help() -> None:
    result = invoke()
    assert result.exit_code == 2
    assert "Usage: " in result.output


# On Ray, before any Ray exists.


@pytest.mark.parametrize(
    ("options", "exit_code", "part"),
    [
        (["-o", "out", "--ray", "local"], 1, "--ray needs another package: pip install 'ray[data]'"),
        (["--ray", "local"], 2, "--ray writes to a folder: name one with -o"),
        (["-o", "out", "--ray", "local", "-p", "x"], 2, "--prompt is not supported with --ray"),
        (["-o", "out", "--ray", "local", "--format", "table"], 2, "--format table is not supported with --ray"),
        (["-o", "out", "--ray", "local", "--device", "cpu"], 2, "--device cpu is not supported with --ray"),
        (["-o", "out.jsonl", "--part-rows", 5], 2, "--part-rows only works with --ray"),
        (["-o", "{tmp}/rain.txt", "--ray", "local"], 1, "is a file: with --ray, name a folder"),
        (["-o", "{tmp}", "--ray", "local"], 1, "is a folder that has other files"),
    ],
)
def test_what_ray_cannot_do_is_one_line(
    rain: Path, monkeypatch: pytest.MonkeyPatch, options: list[object], exit_code: int, part: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.chdir(rain.parent)
    given = [str(option).format(tmp=rain.parent) for option in options]
    assert part in failure(run(rain, *given), exit_code)
