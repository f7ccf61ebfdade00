"""The sizes in a config that decide how much memory a model and its rows take, and the formulas: arithmetic only.

In the formulas e is bytes per element, S columns, L layers, H hidden size, I inner size, V vocabulary size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from batchgen.model.layer_rules import layer_windows

if TYPE_CHECKING:
    from transformers import PretrainedConfig

INPUTS_PER_SCALE = 64  # of a layer in 8-bit integers, if these are in tiles; one in as many stays in float32


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes in a config that decide how many bytes a model and its batches need."""

    n_layer: int
    n_head: int
    n_kv_head: int
    head_dim: int
    n_embd: int
    n_inner: int
    vocab_size: int
    n_positions: int = 0  # learned position embeddings; 0 for rotary and other kinds
    is_tied: bool = True  # the output layer is the embedding
    is_gated: bool = False  # the inner layer has a gate (SwiGLU)
    windows: tuple[int | None, ...] = ()  # per layer, if some see only a window of columns

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> ModelShape:
        """Read a transformers config; fields that a family lacks fall back to GPT-2's proportions."""
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
            n_positions=(_number(text, "n_positions") or 0) if text.model_type == "gpt2" else 0,
            is_tied=bool(getattr(text, "tie_word_embeddings", True)),
            is_gated=getattr(text, "hidden_act", None) in ("silu", "swish"),  # families with a gate name these
            windows=tuple(windows) if any(windows := layer_windows(config)) else (),
        )


def _number(config: PretrainedConfig, *names: str) -> int | None:
    """The first of these fields that a config has, the maximum if it is per layer; recurrent models lack some."""
    for name in names:
        value = _value(config, name)
        if value:
            return int(max(value) if isinstance(value, list | tuple) else value)
    return None


def _value(config: PretrainedConfig, name: str) -> Any:
    """A field of a config; a list with each layer's value if the field is per layer."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # Gemma 4: such a field has no value for the whole model
        return [getattr(layer, name) for layer in config.per_layer_config]


def num_parameters(shape: ModelShape) -> int:
    """The number of weights of a model with this shape: exact for GPT-2, without the few of the norms for others.
    >>> num_parameters(ModelShape(12, 12, 12, 64, 768, 3072, 50257, n_positions=1024))
    124439808
    """
    n_embd, heads = shape.n_embd, shape.n_head * shape.head_dim
    kv_heads = shape.n_kv_head * shape.head_dim
    attention = n_embd * (heads + 2 * kv_heads) + heads * n_embd
    inner = (3 if shape.is_gated else 2) * n_embd * shape.n_inner
    # GPT-2's biases (3H and H in attention, I and H in the inner layers) and two norms of 2H; the last norm is below.
    small = 9 * n_embd + shape.n_inner if shape.n_positions else 0
    embeddings = shape.vocab_size * (1 if shape.is_tied else 2) + shape.n_positions
    return shape.n_layer * (attention + inner + small) + embeddings * n_embd + (2 * n_embd if shape.n_positions else 0)


def int8_weights(footprint: Footprint, shape: ModelShape, *, in_tiles: bool) -> int:
    """Bytes of the weights with linear layers and the embedding in 8-bit integers; learned positions stay.

    A few inputs of each layer are in float32 too. Each output has a scale and a sum, of four bytes; in tiles it has a
    scale for 64 inputs.
    """
    positions = shape.n_positions * shape.n_embd
    integers = footprint.weights // footprint.element_bytes - positions
    loud = shape.n_embd // INPUTS_PER_SCALE if in_tiles else num_loud(shape.n_embd)
    scales = -(-shape.n_embd // INPUTS_PER_SCALE) if in_tiles else 2
    beside = 4 * (loud + scales) * integers // shape.n_embd
    return positions * footprint.element_bytes + integers + beside


def num_loud(num_inputs: int) -> int:
    """How many inputs of a layer in 8-bit integers stay in float32, if these are not in tiles.

    One in 16, in multiples of 16: more cost time, fewer change tokens (docs/decisions.md).

    >>> num_loud(576), num_loud(1536), num_loud(8)
    (32, 96, 4)
    """
    return min(max(16, num_inputs // 16 // 16 * 16), num_inputs // 2)


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that one model takes: its weights, and what each row of a batch adds.

    `prefill` lists (bytes per column, bytes per pair of columns) for each moment of a forward that may be its peak on
    top of the cache. It excludes the attention mask, which takes one byte for each pair.
    """

    weights: int
    vocab_size: int
    element_bytes: int
    cache_column: float  # keys and values of one column, in all layers
    prefill: tuple[tuple[float, float], ...]
    decode_column: float  # the part of the cache that a step copies to make room for one column
    cache_row: float = 0  # the state of recurrent layers: it does not grow with the columns
    local: tuple[tuple[int, float], ...] = ()  # (window, bytes): the share of `cache_column` in layers with a window
    num_layers: int = 1
    scores: int = 0  # one query's scores of one column in all heads, before and after the softmax
    largest_weight: int = 0  # of linear layers that multiply the same input
    output_weight: int = 0  # of an output layer that is not the embedding
    prefills_alone: bool = False  # slots prefill one row at a time, for a scan over columns to have the same bits
    overrun: float = 1.0  # the factor by which rows exceeded this prediction in earlier runs

    @classmethod
    def of_shape(cls, shape: ModelShape, element_bytes: int, attention: str = "sdpa") -> Footprint:
        """GPT-2's formulas, also the fallback for any other family.

        For grouped-query models, the only difference covered is that they keep fewer keys and values.
        """
        cache_column = 2 * shape.n_layer * shape.n_kv_head * shape.head_dim * element_bytes
        n_embd = shape.n_embd
        # While the inner layer's activation is computed: the residual, its norm and their inputs (6H), and four inner
        # vectors, because transformers computes gelu_new in separate Python operations. 22H if I = 4H.
        inner_layer = ((6 * n_embd + 4 * shape.n_inner) * element_bytes, 0)
        # In attention: residual, norm, queries, keys, values, output. sdpa converts the boolean mask to numbers; eager
        # does too, and keeps the scores twice.
        scores = 2 * shape.n_head * element_bytes if attention == "eager" else 0
        attending = (6 * n_embd * element_bytes, element_bytes + scores)
        return cls(
            weights=num_parameters(shape) * element_bytes,
            vocab_size=shape.vocab_size,
            element_bytes=element_bytes,
            cache_column=cache_column,
            prefill=(inner_layer, attending),
            decode_column=cache_column / (2 * shape.n_layer),  # one layer's keys or values at a time
            num_layers=shape.n_layer,
            scores=2 * shape.n_head * element_bytes,
            largest_weight=(2 if shape.is_gated else 1) * n_embd * shape.n_inner * element_bytes,
            output_weight=0 if shape.is_tied else n_embd * shape.vocab_size * element_bytes,
            local=tuple(
                (window, shape.windows.count(window) * cache_column / shape.n_layer)
                for window in sorted({window for window in shape.windows if window})
            ),
        )

    def times(self, factor: int) -> Footprint:
        """The same footprint with elements `factor` times as large; `element_bytes` is not scaled."""
        return (
            self
            if factor == 1
            else replace(
                self,
                weights=factor * self.weights,
                cache_column=factor * self.cache_column,
                prefill=tuple((factor * column, factor * pair) for column, pair in self.prefill),
                decode_column=factor * self.decode_column,
                scores=factor * self.scores,
                largest_weight=factor * self.largest_weight,
                output_weight=factor * self.output_weight,
                cache_row=factor * self.cache_row,
                local=tuple((window, factor * column) for window, column in self.local),
            )
        )

    @property
    def windows(self) -> tuple[tuple[int | None, float], ...]:
        """(window, bytes of one column) for the layers that see all columns (None) and for those with each window."""
        everywhere = self.cache_column - sum(column_bytes for _, column_bytes in self.local)
        return ((None, everywhere), *self.local) if everywhere > 0 or not self.local else self.local

    def cache_bytes(self, rows: int, columns: int) -> int:
        """Bytes of the cache for `columns` positions of `rows` rows, including padding."""
        kept = sum(column_bytes * min(columns, window or columns) for window, column_bytes in self.windows)
        return int(rows * (self.cache_row + kept))

    def prefill_bytes(self, rows: int, columns: int) -> int:
        """Bytes of activations at the peak of a forward over `columns` positions, on top of cache and mask."""
        return int(rows * max(column * columns + pair * columns**2 for column, pair in self.prefill))
