"""Commands get their options from the fields of records."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from batchgen.cli import app
from batchgen.cli import options as opt
from batchgen.cli.settings import flag_of
from batchgen.formats.row_options import override, row_keys
from batchgen.records import EngineOptions, FieldError, SamplingParams
from batchgen.records.options import option
from batchgen.records.sampling import CHOOSING


@dataclass(frozen=True, slots=True)
class WithTypicalP(SamplingParams):
    """A new way of choosing tokens: everything that it needs besides a sampler."""

    typical_p: float = option(
        1.0, "Sample from the most typical tokens.", value="P", panel=CHOOSING, above=0, most=1, only_sampled=True
    )


def invoke(command: Any, *arguments: str) -> Any:
    tiny = typer.Typer()
    tiny.command()(opt.with_groups(command))
    return CliRunner().invoke(tiny, arguments, env={"COLUMNS": "120"})


def record_of(record: Any, *arguments: str) -> dict[str, Any]:
    """Return what a command that asks for such a record gets."""

    def command(given) -> None:  # type: ignore[no-untyped-def]
        print(json.dumps(asdict(given), default=str))

    command.__annotations__ = {"given": record, "return": None}
    result = invoke(command, *arguments)
    assert result.exception is None, result.exception
    return dict(json.loads(result.stdout))


def test_a_command_gets_a_record_made_from_flags() -> None:
    made = record_of(SamplingParams, "--temperature", "0.5", "--top-k", "3", "--stop", "a", "--stop", "b c")
    assert made == json.loads(json.dumps(asdict(SamplingParams(temperature=0.5, top_k=3, stop=("a", "b c")))))


def test_without_flags_it_gets_the_record_s_defaults() -> None:
    assert record_of(EngineOptions) == asdict(EngineOptions())


def test_flags_of_other_types_are_read_too() -> None:
    made = record_of(EngineOptions, "--batch-size", "8", "--no-exact", "--engine", "reference", "--memory", "50%")
    assert (made["batch_size"], made["exact"], made["engine"]) == (8, False, "reference")
    assert made["memory"]["share"] == "1/2"
    assert record_of(EngineOptions, "--batch-size", "auto")["batch_size"] is None


def test_a_command_may_take_some_fields_with_defaults_of_its_own() -> None:
    assert record_of(Annotated[SamplingParams, opt.Pick("seed", "top_k", seed=7)])["seed"] == 7

    def command(given: Annotated[SamplingParams, opt.Pick("seed")]) -> None:
        """Says nothing."""

    assert invoke(command, "--temperature", "1").exit_code == 2


def test_what_contradicts_itself_is_a_usage_error_that_names_flags() -> None:
    def command(given: SamplingParams) -> None:
        """Says nothing."""

    error = invoke(command, "--min-new-tokens", "9", "--max-new-tokens", "5").exception
    assert isinstance(error, FieldError)
    assert error.named(flag_of) == "--min-new-tokens 9 is larger than --max-new-tokens 5"
    result = CliRunner().invoke(app, ["run", "-p", "x", "--min-new-tokens", "9", "--max-new-tokens", "5"])
    assert (result.exit_code, str(error.named(flag_of)) in result.stderr) == (2, True)


@pytest.mark.parametrize("flag", ["--max-new-tokens", "--limit", "--temperature", "--seed"])
def test_what_is_no_number_is_quoted_beside_its_flag(flag: str) -> None:
    result = CliRunner().invoke(app, ["run", "-p", "x", flag, "ten"])
    assert result.exit_code == 2
    assert flag in result.stderr
    assert "'ten' is not a" in result.stderr


@pytest.mark.parametrize("command", ["run", "plan"])
def test_every_way_of_choosing_tokens_is_a_flag_of_run_and_plan(command: str) -> None:
    help = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout
    assert [field.name for field in fields(SamplingParams) if flag_of(field.name) not in help] == []


def test_a_new_field_is_a_flag_and_a_row_s_key_and_is_checked_and_left_behind_by_greedy_rows() -> None:
    assert record_of(WithTypicalP, "--temperature", "1", "--typical-p", "0.5")["typical_p"] == 0.5
    assert "typical_p" in row_keys(WithTypicalP)
    run = WithTypicalP(temperature=1, typical_p=0.5)
    assert override(run, {"typical_p": 0.25}) == WithTypicalP(temperature=1, typical_p=0.25)
    assert override(run, {"temperature": 0}) == WithTypicalP()
    with pytest.raises(ValueError, match=r"^sampling.typical_p 2.0 is not in \(0, 1]"):
        override(run, {"typical_p": 2})
    with pytest.raises(FieldError, match=r"typical_p 0.5 needs temperature above 0"):
        WithTypicalP(typical_p=0.5)
