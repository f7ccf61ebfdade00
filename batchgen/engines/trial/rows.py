"""Rows for a trial, an engine's logits for them, and how far these are from each row alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from batchgen.engines.protocol import Engine, finish_all
from batchgen.engines.trial.widened import widened
from batchgen.model.layer_rules import layer_windows
from batchgen.model.padding import encode, pad
from batchgen.records import Request, SamplingParams, Sequence

if TYPE_CHECKING:
    from batchgen.model import Checkpoint, Model

# Ordinary text: punctuation, ids and repeated words are where models behave least normally.
TEXT = """
In the morning the old ferry left the harbour with eleven passengers, a crate of oranges and a dog that belonged to
nobody. The captain had made this crossing more than four thousand times, and he still looked at the sky before he cast
off, because his father had done so and because the sky in that part of the world was not to be trusted. By noon the
wind had turned. A young woman who was travelling to her first position as a teacher asked him whether it would rain; he
said that it would, but not on them. She laughed and wrote that down. Behind the island, where the water is green and so
clear that one can count the stones, they passed a fishing boat whose engine had failed. The captain threw a rope, the
fishermen made it fast, and for two hours both boats went on together at half the speed. Nobody complained. The oranges
were opened and shared out, the dog slept in the shade of the wheelhouse, and someone began to tell a story about a
lighthouse keeper who had collected clocks. Each of them showed a different time, he said, and each of them was right
somewhere. When they reached the far shore it was almost dark. The fishermen wanted to pay for the tow, and the captain
took one fish, since it would have been rude to take nothing. The teacher found her school at the end of the only
street: a white house with a blue door, a bell without a rope, and a blackboard on which somebody had drawn the whole
coast from memory, with every rock in its place and every rock named after a person who had once been in a hurry.
"""
LENGTHS = (3, 11, 11, 24, 300)  # tokens; two rows have no pads between them, the last one is far longer than all others
WIDEST = 1024  # tokens; a trial only goes beyond windows up to this width
NEW_TOKENS = 3  # a prefill and two cached steps
# Logits may differ this much from those of the row alone, relative to the largest, by rounding. A wrong mask or
# position is far beyond that.
TOLERANCE = 1e-3
# In 16 bits: this multiple of the difference of the model's own forward of the row alone, or this part of the largest.
TIMES_PLAIN, TOLERANCE_16_BIT = 2.0, 0.05


def trial_rows(checkpoint: Checkpoint) -> list[Sequence]:
    """Return rows of several lengths, up to the model's maximum; none if the tokenizer's ids are not the model's.

    The last row outgrows the model's window, if that is not too wide for a trial.
    """
    longest = max(LENGTHS)
    longest += max((window for window in layer_windows(checkpoint.config) if window and window <= WIDEST), default=0)
    words = TEXT.split() * (1 + longest // max(LENGTHS))
    params = SamplingParams(max_new_tokens=NEW_TOKENS)
    most = (checkpoint.n_positions or longest + NEW_TOKENS) - NEW_TOKENS
    lengths = sorted({min(length, most) for length in (*LENGTHS[:-1], longest)} | {min(11, most)})
    wanted = [length for length in lengths for _ in range(LENGTHS.count(length) or 1) if length > 0]
    texts = [" ".join(words[7 * i :]) for i in range(len(wanted))]
    requests = [Request(i, str(i), text, params) for i, text in enumerate(texts)]
    rows = encode(requests, checkpoint.codec, vocab_size=checkpoint.vocab_size)
    return [
        Sequence(row.request, 0, row.input_ids[:length])
        for row, length in zip(rows, wanted, strict=True)
        if not row.is_finished and len(row.input_ids) >= length
    ]


class Watched:
    """Records the logits `[V]` of each row's steps; its `on_logits` is passed to the engine on trial."""

    def __init__(self) -> None:
        self.steps: dict[int, list[torch.Tensor]] = {}
        self.digests: Callable[[], Rows[torch.Tensor]] | None = None  # what is compared beside each row's logits

    def on_logits(self, logits: torch.Tensor, rows: Rows[Sequence]) -> None:
        digests = self.digests() if self.digests else None
        for row, sequence in enumerate(rows):
            found = logits[row].float().cpu().clone()
            if digests:
                found = torch.cat([found, digests[row]])
            self.steps.setdefault(sequence.request.index, []).append(found)


@dataclass(frozen=True, slots=True)
class Fault:
    """What an engine did wrong, as the end of a sentence that begins with the engine's name.

    If `lasts` is False, the next trial may differ, for example because memory ran out.
    """

    text: str
    lasts: bool = True


OTHER_LOGITS = Fault("gave other logits than a plain forward pass")


def find_fault(engine: Engine, watched: Watched, rows: list[Sequence], model: Model) -> Fault | None:
    """Return what is wrong with an engine, comparing its logits with those of each row alone; None if nothing is.

    Raises whatever the engine raises.
    """
    for _ in finish_all(engine, rows):
        pass
    if error := next((row.error for row in rows if row.error), None):
        return Fault(f"failed a row: {error}", lasts=False)
    if any(len(watched.steps.get(row.request.index, [])) != NEW_TOKENS for row in rows):
        return Fault("did not decide each token from logits")
    return None if _stray(watched, rows, model) <= 1 else OTHER_LOGITS


def _stray(watched: Watched, rows: list[Sequence], model: Model) -> float:
    """Return how far the logits are from those of the rows alone, as a multiple of what is allowed."""
    is_float32 = model.dtype == torch.float32
    judge = model if is_float32 else widened(model)
    worst = 0.0
    with torch.inference_mode():
        for row in rows:
            found = torch.stack(watched.steps[row.request.index])  # [N, V]
            expected = _alone(judge, row)  # [N, V]
            largest = float(expected.abs().max())
            allowed = TOLERANCE * largest
            if not is_float32:
                plain = float((_alone(model, row) - expected).abs().max())
                allowed = max(TIMES_PLAIN * plain, TOLERANCE_16_BIT * largest)
            worst = max(worst, float((found - expected).abs().max()) / max(allowed, 1e-30))
    return worst if worst == worst else float("inf")  # NaN counts as infinitely far


def have_same_bits(one: Mapping[int, list[torch.Tensor]], other: Mapping[int, list[torch.Tensor]]) -> bool:
    """Whether all rows got the same logits `[V]` in each of their steps."""
    return one.keys() == other.keys() and all(
        len(one[row]) == len(other[row]) and all(map(torch.equal, one[row], other[row])) for row in one
    )


def _alone(model: Model, row: Sequence) -> torch.Tensor:
    """Return the logits `[N, V]` after the prompt and all output tokens except the last, from one unpadded forward."""
    fed = Sequence(row.request, 0, row.token_ids[:-1])
    return model.forward(pad([fed], 0), keep=row.num_output_tokens)[0].float().cpu()
