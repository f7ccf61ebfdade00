"""Records of options: what they accept, and how their errors name fields."""

from __future__ import annotations

from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from batchgen.records import EngineOptions, FieldError, SamplingParams, options_of


def test_every_field_of_sampling_is_an_option_with_help() -> None:
    assert list(options_of(SamplingParams)) == [item.name for item in fields(SamplingParams)]
    assert all(item.option.help and item.option.panel for item in options_of(SamplingParams).values())


def test_an_error_names_fields_and_can_name_them_otherwise() -> None:
    with pytest.raises(FieldError, match=r"^min_new_tokens 9 is larger than max_new_tokens 5$") as caught:
        SamplingParams(min_new_tokens=9, max_new_tokens=5)
    assert caught.value.named(str.upper) == "MIN_NEW_TOKENS 9 is larger than MAX_NEW_TOKENS 5"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number"),
        ({"top_k": 2.5, "temperature": 1}, "top_k must be a whole number"),
        ({"num_samples": True, "temperature": 1}, "num_samples must be a whole number"),
        ({"seed": 2**63}, "seed is larger than"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"temperature": float("nan")}, "temperature must be a number"),
        ({"temperature": float("inf")}, "temperature inf is not in"),
        ({"top_p": 3, "temperature": 1}, r"top_p 3.0 is not in \(0, 1]"),
        ({"top_p": 0, "temperature": 1}, r"top_p 0.0 is not in \(0, 1]"),
        ({"min_p": -0.1, "temperature": 1}, r"min_p -0.1 is not in \[0, 1]"),
        ({"top_p": 0.5}, r"top_p 0.5 needs temperature above 0 \(0 is greedy\)"),
        ({"stop": 7}, "stop must be a string or a list of strings"),
        ({"stop": ""}, "stop needs a non-empty text"),
    ],
    ids=str,
)
def test_what_a_field_does_not_take_is_an_error_that_names_it(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(FieldError, match=f"^{problem}"):
        SamplingParams(**options)


@pytest.mark.parametrize(("given", "kept"), [(np.int64(3), 3), (np.float32(0.5), 0.5), (Fraction(1, 2), 0.5), (1, 1.0)])
def test_numbers_are_kept_in_the_field_s_own_type(given: Any, kept: float) -> None:
    name = "top_k" if isinstance(kept, int) else "temperature"
    value = getattr(SamplingParams(**{"temperature": 1.0, name: given}), name)
    assert (value, type(value)) == (kept, type(kept))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"engine": "fast"}, "engine fast is not one of auto, continuous, reference"),
        ({"batch_size": 0}, "batch_size 0 is less than 1"),
        ({"batch_size": "8"}, "batch_size must be a whole number"),
        ({"workers": 1.5}, "workers must be a whole number"),
        ({"workers": 10**9}, "workers 1000000000 is not in "),
        ({"exact": 1}, "exact must be true or false"),
    ],
    ids=str,
)
def test_engine_options_are_checked_alike(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(FieldError, match=f"^{problem}"):
        EngineOptions(**options)


def test_a_record_without_options_has_none() -> None:
    @dataclass(frozen=True, slots=True)
    class Plain:
        number: int = 1

    assert options_of(Plain) == {}
