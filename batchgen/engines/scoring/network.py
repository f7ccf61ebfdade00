"""A model in two parts, tokens to hidden states and these to logits, so that only the needed logits are computed.

Both parts are transformers' own forward. In the second part the hidden states replace the lower layers, so that
everything a family does to logits (scales, soft caps) is applied. Rows are aligned left, with pads after them: a causal
model never looks ahead, so a row sees none of its pads, however the model treats masks.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from batchgen.engines.continuous.linear import PLAIN, kernels_of, speed_up
from batchgen.engines.continuous.quantized import quantize_network
from batchgen.engines.continuous.same_bits import fix_bits
from batchgen.engines.int8.support import ALL_INT8, leave_out
from batchgen.engines.trial.rows import TOLERANCE, TOLERANCE_16_BIT, trial_rows
from batchgen.errors import ModelError
from batchgen.model import Model
from batchgen.model.long_rope import short_limit

LEAST_TOKENS = 64  # of a forward: with fewer, a product's bits depend on their number (docs/decisions.md)
PIECE_NUMBERS = 2**24  # logits that are computed at once


class _Given(nn.Module):
    """Replaces a network's lower layers, and returns the hidden states that were set."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: torch.Tensor | None = None

    @property
    def decoder(self) -> _Given:
        """For OPT and similar models, which read the decoder of the lower layers."""
        return self

    def forward(self, *_: Any, **__: Any) -> _Output:
        assert self.hidden is not None
        return _Output(self.hidden)


class _Output:
    """The parts of a model's output that a forward reads: the hidden states; everything else is None."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, place: int) -> torch.Tensor | None:
        return self.last_hidden_state if place == 0 else None

    def __getattr__(self, name: str) -> None:
        return None


# For each loaded network that is still in use, by the requested kernels: packed and tried once.
_made: WeakKeyDictionary[nn.Module, dict[str | None, ScoringNetwork]] = WeakKeyDictionary()


def scoring_network(
    model: Model,
    *,
    is_owned: bool = False,
    has_room: Callable[[int], bool] = lambda num_bytes: True,
    kernels: str | None = None,
) -> ScoringNetwork:
    """Return the network that scores a model's rows; with `kernels` of `ALL_INT8`, in 8-bit integers.

    The arguments are those of `speed_up`. A model that `is_owned` has one such network for good, because its weights
    are there. Raises `ModelError` if the model does not support 8-bit integers.
    """
    made = _made.setdefault(model.network, {})
    found = made.get(kernels) or next((own for own in made.values() if is_owned or own.kernels == kernels), None)
    if found is None:
        found = made[kernels] = ScoringNetwork(model, is_owned=is_owned, has_room=has_room, kernels=kernels)
    return found


def whole_logits(model: Model, token_ids: Rows[int]) -> torch.Tensor:
    """Return the logits `[T, V]` of a row alone, by the model's plain forward."""
    ids = torch.tensor([list(token_ids)])
    inputs = model.inputs(ids, torch.ones_like(ids), torch.arange(ids.shape[1])[None])
    logits: torch.Tensor = model.network(**inputs, use_cache=False).logits
    return logits[0]


def enough(rows: list[tuple[int, ...]], columns: int) -> list[tuple[int, ...]]:
    """Return the rows, repeated if there are few: at least `LEAST_TOKENS` tokens, including pads."""
    least = -(-LEAST_TOKENS // columns)
    return rows if len(rows) >= least else (rows * -(-least // len(rows)))[:least]


class ScoringNetwork:
    """The model on its own network, with the same weights; `can_share` says whether prompts can be computed once.

    Each row has the same bits beside any others, as far as this machine can; `problem` says why not, if that is known.
    If its two parts do not give the logits of the model's own forward, or if pads after a row change them, `is_split`
    is False: each row then runs alone, in one part.
    """

    def __init__(
        self,
        model: Model,
        *,
        is_owned: bool = False,
        has_room: Callable[[int], bool] = lambda num_bytes: True,
        kernels: str | None = None,
    ) -> None:
        rows = [row.input_ids for row in trial_rows(model.checkpoint)[:3]]
        with torch.inference_mode():
            expected = [whole_logits(model, ids)[-1].float() for ids in rows]
        self.model = own = model.on_same_weights()
        loaded = model.network if is_owned else None
        speed_up(own.network, loaded, has_room=has_room, kernels=PLAIN if kernels in ALL_INT8 else kernels)
        # Why a row's bits depend on the other rows, if that is known.
        self.problem = None if kernels in ALL_INT8 else fix_bits(own.network)
        self.kernels = kernels_of(own.network)
        self._body: nn.Module = own.network.base_model
        self._given, self._head = _Given(), own.network
        if self._body is not self._head:
            setattr(self._head, own.network.base_model_prefix, self._given)
        limits = short_limit(model.checkpoint.config), model.checkpoint.n_positions
        self.borders = [limit for limit in limits if limit]  # positions that padding and sharing must not cross
        self.can_share = True
        self.is_split = self._body is not self._head and self._holds(rows, expected)
        self.can_share = self.is_split and self._can_share(rows, expected)
        if kernels in ALL_INT8:
            self._quantize(model, kernels, is_owned=is_owned)

    def hidden(self, rows: list[tuple[int, ...]], columns: int, cache: DynamicCache | None = None) -> torch.Tensor:
        """Return the hidden states `[B, T, H]` of rows that continue what `cache` holds; T is `columns`."""
        before = cache.get_seq_length() if cache is not None else 0
        pad = self.model.checkpoint.pad_token_id
        input_ids = torch.tensor([[*row, *[pad] * (columns - len(row))] for row in rows])  # [B, T]
        mask = torch.ones(len(rows), before + columns, dtype=torch.int64)
        position_ids = torch.arange(before, before + columns).expand(len(rows), -1)
        inputs = self.model.inputs(input_ids, mask, position_ids)
        more = {} if cache is None else {"past_key_values": cache}
        output = self._body(**inputs, **more, use_cache=cache is not None)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.model.checkpoint.config)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits `[N, V]` of hidden states `[N, H]`, in the model's dtype."""
        number = len(hidden)
        self._given.hidden = (
            hidden.repeat(-(-LEAST_TOKENS // number), 1)[None] if number < LEAST_TOKENS else hidden[None]
        )
        ids = torch.zeros(self._given.hidden.shape[:2], dtype=torch.int64)  # never read
        logits: torch.Tensor = self._head(**self.model.inputs(ids, torch.ones_like(ids), ids), use_cache=False).logits
        self._given.hidden = None
        return logits[0, :number]

    def _quantize(self, model: Model, kernels: str, *, is_owned: bool) -> None:
        """Switch to 8-bit integers; the weights of a model that nothing else needs are freed.

        Raises `ModelError` if rows would run on the model as it was loaded.
        """
        if not self.is_split:
            name = self.model.checkpoint.name
            raise ModelError(f"--quantize int8 does not score {name}: in batches its logits were others; {leave_out()}")
        loaded = model.network if is_owned else None
        setattr(self._head, self._head.base_model_prefix, self._body)  # the embedding may be the output layer
        quantize_network(model, self._head, loaded, kernels)
        setattr(self._head, self._head.base_model_prefix, self._given)
        self.kernels = kernels
        self.problem = fix_bits(self._body)

    @property
    def rows_at_once(self) -> int:
        """How many hidden states get their logits together."""
        return max(LEAST_TOKENS, PIECE_NUMBERS // self.model.checkpoint.vocab_size)

    # The trial.

    def _holds(self, rows: list[list[int]], expected: list[torch.Tensor]) -> bool:
        """Whether rows of several lengths, with pads after them, get the logits of the plain forward."""
        try:
            with torch.inference_mode():
                columns = max(map(len, rows)) + 1
                hidden = self.hidden([tuple(row) for row in rows] * 4, columns)
                last = torch.stack([hidden[place, len(row) - 1] for place, row in enumerate(rows)])
                return self._are_near(self.logits(last).float(), expected)
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError):
            return False

    def _can_share(self, rows: list[list[int]], expected: list[torch.Tensor]) -> bool:
        """Whether a row whose first half is computed once and continued in copies also gets those logits."""
        row, cache = rows[-1], self.new_cache()
        half = len(row) // 2
        if not half or {type(layer) for layer in cache.layers} - {DynamicLayer}:
            return False
        try:
            with torch.inference_mode():
                self.hidden([tuple(row[:half])], half, cache)
                if {type(layer) for layer in cache.layers} != {DynamicLayer}:
                    return False
                cache.batch_select_indices(torch.zeros(3, dtype=torch.int64, device=self.model.device))
                hidden = self.hidden([tuple(row[half:])] * 3, len(row) - half + 1, cache)
                return self._are_near(self.logits(hidden[:1, len(row) - half - 1]).float(), expected[-1:])
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError):
            return False

    def _are_near(self, found: torch.Tensor, expected: list[torch.Tensor]) -> bool:
        tolerance = TOLERANCE if self.model.dtype == torch.float32 else TOLERANCE_16_BIT
        return all(
            float((one - other).abs().max()) <= tolerance * float(other.abs().max())
            for one, other in zip(found, expected, strict=True)
        )
