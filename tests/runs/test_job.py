"""The parts of a run."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import get_type_hints

from batchgen.records import EngineOptions, SamplingParams
from batchgen.runs.job import GivenPrompts, Job
from batchgen.runs.keywords import GenerateOptions, SamplingOptions

CHANGED = SamplingParams(
    temperature=1, top_k=3, stop=["a"], stop_token_ids=[5], logit_bias={"7": -1}, presence_penalty=1, ignore_eos=True
)


def options_of_job(sampling: SamplingParams) -> dict[str, object]:
    return Job(prompts=GivenPrompts([]), sampling=sampling).options


def test_a_run_is_made_of_every_option_of_choosing_tokens() -> None:
    kept = options_of_job(CHANGED)
    assert {"--" + field.name.replace("_", "-") for field in fields(SamplingParams)} <= set(kept)
    assert kept["--logit-bias"] == {"7": -1.0}
    assert {name for name in kept if kept[name] != options_of_job(SamplingParams())[name]} == {
        "--temperature",
        "--top-k",
        "--stop",
        "--stop-token-ids",
        "--logit-bias",
        "--presence-penalty",
        "--ignore-eos",
    }


def test_it_is_the_same_after_a_manifest_has_kept_it() -> None:
    kept = options_of_job(CHANGED)
    assert json.loads(json.dumps(kept)) == kept


def test_editors_know_every_option() -> None:
    assert set(get_type_hints(SamplingOptions)) == {field.name for field in fields(SamplingParams)}
    assert {field.name for field in fields(EngineOptions)} <= set(get_type_hints(GenerateOptions))
