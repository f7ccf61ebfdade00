"""LongRoPE: rotary positions with short and long factors, which a network chooses by the longest row of a forward.

A row that is alone gets the long factors from its first forward with more tokens than the limit on. Only some families
(Phi-3) then compute the keys and values of its earlier tokens anew.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchgen.records import Sequence

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from batchgen.model.config_view import ConfigView


@dataclass(frozen=True, slots=True)
class LongRope:
    """A row of up to `limit` tokens gets the short factors.

    With `renews_keys`, plain `generate` computes the keys and values of a row anew when it grows beyond the limit;
    otherwise those of its first tokens keep the short factors.
    """

    limit: int
    renews_keys: bool


def short_limit(config: PretrainedConfig | ConfigView) -> int | None:
    """Return how many tokens a row may have before LongRoPE switches its factors; None for other models.

    Other ways of scaling do not depend on neighbouring rows: their factors are fixed up to a model's maximum number of
    positions, and longer rows do not run.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    parts = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    for part in parts:
        if part.get("rope_type") == "longrope":
            limit = part.get("original_max_position_embeddings") or getattr(
                text, "original_max_position_embeddings", None
            )
            return int(limit or text.max_position_embeddings)
    return None


def is_long(row: Sequence, limit: int | None) -> bool:
    """Whether a row's prompt already gets the long factors."""
    return limit is not None and row.num_prompt_tokens > limit


def of_one_side(rows: Rows[Sequence], limit: int | None) -> list[Sequence]:
    """Return the rows on the side of the limit that has more of them: they may share a plain forward."""
    sides = [[row for row in rows if is_long(row, limit) == side] for side in (False, True)]
    return max(sides, key=len)


def crosses(row: Sequence, limit: int | None) -> bool:
    """Whether a row may grow past the limit. Its last token is chosen but never fed."""
    fed = row.num_prompt_tokens + row.sampling.max_new_tokens - 1
    return limit is not None and row.num_prompt_tokens <= limit < fed


def long_rope_of(network: PreTrainedModel) -> LongRope | None:
    """Return how a network's rows change their factors; None for other models.

    Asks the network which inputs it prepares for a row that has just grown beyond the limit.
    """
    limit = short_limit(network.config)
    if limit is None:
        return None
    import torch
    from transformers import DynamicCache

    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, limit, 1), torch.zeros(1, 1, limit, 1), 0)
    ids = torch.zeros(1, limit + 1, dtype=torch.int64)
    inputs = network.prepare_inputs_for_generation(
        ids, next_sequence_length=1, past_key_values=cache, attention_mask=torch.ones_like(ids), use_cache=True
    )
    return LongRope(limit, renews_keys=inputs.get("past_key_values") is not cache)
