"""The facts shown by `batchgen demo`: a batch of three prompts, what its mask does, and its output. Draws nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from batchgen.model.padding import pad
from batchgen.model.stops import decode_output
from batchgen.proof.inspector import Heads, InspectedRow, Inspection, Masks, inspect_batch, inspect_masks
from batchgen.proof.inspector.sides import RowSides, compare_sides
from batchgen.proof.mistakes import generate_as_is
from batchgen.records import Request, SamplingParams

if TYPE_CHECKING:
    from batchgen.model import Model
    from batchgen.proof.inspector.attention import QueryAttention

# 5, 8 and 3 tokens in GPT-2's vocabulary.
PROMPTS = ("It will rain in the", "I want to eat a big bowl of", "My dog is")
HEADS = Heads(layer=0, head=0)


@dataclass(frozen=True, slots=True)
class Story:
    """Three prompts as one left-padded batch, and its output. `alone` is the first prompt's continuation by itself.

    `attention` is what the last token of `row`, the row with the most padding, attends to in one head of the first
    layer.
    """

    inspection: Inspection
    alone: str
    sides: list[RowSides]
    masks: Masks
    row: InspectedRow
    attention: QueryAttention

    @property
    def together(self) -> list[str]:
        """The continuation of each row in the left-padded batch."""
        return [row.left.text for row in self.sides]


def tell_story(model: Model, max_new_tokens: int) -> Story:
    """Run the first prompt alone and all three together, greedily, with transformers' own `generate`.

    Raises `ModelError` if the model has no attention that can be watched.
    """
    from batchgen.proof.inspector.attention import inspect_attention

    sampling = SamplingParams(max_new_tokens=max_new_tokens)
    requests = [Request(index, str(index), prompt, sampling) for index, prompt in enumerate(PROMPTS)]
    inspection = inspect_batch(model.checkpoint, requests)
    assert inspection.batch is not None  # no prompt is empty
    first = inspection.sequences[0]
    [alone] = generate_as_is(model, pad([first], model.checkpoint.pad_token_id), max_new_tokens)
    row = max(inspection.rows, key=lambda row: row.num_pads)
    return Story(
        inspection,
        alone=decode_output(model.checkpoint.codec, replace(first, output_ids=alone)),
        sides=compare_sides(model, inspection, max_new_tokens),
        masks=inspect_masks(model.checkpoint.config, inspection.batch),
        row=row,
        attention=inspect_attention(model, inspection, HEADS)[inspection.rows.index(row)],
    )
