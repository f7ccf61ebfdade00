"""Log-probabilities of tokens: log-softmax of a model's raw logits in float32, and the likeliest alternatives.

They are read before anything changes the logits, a few rows at a time, so that the logits are never copied as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass, fields

import torch

from batchgen.records import Sequence, TokenLogprob

MOST_NUMBERS = 2**20  # logits that are read at once
BLOCK = 128  # logits; the maxima of blocks tell where the largest logits are


def likeliest(logits: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest logits of each row `[R, K]`, best first, and their tokens.

    K is `number`, or V if that is less.

    They are in the blocks whose largest logits are largest, so only these blocks are sorted: `amax` runs at memory
    speed.
    """
    vocab_size = logits.shape[-1]
    num_blocks = vocab_size // BLOCK
    if not 0 < number < num_blocks:
        best = logits.topk(min(number, vocab_size), dim=-1)
        return best.values, best.indices
    whole = logits[:, : num_blocks * BLOCK]
    blocks = whole.reshape(-1, num_blocks, BLOCK).amax(-1).topk(number, dim=-1).indices.sort(-1).values  # [R, K]
    inside = (blocks[..., None] * BLOCK + torch.arange(BLOCK, device=logits.device)).flatten(1)  # [R, K * BLOCK]
    rest = torch.arange(num_blocks * BLOCK, vocab_size, device=logits.device).expand(len(logits), -1)
    places = torch.cat([inside, rest], -1)
    best = logits.gather(-1, places).topk(number, dim=-1)
    return best.values, places.gather(-1, best.indices)


@dataclass(frozen=True, slots=True, eq=False)
class Normalised:
    """For rows of logits: the largest, the log of the normalizer, and the likeliest tokens and their log-probabilities.

    These are the largest logit `[R]`, log(sum(exp(logits - largest))) `[R]`, and the likeliest tokens `[R, K]`, best
    first.
    """

    largest: torch.Tensor
    log_sums: torch.Tensor
    tokens: torch.Tensor
    logprobs: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor, number: int) -> Normalised:
        """Read float32 logits `[R, V]` and their `number` largest. The sums are those of torch's own log-softmax."""
        values, tokens = likeliest(logits, number)
        largest, log_sums = logits.amax(-1), -logits.log_softmax(-1).amax(-1)
        return cls(largest, log_sums, tokens, _log_softmax(values, largest[:, None], log_sums[:, None]))

    @classmethod
    def join(cls, parts: list[Normalised]) -> Normalised:
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def entries(self, own: torch.Tensor) -> list[TokenLogprob]:
        """Return an entry for each row's token, whose logit is in `own` `[R]`, in one transfer from the device."""
        logprobs = _log_softmax(own, self.largest, self.log_sums)[:, None]
        numbers = torch.cat(
            [logprobs.double(), self.logprobs.double(), self.tokens.double()], -1
        )  # float64 holds ids exactly
        width = self.tokens.shape[-1]
        return [
            TokenLogprob(logprob, tuple(zip(map(int, rest[width:]), rest[:width], strict=True)))
            for logprob, *rest in numbers.tolist()
        ]


def _log_softmax(logits: torch.Tensor, largest: torch.Tensor, log_sums: torch.Tensor) -> torch.Tensor:
    """Subtract one after the other, as torch does: subtracting the sum of both would lose digits."""
    return logits - largest - log_sums


def rows_at_once(vocab_size: int) -> int:
    """Return how many rows of logits are read together: few enough to keep the workspace small."""
    return max(1, MOST_NUMBERS // vocab_size)


class Reading:
    """Log-probabilities of raw logits `[B, V]`, read before a token is chosen, for the rows that ask for them."""

    def __init__(self, logits: torch.Tensor, sequences: Rows[Sequence]) -> None:
        self._rows = [row for row, sequence in enumerate(sequences) if sequence.sampling.logprobs is not None]
        self._sequences = [sequences[row] for row in self._rows]
        if not self._rows:
            return
        most, step = max(map(_wanted, self._sequences)), rows_at_once(logits.shape[-1])
        is_all = len(self._rows) == len(logits)
        parts = [slice(start, start + step) for start in range(0, len(self._rows), step)]
        self._found = Normalised.join(
            [Normalised.of(logits[part if is_all else self._rows[part]].float(), most) for part in parts]
        )
        # Copies for rows whose logits are about to be changed.
        self._raw = {
            place: logits[row].clone() for place, row in enumerate(self._rows) if sequences[row].sampling.moves_logits
        }

    def __bool__(self) -> bool:
        return bool(self._rows)

    def note(self, logits: torch.Tensor, chosen: Rows[int]) -> None:
        """Record for each row the log-probability of the token that was `chosen` for it, one per row of the batch.

        logits `[B, V]` are those that were read, whatever has been forbidden in them since.
        """
        picked = torch.tensor([chosen[row] for row in self._rows], device=logits.device)  # [R]
        own = logits[self._rows, picked].float()
        for place, raw in self._raw.items():
            own[place] = raw[picked[place]]
        for sequence, entry in zip(self._sequences, self._found.entries(own), strict=True):
            sequence.note_logprob(TokenLogprob(entry.logprob, entry.top[: _wanted(sequence)]))


def _wanted(sequence: Sequence) -> int:
    """Return how many alternatives a row asks for."""
    return sequence.sampling.logprobs or 0
