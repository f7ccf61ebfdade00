"""`batchgen demo`: what it says is what the model did."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from batchgen.model import Model, open_model
from batchgen.proof.story import PROMPTS, Story, tell_story
from batchgen.render.story import story_steps
from tests.support.in_process import at_terminal, in_pipe


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model("bundled", dtype="float32")


@pytest.fixture(scope="module")
def story(model: Model) -> Story:
    return tell_story(model, 4)


def test_its_prompts_are_padded_on_the_left_with_eos(story: Story) -> None:
    assert [row.prompt for row in story.inspection.rows] == [*PROMPTS]
    assert [row.num_pads for row in story.inspection.rows] == [3, 0, 5]
    assert story.inspection.rows[0].input_ids == [50256, 50256, 50256, 1026, 481, 6290, 287, 262]


def test_its_first_row_gets_alone_what_it_gets_in_the_batch(story: Story) -> None:
    assert story.alone
    assert story.together[0] == story.alone


def test_pads_weigh_nothing_with_the_mask_and_much_without(story: Story) -> None:
    assert story.row.num_pads == 5
    assert story.attention.pad_weight == 0
    assert story.attention.pad_weight_without_mask > 0.3


def test_pads_on_the_right_change_what_the_short_rows_get(story: Story) -> None:
    assert [row.left.text != row.right.text for row in story.sides] == [True, False, True]


def test_a_row_that_differs_is_not_said_to_be_the_same(story: Story) -> None:
    said = [step.text for step in story_steps(story)][3]
    other = [step.text for step in story_steps(dataclasses.replace(story, alone="else"))][3]
    assert "The first is the one that it got alone." in said
    assert "is not the one" in other


def test_the_whole_demo_goes_into_a_pipe_without_waiting() -> None:
    printed = in_pipe(["demo", "--max-new-tokens", 4])
    assert [line for line in printed.splitlines() if line.startswith(("1/6", "6/6"))] != []
    assert all(prompt in printed for prompt in PROMPTS)
    assert "on pads: exactly 0" in printed
    assert "batchgen run prompts.txt" in printed


def test_at_a_terminal_it_waits_after_each_step_but_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("rich.console.Console.input", lambda self, prompt: asked.append(prompt))
    _, exit_code = at_terminal("demo", "--max-new-tokens", 2)
    assert (len(asked), exit_code) == (5, 0)
    at_terminal("demo", "--max-new-tokens", 2, "--no-wait")
    assert len(asked) == 5
