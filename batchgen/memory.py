"""How many bytes a batch needs: arithmetic only, no tensors and no probing.

The formulas were measured on GPT-2 with scaled dot product attention (69.00 MiB predicted, 69.14 measured); for other
families they are an upper estimate. e is bytes an element, B rows, S padded length, L layers, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchgen.records import MemoryEstimate, SamplingParams

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Sampling work space in units of B*V*4 bytes: the fp32 copy of the logits, and what choosing a token takes on top.
LOGITS_GREEDY = 3.0
LOGITS_SAMPLED = 6.0  # probabilities and their running sum are float64
LOGITS_TOP_P = 11.5  # a full sort with its indices
BEAM_COPIES = 2  # reordering the cache by beam makes a second one


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a config decides how many bytes a batch needs."""

    n_layer: int
    n_head: int
    n_kv_head: int
    head_dim: int
    n_embd: int
    n_inner: int
    vocab_size: int

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> ModelShape:
        """Reads a transformers config; names that a family lacks fall back to GPT-2's proportions."""
        text = config.get_text_config()
        n_embd = _number(text, "hidden_size", "d_model") or 768
        n_head = _number(text, "num_attention_heads") or max(1, n_embd // 64)
        return cls(
            n_layer=_number(text, "num_hidden_layers") or 12,
            n_head=n_head,
            n_kv_head=_number(text, "num_key_value_heads") or n_head,
            head_dim=_number(text, "head_dim") or n_embd // n_head,
            n_embd=n_embd,
            n_inner=_number(text, "intermediate_size", "n_inner", "ffn_dim") or 4 * n_embd,
            vocab_size=text.vocab_size,
        )


def _number(config: PretrainedConfig, *names: str) -> int | None:
    """The first of these that a config has; the greatest where it has one a layer. Recurrent models lack some."""
    for name in names:
        value = getattr(config, name, None)
        if value:
            return int(max(value) if isinstance(value, list | tuple) else value)
    return None


def kv_cache_bytes(shape: ModelShape, rows: int, columns: int, element_bytes: int) -> int:
    """Keys and values of every layer for `columns` positions of `rows` rows, pads included."""
    return 2 * shape.n_layer * shape.n_kv_head * shape.head_dim * rows * columns * element_bytes


def _prefill_bytes(shape: ModelShape, rows: int, padded_length: int, element_bytes: int) -> int:
    # 22 hidden-sized vectors a token are alive at once in GPT-2, where the inner size is 4H: 14 + 2 * 4.
    vectors = 14 * shape.n_embd + 2 * shape.n_inner
    mask = rows * padded_length**2
    return rows * padded_length * vectors * element_bytes + mask


def _logits_bytes(shape: ModelShape, rows: int, sampling: SamplingParams) -> int:
    sampled = LOGITS_SAMPLED if sampling.top_p == 1 else LOGITS_TOP_P
    factor = LOGITS_GREEDY if sampling.is_greedy else sampled
    seen = rows * shape.vocab_size if sampling.repetition_penalty != 1 else 0
    return int(factor * rows * shape.vocab_size * 4) + seen


def estimate(
    shape: ModelShape, rows: int, padded_length: int, sampling: SamplingParams, element_bytes: int
) -> MemoryEstimate:
    """Bytes above the weights for one batch of `rows` rows padded to `padded_length` columns.

    The cache grows by concatenation, so one layer's keys and values exist twice while they are copied.
    """
    rows *= sampling.num_beams
    columns = padded_length + sampling.max_new_tokens
    cache = kv_cache_bytes(shape, rows, columns, element_bytes)
    copies = BEAM_COPIES if sampling.num_beams > 1 else 1 + 1 / (2 * shape.n_layer)
    return MemoryEstimate(
        weights=0,
        kv_cache=int(cache * copies),
        logits=_logits_bytes(shape, rows, sampling),
        activations=_prefill_bytes(shape, rows, padded_length, element_bytes),
    )
