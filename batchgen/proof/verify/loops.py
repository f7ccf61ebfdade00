"""Check that a user's loop gives a row the same bits alone, in smaller batches, shuffled, and after an opening."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Rows
from typing import TYPE_CHECKING, Any

from batchgen.errors import InputError
from batchgen.proof.verify.bits import SHARED
from batchgen.proof.verify.layers import OUTPUT, Forward, LayerWatch, find_parting
from batchgen.records import Sequence

if TYPE_CHECKING:
    import torch

    from batchgen.model import Model

Loop = Callable[[list[str]], Iterable[Any]]
Encode = Callable[[list[str]], list[Sequence]]
IDENTICAL = "bit-identical"
THREE = 3


class LoopRecorder:
    """Records the layers' outputs for some rows while a loop runs; rows are found by the ids of their prompts."""

    def __init__(self, model: Model, rows: Rows[Sequence]) -> None:
        self.forwards: dict[int, list[Forward]] = {row.request.index: [] for row in rows}
        self._prompts = dict[int, list[int]]()
        self._batch: list[int | None] = []  # the row at each position of the running batch
        self._watch = LayerWatch(model, self._on_forward)

    def run(self, call: Loop, prompts: list[str], rows: Rows[Sequence]) -> list[Any]:
        """Call the loop; `rows` are those of its prompts that are recorded."""
        self._prompts = {row.request.index: list(row.input_ids) for row in rows}
        self._batch = []
        with self._watch.watching():
            return list(call(prompts))

    def _on_forward(self, logits: torch.Tensor) -> None:
        ids = self._watch.input_ids
        if ids is None:
            return
        if ids.shape[1] > 1 or not self._batch:
            self._batch = self._find(ids)
        for place, index in enumerate(self._batch if len(self._batch) == len(ids) else ()):
            if index is not None:
                states = self._watch.states_of(place)
                self.forwards[index].append({**states, OUTPUT: logits[place].detach().float().cpu().clone()})

    def _find(self, ids: torch.Tensor) -> list[int | None]:
        """The rows in a prefill, by position; a loop without a cache passes all tokens each time."""
        mask, found = self._watch.mask, list[int | None]()
        for place, row in enumerate(ids.tolist()):
            real = row if mask is None else [token for token, is_real in zip(row, mask[place], strict=True) if is_real]
            begins = (i for i, prompt in self._prompts.items() if i not in found and real[: len(prompt)] == prompt)
            found.append(max(begins, key=lambda index: len(self._prompts[index]), default=None))
        return found


def compare_loop(
    call: Loop, recorder: LoopRecorder, model: Model, picked: list[Sequence], encode: Encode
) -> dict[int, str]:
    """For each picked row, "bit-identical", or where it first differs; `recorder` has its run with all other rows."""
    if not any(recorder.forwards.values()):
        raise InputError(
            "bits=True compares forwards of `model.network`, and the loop ran none: pass the Model that the loop uses"
        )
    ways = {
        "one at a time": (recorder, _again(call, model, picked, 1)),
        "three at a time": (recorder, _again(call, model, picked, THREE)),
        "shuffled": (recorder, _again(call, model, random.Random(0).sample(picked, len(picked)), len(picked))),
    }
    found = {row.request.index: _first_verdict(ways, row.request.index) for row in picked}
    if led := _behind_opening(picked, encode):
        way = {SHARED: (_again(call, model, led, 1), _again(call, model, led, len(led)))}
        for row, behind in zip(picked, led, strict=True):
            found[row.request.index] = found[row.request.index] or _first_verdict(way, behind.request.index)
    return {index: verdict or IDENTICAL for index, verdict in found.items()}


def _behind_opening(picked: list[Sequence], encode: Encode) -> list[Sequence]:
    """The prompts, each after the longest one; empty if that would be too long for the model."""
    prompts = [row.request.prompt for row in picked]
    opening = max(prompts, key=len) + " "
    try:
        return encode([opening + prompt for prompt in prompts])
    except InputError:
        return []


def _first_verdict(ways: Mapping[str, tuple[LoopRecorder, LoopRecorder]], index: int) -> str | None:
    pairs = ((name, one.forwards[index], other.forwards[index]) for name, (one, other) in ways.items())
    return next(filter(None, (_verdict(*pair) for pair in pairs)), None)


def _again(call: Loop, model: Model, rows: list[Sequence], size: int) -> LoopRecorder:
    recorder = LoopRecorder(model, rows)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        recorder.run(call, [row.request.prompt for row in part], part)
    return recorder


def _verdict(name: str, one: list[Forward], other: list[Forward]) -> str | None:
    import torch

    if all(torch.equal(mine[OUTPUT], theirs[OUTPUT]) for mine, theirs in zip(one, other, strict=False)):
        return None
    return f"other bits {name}: {find_parting(one, other)}"
