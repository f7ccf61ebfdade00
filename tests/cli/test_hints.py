"""What the command line suggests for an unknown word."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchgen.cli.hints import command_hint, near_options, option_hint
from tests.support.command import failure, invoke

FLAGS = {
    "run": ["--prompt", "-p", "--temperature", "--template", "--template-file", "--top-k", "--top-p", "--help",
            "--stop", "--max-new-tokens", "--min-new-tokens", "--output", "-o", "--format", "--input-format",
            "--resume", "--ray",
            "--exact", "--no-exact", "--engine", "--model", "--quiet", "--device", "--repetition-penalty",
            "--presence-penalty", "--overwrite", "--num-samples", "--memory", "--seed"],
    "inspect": ["--attention", "--html", "--model"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--temp", ["--temperature", "--template", "--template-file"]),
        ("--max", ["--max-new-tokens"]),
        ("--out", ["--output"]),
        ("--modle", ["--model"]),
        ("--max_new_tokens", ["--max-new-tokens"]),
        ("--Model", ["--model"]),
        ("--max-tokens", ["--max-new-tokens"]),
        ("--maxtokens", ["--max-new-tokens"]),
        ("--model-name", ["--model"]),
        ("--gpu", ["--device"]),
        ("--force", ["--overwrite"]),
        ("--penalty", ["--repetition-penalty", "--presence-penalty"]),
        ("--new-tokens", ["--max-new-tokens", "--min-new-tokens"]),
    ],
)
def test_options_are_suggested_by_how_they_begin_then_by_spelling(given: str, meant: list[str]) -> None:
    assert near_options(given, FLAGS["run"]) == meant


@pytest.mark.parametrize("given", ["--api-key", "--yes", "--length", "--verbose", "--a", "-x", "--ümlaut", "--"])
def test_nothing_is_better_than_something_silly(given: str) -> None:
    assert near_options(given, FLAGS["run"]) == []


def test_an_option_of_another_command_is_said_to_be_one() -> None:
    assert option_hint("--attention", "run", ["run", "--attention"], FLAGS) == " (it belongs to inspect)"


def test_one_dash_too_few_is_seen_in_what_was_typed() -> None:
    assert option_hint("-m", "run", ["run", "-model", "bundled"], FLAGS) == " (did you mean --model?)"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["-o", "x.jsonl", "run", "p.txt"], "No such option: -o (put -o after run)"),
        (["-p", "hi"], "No such option: -p (it belongs to run: batchgen run -p …)"),
        (["run", "-m", "bundled"], "No such option: -m (did you mean --model?)"),
        (["run", "-model", "bundled"], "No such option: -m (did you mean --model?)"),
        (["run", "-f", "p.txt"], "No such option: -f (inputs have no flag: batchgen run FILE)"),
        (["run", "-n", "5"], "No such option: -n; see"),  # of samples, or of tokens
    ],
)
def test_short_options_have_hints_too(words: list[str], hint: str) -> None:
    assert hint in failure(invoke(*words), 2)


def test_inputs_have_no_flag() -> None:
    assert option_hint("--input", "run", ["run", "--input"], FLAGS) == " (inputs have no flag: batchgen run FILE)"


def test_what_is_not_supported_says_what_to_do_instead() -> None:
    assert "merge yours into its model" in option_hint("--adapter", "run", ["run", "--adapter", "a"], FLAGS)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "bundled", "run", "-p", "x"], "--model (put --model after run); see batchgen --help"),
        (["--temp", "1", "run"], "(did you mean --template, --template-file or --temperature, after run?)"),
        (["--model", "bundled", "prompts.txt"], "--model (it belongs to run: batchgen run --model …)"),
        (["--nonsense", "run"], "No such option: --nonsense; see batchgen --help"),
    ],
)
def test_an_option_before_its_command_is_put_behind_it(words: list[str], says: str) -> None:
    assert says in failure(invoke(*words), 2)


@pytest.mark.parametrize("option", ["-o", "--stop", "--seed"])
def test_an_option_without_its_value_points_to_the_help_of_its_command(option: str) -> None:
    line = failure(invoke("run", "-p", "x", option), 2)
    assert option in line
    assert line.endswith("; see batchgen run --help")


def test_a_command_is_suggested_by_its_spelling(tmp_path: Path) -> None:
    assert command_hint("rnu", ["run", "plan"]) == " (did you mean run?)"
    assert command_hint("xyzzy", ["run", "plan"]) == ""


def test_a_file_in_the_place_of_a_command_is_prompts(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").touch()
    assert f"batchgen run {tmp_path}/prompts.txt" in failure(invoke(tmp_path / "prompts.txt"), 2)


@pytest.mark.parametrize(("given", "meant"), [("6", "6G"), ("80", "80%"), ("512", "512M"), ("0.5", "50%")])
def test_memory_without_a_unit_asks_for_one_that_fits_the_machine(
    monkeypatch: pytest.MonkeyPatch, given: str, meant: str
) -> None:
    monkeypatch.setattr("batchgen.machine.limits.installed_bytes", lambda: 24 * 2**30)
    line = failure(invoke("run", "-p", "x", "--model", "bundled", "--memory", given), 2)
    assert f"--memory {given} has no unit: did you mean {meant}?" in line


@pytest.mark.parametrize(
    ("option", "given", "meant"),
    [
        ("--dtype", "fp16", "float16"), ("--dtype", "bf16", "bfloat16"), ("--format", "json", "jsonl"),
        ("--format", "CSV", "csv"), ("--too-long", "trunc", "truncate"), ("--engine", "contineous", "continuous"),
    ],
)  # fmt: skip
def test_a_value_that_is_no_choice_gets_the_nearest_one(option: str, given: str, meant: str) -> None:
    assert f"(did you mean {meant}?)" in failure(invoke("run", "-p", "x", option, given), 2)


@pytest.mark.parametrize(
    ("option", "given"), [("--dtype", "float64"), ("--dtype", "int8"), ("--quantize", "int4"), ("--format", "yaml")]
)
def test_a_value_far_from_all_choices_gets_no_silly_one(option: str, given: str) -> None:
    assert "did you mean" not in failure(invoke("run", "-p", "x", option, given), 2)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--query", "9"], ["--query", "--attention"]),
        (["--max-new-tokens", "9"], ["--max-new-tokens", "--compare-sides"]),
        (["--html", "-"], ["--html -", "standard output"]),
        (["--svg", "-"], ["--svg -", "standard output"]),
    ],
)
def test_what_would_be_ignored_is_refused(
    words: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = failure(invoke("inspect", "-p", "My dog is", "--model", "bundled", *words), 2)
    assert all(part in line for part in parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--stats", "--manifest"])
def test_notes_of_a_run_do_not_go_to_standard_output(option: str) -> None:
    assert "standard output" in failure(invoke("run", "-p", "x", "--model", "bundled", option, "-"), 2)
