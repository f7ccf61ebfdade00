"""`--stop '\\n'`: escapes as shells pass them on; and token ids and biases as flags."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from batchgen.cli import app
from batchgen.cli.options.escapes import decode_escapes


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (r"\n", "\n"),
        (r"a\tb\r", "a\tb\r"),
        (r"\\n", r"\n"),
        (r"\\\n", "\\\n"),
        (r"\u00e9\u4e1c", "\u00e9\u4e1c"),
        (r"\ud83d\ude00", "\U0001f600"),
        (r"\d \x41 \u12", r"\d \x41 \u12"),
        ("plain\n", "plain\n"),
        ("\\", "\\"),
    ],
)
def test_escapes_are_decoded_and_all_else_stays(typed: str, text: str) -> None:
    assert decode_escapes(typed) == text


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["run", "-p", "My dog is", "--model", "bundled", "--format", "jsonl", *arguments])


def text_of(result: Result) -> str:
    assert result.exit_code == 0, result.stderr
    return str(json.loads(result.stdout)["text"])


@pytest.fixture(scope="module")
def plain() -> str:
    return text_of(run("--max-new-tokens", "12"))


def test_a_typed_escape_stops_at_what_it_means_and_is_said_once(plain: str) -> None:
    sign = plain.strip()[3]
    typed = f"\\u{ord(sign):04x}"
    result = run("--max-new-tokens", "12", "--stop", typed, "--stop", typed)
    assert text_of(result) == plain[: plain.index(sign)]
    assert result.stderr.count(f"--stop {typed} is read as {sign}") == 1


def test_quiet_does_not_say_it() -> None:
    assert run("--max-new-tokens", "2", "--stop", r"\n", "--quiet").stderr == ""
    assert "--stop \\n is read as <newline>" in run("--max-new-tokens", "2", "--stop", r"\n").stderr


def test_stops_of_rows_and_files_are_not_decoded(plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    typed = f"\\u{ord(plain.strip()[3]):04x}"
    Path("batchgen.toml").write_text(f"stop = [{json.dumps(typed)}]\n")
    assert text_of(run("--max-new-tokens", "12")) == plain
    Path("rows.jsonl").write_text(json.dumps({"prompt": "My dog is", "sampling": {"stop": typed}}) + "\n")
    arguments = ["run", "rows.jsonl", "--model", "bundled", "--max-new-tokens", "12", "--format", "jsonl"]
    assert text_of(CliRunner().invoke(app, arguments)) == plain


def test_a_bias_is_a_pair_or_json_and_repeats(plain: str) -> None:
    banned = list(json.loads(run("--max-new-tokens", "3", "--ids").stdout)["output_ids"])
    pairs = [part for token in banned[:2] for part in ("--logit-bias", f"{token}=-100")]
    result = run("--max-new-tokens", "8", "--ids", *pairs, "--logit-bias", json.dumps({banned[2]: -100}))
    assert not set(banned) & set(json.loads(result.stdout)["output_ids"])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--logit-bias", "dog"], "'--logit-bias': 'dog' is neither ID=BIAS nor a JSON object"),
        (["--logit-bias", "5=high"], "'--logit-bias': '5=high' is neither ID=BIAS nor a JSON object"),
        (["--logit-bias", "-5=1"], "--logit-bias has '-5', which is not a token id"),
        (["--logit-bias", "5=101"], "--logit-bias 101 of token 5 is not in [-100, 100]"),
        (["--logit-bias", "60000=1"], "--logit-bias names token 60000, but the model has tokens 0 to 50256"),
        (["--stop-token-ids", "60000"], "--stop-token-ids names token 60000, but the model has tokens 0 to 50256"),
        (["--stop-token-ids", "eos"], "'--stop-token-ids': 'eos' is not a whole number"),
        (["--presence-penalty", "3"], "--presence-penalty 3.0 is not in [-2, 2]"),
        (["--ignore-eos", "--num-beams", "2"], "--ignore-eos is not supported with --num-beams 2: remove one"),
        (["--top-k", "-2"], "'--top-k': -2 is less than -1"),
        (["--stop", r"\ud83d"], "--stop has a lone surrogate"),
    ],
    ids=str,
)
def test_mistakes_name_the_flag_in_one_line(arguments: list[str], problem: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert problem in result.stderr.splitlines()[-1]


def test_top_k_of_minus_1_is_off_also_for_greedy_rows() -> None:
    assert text_of(run("--max-new-tokens", "3", "--top-k", "-1")) == text_of(run("--max-new-tokens", "3"))
