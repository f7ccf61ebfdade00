"""States of rows in slots: what convolutions and recurrent layers keep instead of keys and values.

A state has the same size for long and short rows. The layers are those of transformers' linear attention caches: a
family's own forward reads and changes them. Knows nothing of pages.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import groupby
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from batchgen.engines.continuous.layer import SlotLayer
from batchgen.engines.continuous.slots import Slot

# A part of the rows, and which of its rows to take.
Picked = tuple[int, list[int]]


@dataclass(slots=True)
class States:
    """What one layer keeps for some rows: last inputs of convolutions `[R, C, K]`, and recurrent states `[R, …]`."""

    convs: dict[int, torch.Tensor] = field(default_factory=dict)
    recurrent: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return sum(state.nbytes for state in (*self.convs.values(), *self.recurrent.values()))


class StatePool:
    """Which slots' states are where, in all layers that keep any.

    Rows that a prefill fills form their own part. A step merges all open rows into one part, in its own order, and its
    forward changes them in place: rows of closed slots are not in it and are never read again.
    """

    def __init__(self) -> None:
        self.layers: list[StateLayer] = []
        self._parts: dict[int, list[Slot]] = {}
        self._num_made = 0
        self._open: set[Slot] = set()
        self._is_stepping = False

    @property
    def held_bytes(self) -> int:
        return sum(layer.state_bytes for layer in self.layers)

    def begin_prefill(self, slots: Rows[Slot], attention_mask: torch.Tensor) -> None:
        """Begin a prefill: the forward fills new `slots` from a left-padded batch, mask `[B, T]`."""
        self._open.update(slots)
        self._begin(self._add_part(slots), attention_mask.bool()[:, None])

    def begin_step(self, slots: Rows[Slot]) -> None:
        """Begin a step: the forward changes the states of `slots`, which must be all open slots."""
        self._is_stepping = True
        if list(self._parts.values()) != [list(slots)]:
            self._join(slots)
        self._begin(next(iter(self._parts)), None)

    def end_step(self) -> None:
        self._is_stepping = False

    def digests(self) -> list[torch.Tensor]:
        """Return 16 numbers `[16]` for each row of the last forward, which differ if a bit of its states does."""
        states = [state for layer in self.layers for state in layer.now]
        return [_digest(state[row] for state in states) for row in range(len(states[0]))]

    def undo_step(self) -> bool:
        """Whether the states are still those from before a step that failed; if not, all of them are dropped."""
        is_intact = not self._is_stepping
        self._is_stepping = False
        if not is_intact:
            self._open.clear()
            self._join([])
        return is_intact

    def close(self, slot: Slot) -> None:
        """Stop reading a slot's states; they are freed with the next step, or at once if no slot is open."""
        self._open.discard(slot)
        if not self._open:
            self._join([])

    def _add_part(self, slots: Rows[Slot]) -> int:
        self._num_made += 1
        self._parts[self._num_made] = list(slots)
        return self._num_made

    def _begin(self, part: int, real: torch.Tensor | None) -> None:
        for layer in self.layers:
            layer.begin(part, real)

    def _join(self, slots: Rows[Slot]) -> None:
        """Merge the states of these slots into one part, in this order, and drop all others."""
        places = {slot: (part, row) for part, its in self._parts.items() for row, slot in enumerate(its)}
        runs = groupby((places[slot] for slot in slots), key=lambda place: place[0])
        picked = [(part, [row for _, row in run]) for part, run in runs]
        self._parts = {}
        joined = self._add_part(slots) if slots else None
        for layer in self.layers:
            layer.join(picked, joined)


class StateLayer(LinearAttentionCacheLayerMixin):  # type: ignore[misc]
    """One layer's states; transformers reads `conv_states` and `recurrent_states`, which are those of one part."""

    def __init__(self, number_of_states: int = 1) -> None:
        LinearAttentionCacheLayerMixin.__init__(self, number_of_states)
        self._parts: dict[int, States] = {}
        self._real: torch.Tensor | None = None  # [B, 1, T] of the current prefill: false at its pads

    @property
    def state_bytes(self) -> int:
        return sum(part.num_bytes for part in self._parts.values())

    @property
    def now(self) -> list[torch.Tensor]:
        """The states `[R, …]` of the last forward's rows."""
        return [*self.conv_states.values(), *self.recurrent_states.values()]

    def begin(self, part: int, real: torch.Tensor | None) -> None:
        """Begin a forward that creates a part's states from `real` columns, or with None reads and changes them."""
        states = self._parts.setdefault(part, States())
        self._real = real
        self.conv_states, self.recurrent_states = states.convs, states.recurrent
        self.has_previous_state = dict.fromkeys(range(self.number_of_states), real is None)

    def join(self, picked: list[Picked], joined: int | None) -> None:
        """Build one part from the picked rows of other parts, and drop everything else."""
        self.conv_states, self.recurrent_states = {}, {}
        chosen = [(self._parts[part], rows) for part, rows in picked]
        self._parts = {}
        if joined is not None:
            self._parts[joined] = States(
                {i: _rows_of([(its.convs[i], rows) for its, rows in chosen]) for i in chosen[0][0].convs},
                {i: _rows_of([(its.recurrent[i], rows) for its, rows in chosen]) for i in chosen[0][0].recurrent},
            )

    def lazy_initialization(self, *_: Any, **__: Any) -> None:
        """Prepare nothing: the first forward of a part's rows creates its states."""

    def update_conv_state(
        self, conv_states: torch.Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any
    ) -> torch.Tensor:
        """Keep the last K of inputs `[B, C, T]`, including those before them; return all of them.

        Pads of a prefill become zeros, which is what a convolution sees in front of a row that runs alone.
        """
        if self._real is None:
            before = self.conv_states[state_idx]
            full, size = torch.cat([before, conv_states], -1), before.shape[-1]
        else:
            size = conv_kernel_size or conv_states.shape[-1]
            full = _without_pads(conv_states, self._real)
        kept = full[..., -size:]
        self.conv_states[state_idx] = pad(kept, (size - kept.shape[-1], 0)).clone()
        return full

    def update_recurrent_state(self, recurrent_states: torch.Tensor, state_idx: int = 0, **_: Any) -> torch.Tensor:
        """Keep states `[B, …]` as they are after the last column."""
        if self._real is None:
            kept = recurrent_states.to(self.recurrent_states[state_idx].dtype)
        else:
            kept = recurrent_states.clone()  # a copy: it may be a small view of a large tensor
        self.recurrent_states[state_idx] = kept
        return kept


class StateAndSlotLayer(StateLayer, SlotLayer):
    """A layer that has both attention and a state (Falcon-H1, Zamba 2)."""

    def __init__(self, pool: Any, index: int, number_of_states: int = 1) -> None:
        SlotLayer.__init__(self, pool, index)
        StateLayer.__init__(self, number_of_states)

    def lazy_initialization(self, *args: Any, **_: Any) -> None:
        SlotLayer.lazy_initialization(self, *args)


def _digest(states: Iterable[torch.Tensor]) -> torch.Tensor:
    digest = blake2b(digest_size=16)
    for state in states:
        digest.update(state.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return torch.tensor(list(digest.digest()), dtype=torch.float32)


def _without_pads(inputs: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return inputs `[B, C, T]`, with zeros where the last columns of `real` `[B, 1, T]` are pads."""
    num_columns = min(inputs.shape[-1], real.shape[-1])
    if bool(real[..., -num_columns:].all()):
        return inputs
    is_pad = pad(~real[..., -num_columns:], (inputs.shape[-1] - num_columns, 0))
    return inputs.masked_fill(is_pad, 0)


def _rows_of(parts: list[tuple[torch.Tensor, list[int]]]) -> torch.Tensor:
    """Concatenate rows of several tensors; a tensor that is taken as a whole is not copied."""
    picked = [
        state if rows == list(range(len(state))) else state[torch.tensor(rows, device=state.device)]
        for state, rows in parts
    ]
    return picked[0] if len(picked) == 1 else torch.cat(picked)
