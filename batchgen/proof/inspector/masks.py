"""The mask as attention gets it: causal and padding in one, added to the scores. Made by transformers, without weights.

A query is a token that attends; a key is a token that is attended to.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchgen.model.private import set_attention

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from batchgen.records import Batch


@dataclass(frozen=True, slots=True)
class FullyMasked:
    """What happens to a query that sees no key, which depends on how "hidden" is represented.

    The weight of each of the T columns if "hidden" is the dtype's lowest number, and if it is -inf (None means NaN);
    and the output of scaled dot product attention, which takes booleans, for values that are all 1.
    """

    weight_with_least: float
    weight_with_infinity: float | None
    sdpa_output: float | None


@dataclass(frozen=True, slots=True)
class Masks:
    """What eager attention adds to each row's scores: 0 if `visible` `[B][T queries][T keys]`, otherwise `least`."""

    visible: list[list[list[bool]]]
    least: float
    dtype: str
    transformers: str
    fully_masked: FullyMasked
    has_windows: bool

    def blind_queries(self, row: int) -> list[int]:
        """Columns whose query sees no key."""
        return [query for query, keys in enumerate(self.visible[row]) if not any(keys)]

    def to_dict(self) -> dict[str, Any]:
        rows = [[[0.0 if open_ else self.least for open_ in keys] for keys in row] for row in self.visible]
        return {
            "added_to_scores": rows,
            "hidden": self.least,
            "hidden_is": f"the lowest {self.dtype}, in eager attention of transformers {self.transformers}",
            "fully_masked_query": {
                "weight_with_least": self.fully_masked.weight_with_least,
                "weight_with_infinity": self.fully_masked.weight_with_infinity,
                "sdpa_output": self.fully_masked.sdpa_output,
            },
        }


def inspect_masks(config: PretrainedConfig, batch: Batch) -> Masks:
    """The mask of a batch that transformers' own code makes for eager attention, in float32."""
    import torch
    import transformers

    text = config.get_text_config()
    added = added_mask(text, batch.attention_mask)  # [B, T, T]
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    return Masks(
        visible=(added == 0).tolist(),
        least=torch.finfo(added.dtype).min,
        dtype=str(added.dtype).removeprefix("torch."),
        transformers=transformers.__version__,
        fully_masked=_fully_masked(added.shape[-1], added.dtype),
        has_windows=kinds != {"full_attention"},
    )


def added_mask(config: PretrainedConfig, attention_mask: torch.Tensor) -> torch.Tensor:
    """The mask `[B, T, T]` added to the scores of a batch with this 0/1 mask `[B, T]`."""
    import torch
    from transformers.masking_utils import create_causal_mask

    eager = copy(config)
    set_attention(eager, "eager")
    nothing = torch.empty(*attention_mask.shape, 0)  # only its shape and dtype matter
    mask: torch.Tensor = create_causal_mask(
        config=eager, inputs_embeds=nothing, attention_mask=attention_mask, past_key_values=None
    )
    return mask[:, 0]


def _fully_masked(columns: int, dtype: torch.dtype) -> FullyMasked:
    """Measure a softmax over `columns` hidden scores, and an attention that sees no key."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    scores = torch.linspace(-3, 3, columns, dtype=dtype)  # [T], a typical range of scores
    least, infinity = ((scores + hidden).softmax(-1)[0].item() for hidden in (torch.finfo(dtype).min, -torch.inf))
    query, ones = torch.ones(1, 1, 8, dtype=dtype), torch.ones(1, columns, 8, dtype=dtype)
    nothing = torch.zeros(1, columns, dtype=torch.bool)
    output = scaled_dot_product_attention(query, ones, ones, attn_mask=nothing)[0, 0, 0].item()
    return FullyMasked(least, _or_none(infinity), _or_none(output))


def _or_none(number: float) -> float | None:
    return number if number == number else None
