"""How many bytes rows need that run together: arithmetic only, no tensors and no probing.

For transformers' `generate` (`estimate`), for the slot engine (`slots_estimate`), and for the work space of our
sampler; every factor was measured as live tensor bytes (docs/memory.md, made by `benchmarks/memory_sweep.py`). In the
formulas e is bytes an element, B rows, S padded length, C columns (prompt and new tokens), L layers, H hidden size, I
inner size, V vocabulary.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from batchgen.records import MemoryEstimate, SamplingParams, Sequence

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FLOAT32_BYTES = 4
# What a process holds on top of live tensors: the heap of small ones, scratch of the matrix kernels (measured: nothing
# to 5%, docs/memory.md).
WORKSPACE_BYTES, WORKSPACE_SHARE = 6 * 2**20, 0.06
FIRST_WINDOW = 16
# On top of that in the slot engine, once: kernels and scratch for the numbers of rows met last, and the holes that
# logits leave in the heap where memory is plenty and freed blocks are kept (measured: docs/memory.md).
KERNELS_BYTES = 84 * 2**20
# With less than this for a batch those kernels and prefills of many rows do not fit: batches need less.
LEAST_SLOTS_BYTES = 128 * 2**20
# The slot engine: columns of a page of its KV cache, and the most tokens, pads included, that it prefills at once.
# Both were measured, see docs/decisions.md.
PAGE = 32
PREFILL_TOKENS = 1024
# A batch may take this share of what is left beside the weights; the rest is for what no formula sees.
BUDGET_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a config decides how many bytes a model and its batches need."""

    n_layer: int
    n_head: int
    n_kv_head: int
    head_dim: int
    n_embd: int
    n_inner: int
    vocab_size: int
    n_positions: int = 0  # learned position embeddings; 0 for rotary and the like
    is_tied: bool = True  # the output layer is the embedding
    is_gated: bool = False  # the inner layer has a gate beside it (SwiGLU)

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
            n_positions=(_number(text, "n_positions") or 0) if text.model_type == "gpt2" else 0,
            is_tied=bool(getattr(text, "tie_word_embeddings", True)),
            is_gated=getattr(text, "hidden_act", None) in ("silu", "swish"),  # families with a gate name these
        )


def _number(config: PretrainedConfig, *names: str) -> int | None:
    """The first of these that a config has; the greatest where it has one a layer. Recurrent models lack some."""
    for name in names:
        value = getattr(config, name, None)
        if value:
            return int(max(value) if isinstance(value, list | tuple) else value)
    return None


def num_parameters(shape: ModelShape) -> int:
    """Weights of a model of this shape: exact for GPT-2, without the norms' few for others.

    >>> num_parameters(ModelShape(12, 12, 12, 64, 768, 3072, 50257, n_positions=1024))
    124439808
    """
    n_embd, heads = shape.n_embd, shape.n_head * shape.head_dim
    kv_heads = shape.n_kv_head * shape.head_dim
    attention = n_embd * (heads + 2 * kv_heads) + heads * n_embd
    inner = (3 if shape.is_gated else 2) * n_embd * shape.n_inner
    # GPT-2's biases (3H and H in attention, I and H in the inner layers) and two norms of 2H; the last norm beside.
    small = 9 * n_embd + shape.n_inner if shape.n_positions else 0
    embeddings = shape.vocab_size * (1 if shape.is_tied else 2) + shape.n_positions
    return shape.n_layer * (attention + inner + small) + embeddings * n_embd + (2 * n_embd if shape.n_positions else 0)


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that one model takes: its weights, and what each row of a batch adds.

    `prefill` lists (bytes a column, bytes a pair of columns), one for each moment of a forward that may be its peak
    above the cache; the attention mask is not among them, it has a byte a pair.
    """

    weights: int
    vocab_size: int
    element_bytes: int
    cache_column: float  # keys and values of one column, in all layers
    prefill: tuple[tuple[float, float], ...]
    decode_column: float  # what a step copies of the cache while it makes room for one column
    cache_row: float = 0  # the state of a recurrent layer: it does not grow with the columns

    @classmethod
    def of_shape(cls, shape: ModelShape, element_bytes: int, attention: str = "sdpa") -> Footprint:
        """GPT-2's formulas; the fallback for any other family.

        Grouped-query models keep fewer keys and values; that is all of theirs that is here.
        """
        cache_column = 2 * shape.n_layer * shape.n_kv_head * shape.head_dim * element_bytes
        n_embd = shape.n_embd
        # While the inner layer's activation is computed: the residual, its norm and what they came from (6H), and four
        # inner vectors, since transformers writes gelu_new out in Python operations. 22H where I = 4H.
        inner_layer = ((6 * n_embd + 4 * shape.n_inner) * element_bytes, 0)
        # In attention: residual, norm, queries, keys, values, output; sdpa makes a number of each boolean of the mask,
        # eager has that too, and the scores twice.
        scores = 2 * shape.n_head * element_bytes if attention == "eager" else 0
        attending = (6 * n_embd * element_bytes, element_bytes + scores)
        return cls(
            weights=num_parameters(shape) * element_bytes,
            vocab_size=shape.vocab_size,
            element_bytes=element_bytes,
            cache_column=cache_column,
            prefill=(inner_layer, attending),
            decode_column=cache_column / (2 * shape.n_layer),  # one layer's keys, or its values, at a time
        )

    def cache_bytes(self, rows: int, columns: int) -> int:
        """Keys and values of `columns` positions of `rows` rows, pads included."""
        return int(rows * (self.cache_row + self.cache_column * columns))

    def prefill_bytes(self, rows: int, columns: int) -> int:
        """Activations at the peak of a forward over `columns` positions, above cache and mask."""
        return int(rows * max(column * columns + pair * columns**2 for column, pair in self.prefill))


def estimate(footprint: Footprint, rows: int, padded_length: int, sampling: SamplingParams) -> MemoryEstimate:
    """Bytes above the weights at the peak of one batch of `rows` rows padded to `padded_length` columns.

    The peak is the prefill's or that of the last decode step, whichever is higher; the parts are those of that moment.
    """
    rows *= sampling.num_beams
    prefill = _prefill(footprint, rows, padded_length)
    decode = _last_step(footprint, rows, padded_length + sampling.max_new_tokens - 1, sampling)
    return max(prefill, decode, key=lambda moment: moment.total)


def kinds_of(samplings: Iterable[SamplingParams]) -> list[SamplingParams]:
    """One of each kind of sampling that takes its own amount of memory: rows may differ in their seeds alone."""
    different = {id(sampling): sampling for sampling in samplings}.values()
    kinds = {(s.max_new_tokens, s.num_beams, s.is_greedy, s.top_k > 0, s.top_p < 1, s.min_p > 0): s for s in different}
    return list(kinds.values())


def slots_estimate(footprint: Footprint, rows: int, padded_length: int, sampling: SamplingParams) -> MemoryEstimate:
    """Bytes above the weights at the peak of the slot engine, with `rows` such rows in its slots.

    The rows come in by prefills of a bounded size; the cache is that of rows which are all about to end.
    """
    num_pages = rows * pages_of(padded_length, sampling)
    return _slots_peak(footprint, rows, num_pages, padded_length, sampling)


def filled_slots_estimate(
    footprint: Footprint, rows: Rows[tuple[int, SamplingParams]], prefix_tokens: int = 0
) -> MemoryEstimate:
    """Bytes above the weights that the slot engine needs for rows of these prompt lengths, each with its options.

    A prefix is kept once for all rows that share it: its tokens count in `prefix_tokens`, not in the rows' lengths.
    """
    longest = max(length for length, _ in rows)
    num_pages = sum(pages_of(length, sampling) for length, sampling in rows)
    kinds = kinds_of(sampling for _, sampling in rows)
    peaks = (_slots_peak(footprint, len(rows), num_pages, longest, kind, prefix_tokens) for kind in kinds)
    return max(peaks, key=lambda peak: peak.total)


def _slots_peak(
    footprint: Footprint, rows: int, num_pages: int, columns: int, sampling: SamplingParams, prefix_tokens: int = 0
) -> MemoryEstimate:
    """The higher of a prefill's peak and a step's, above a cache of so many pages and the prefix."""
    cache = footprint.cache_bytes(1, num_pages * PAGE + prefix_tokens)
    chooses = int(logits_factor(sampling, footprint.element_bytes, copies=False) * footprint.vocab_size * FLOAT32_BYTES)
    is_exact = footprint.element_bytes == FLOAT32_BYTES
    again = footprint.prefill_bytes(1, prefix_tokens + columns + sampling.max_new_tokens - 1) if is_exact else 0
    step = _with_workspace(
        kv_cache=cache, attention_mask=num_pages * PAGE * FLOAT32_BYTES, logits=chooses * rows, activations=again
    )
    filled = min(rows, prefill_rows(columns))
    behind = int(2 * footprint.decode_column * filled * prefix_tokens)  # one layer's prefix, once for every row
    prefill = _with_workspace(
        kv_cache=cache,
        attention_mask=filled * columns * (prefix_tokens + columns),
        logits=chooses * filled,
        activations=max(footprint.prefill_bytes(filled, columns) + behind, footprint.prefill_bytes(1, prefix_tokens)),
    )
    peak = max(step, prefill, key=lambda moment: moment.total)
    return replace(peak, workspace=peak.workspace + KERNELS_BYTES)


def pages_of(num_prompt_tokens: int, sampling: SamplingParams) -> int:
    """Pages of a row at its end: its last token is chosen, but never fed.

    >>> pages_of(20, SamplingParams(max_new_tokens=13)), pages_of(20, SamplingParams(max_new_tokens=14))
    (1, 2)
    """
    return -(-(num_prompt_tokens + sampling.max_new_tokens - 1) // PAGE)


def prefill_rows(padded_length: int) -> int:
    """Rows of this length that the slot engine prefills at once."""
    return max(1, PREFILL_TOKENS // padded_length)


def _prefill(footprint: Footprint, rows: int, columns: int) -> MemoryEstimate:
    return _with_workspace(
        kv_cache=footprint.cache_bytes(rows, columns),
        attention_mask=rows * columns**2,
        logits=0,
        activations=footprint.prefill_bytes(rows, columns),
    )


def _last_step(footprint: Footprint, rows: int, columns: int, sampling: SamplingParams) -> MemoryEstimate:
    """The cache is as long as it gets: the last token is chosen, but never fed."""
    logits = int(logits_factor(sampling, footprint.element_bytes) * rows * footprint.vocab_size * FLOAT32_BYTES)
    previous = rows * footprint.vocab_size * FLOAT32_BYTES  # the last step's scores live on through the forward
    copying = int(rows * columns * footprint.decode_column)
    # A near tie is decided again by one unpadded row without a cache, beside all that; in float32 only.
    again = footprint.prefill_bytes(1, columns) if footprint.element_bytes == FLOAT32_BYTES else 0
    cache, mask = footprint.cache_bytes(rows, columns), rows * columns
    growing = _with_workspace(kv_cache=cache + copying, attention_mask=mask, logits=previous)
    choosing = _with_workspace(kv_cache=cache, attention_mask=mask, logits=logits, activations=again)
    return max(growing, choosing, key=lambda moment: moment.total)


def _with_workspace(*, kv_cache: int, attention_mask: int, logits: int, activations: int = 0) -> MemoryEstimate:
    tensors = kv_cache + attention_mask + logits + activations
    return MemoryEstimate(
        weights=0,
        kv_cache=kv_cache,
        attention_mask=attention_mask,
        logits=logits,
        activations=activations,
        workspace=WORKSPACE_BYTES + int(WORKSPACE_SHARE * tensors),
    )


def logits_factor(sampling: SamplingParams, element_bytes: int, *, copies: bool = True) -> float:
    """Work space for choosing a token, in units of B * V * 4 bytes (one float32 copy of the logits).

    `copies` are those that transformers' `generate` makes.

    >>> logits_factor(SamplingParams(), element_bytes=4), logits_factor(SamplingParams(), element_bytes=2)
    (3.0, 2.5)
    >>> logits_factor(SamplingParams(), element_bytes=4, copies=False)
    2.0
    """
    if copies:  # the model's logits, generate's float32 copy, and the scores of the step before
        held = element_bytes / FLOAT32_BYTES + 2
    else:  # the model's logits, the hole that those of the last step left, and a float32 copy where they are not that
        held = 2 * element_bytes / FLOAT32_BYTES + (element_bytes != FLOAT32_BYTES)
    return held + (1 if sampling.num_beams > 1 else _sampling_factor(sampling))  # beams: log-probabilities


def _sampling_factor(sampling: SamplingParams) -> float:
    if sampling.is_greedy:
        return 0
    # Logits over temperature, the unsure tokens' booleans, the CDF in float64; a cut keeps its own copy of the logits
    # and masks; top-p sorts them, with their places in int64. Each figure measured alone.
    cuts = {"top_k": 4.5 if sampling.top_k else 0, "min_p": 5 if sampling.min_p else 0}
    factors = [3.25, *cuts.values(), 7.25 if sampling.top_p < 1 else 0]
    num_cuts = sum(factor > 0 for factor in factors[1:])
    return max(factors) + (1 if num_cuts > 1 else 0)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What bounds a batch: the most rows, and the bytes above the weights. `num_rows` fixes the row count.

    `has_slots` is the engine `continuous`: what counts as a batch are then the rows in its slots.
    """

    footprint: Footprint
    budget_bytes: int
    most_rows: int
    num_rows: int | None = None
    has_slots: bool = False

    @property
    def first_window(self) -> int:
        """Rows of the first window: all slots, which fill before the first of them answers; or a small batch."""
        return self.num_rows or (self.most_rows if self.has_slots else min(FIRST_WINDOW, self.most_rows))

    def estimate(self, rows: int, padded_length: int, sampling: SamplingParams) -> MemoryEstimate:
        """What so many rows of so many columns need together."""
        by_engine = slots_estimate if self.has_slots else estimate
        return by_engine(self.footprint, rows, padded_length, sampling)


def budget_bytes(available_bytes: int) -> int:
    """What a batch may take of the bytes that are available."""
    return int(BUDGET_SHARE * available_bytes)


def batch_estimate(limits: BatchLimits, sequences: Rows[Sequence]) -> MemoryEstimate:
    """What these sequences need as one batch."""
    padded_length = max(sequence.num_prompt_tokens for sequence in sequences)
    needs = [
        limits.estimate(len(sequences), padded_length, kind)
        for kind in kinds_of(sequence.sampling for sequence in sequences)
    ]
    return max(needs, key=lambda need: need.total)


def batch_bytes(limits: BatchLimits, sequences: Rows[Sequence]) -> int:
    """Bytes above the weights that these sequences need as one batch."""
    return batch_estimate(limits, sequences).total


def largest_batch(limits: BatchLimits, padded_length: int, kinds: Iterable[SamplingParams], most: int) -> int:
    """The most rows, up to `most`, of `padded_length` columns that fit the budget; at least one, which must be tried.

    Rows may be of several `kinds`: the greediest for memory counts.
    """

    def needed_bytes(rows: int) -> int:
        return max(limits.estimate(rows, padded_length, kind).total for kind in kinds)

    return max(1, bisect_right(range(1, most + 1), limits.budget_bytes, key=needed_bytes))


def size_text(num_bytes: int) -> str:
    """Bytes as a person reads them.

    >>> size_text(0), size_text(72 << 10), size_text(3 << 29)
    ('0 B', '72 KiB', '1.5 GiB')
    """
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(max(0, num_bytes.bit_length() - 1) // 10, len(units) - 1)
    return f"{num_bytes / 1024**power:.1f}".removesuffix(".0") + f" {units[power]}"
