"""Choose the next token of each row from its logits: penalties, filters, keyed draws; the same in any batch.

Works only on real tokens (pads never count), and in float32. Knows nothing of the model, the cache or the padding.
Order and meaning of the processors are those of transformers' `LogitsProcessorList`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Rows
from typing import TYPE_CHECKING

import torch

from batchgen.engines.sampling.constraints import Constraints
from batchgen.engines.sampling.draws import DRAW_MARGIN, draw, num_levels, uniforms
from batchgen.engines.sampling.filters import column, filter_logits
from batchgen.engines.sampling.logprobs import Reading
from batchgen.engines.sampling.penalties import penalize
from batchgen.engines.sampling.token_reader import token_reader
from batchgen.model.stops import ends_in_stop
from batchgen.records import Sequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Batching moves float32 logits by about 1e-5 (docs/decisions.md). A greedy choice between two logits closer than this,
# or a draw that is too close to call, is repeated from an unpadded single-row forward.
GREEDY_MARGIN = 1e-3

NOTHING_LEFT = 2  # a row's logits are all -inf
TOP_BLOCK = 128  # logits; there are then about as many blocks as a block has logits

# Returns a row's logits `[V]` from a forward of its own; None if there are none.
RecomputeLogits = Callable[[Sequence], torch.Tensor | None]
# Gets the logits `[B, V]` of the rows that are about to get a token, before anything changes them.
OnLogits = Callable[[torch.Tensor, Rows[Sequence]], None]


def append_token(
    sequence: Sequence, token_id: int, eos_token_ids: frozenset[int], tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Append a token to a sequence, and finish it at eos, at a stop, or at `max_new_tokens`."""
    sequence.output_ids.append(token_id)
    params = sequence.sampling
    is_end = token_id in params.stop_token_ids or (token_id in eos_token_ids and not params.ignore_eos)
    if is_end or (tokenizer is not None and ends_in_stop(tokenizer, sequence)):
        sequence.finish_reason = "stop"
    elif sequence.num_output_tokens >= params.max_new_tokens:
        sequence.finish_reason = "length"


class Sampler:
    """Chooses the next token of rows, which may differ at every step; its only state per row is that of constraints.

    `recompute` returns a row's logits `[V]` from an unpadded single-row forward. If it is set, steps too close to call
    are decided again (exact mode), so that a row's tokens do not depend on its batch. `on_logits` gets the logits of
    the batch.
    """

    def __init__(
        self,
        eos_token_ids: Iterable[int],
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        recompute: RecomputeLogits | None = None,
        on_logits: OnLogits = lambda logits, sequences: None,
    ) -> None:
        self.eos_token_ids = frozenset(eos_token_ids)
        self.tokenizer = tokenizer  # needed for stop strings
        self.recompute = recompute
        self.on_logits = on_logits
        self.host_syncs = 0  # how often the host waited for numbers from the device
        self._constraints: Constraints | None = None
        self._unconstrained = ""  # why rows cannot be constrained

    def choose(self, logits: torch.Tensor, sequences: Rows[Sequence]) -> list[int | None]:
        """Return the next token of each row from float32 logits `[B, V]`, which are overwritten.

        None for rows whose logits are broken, and for rows that their constraint fails; their `error` then says why.
        """
        self.on_logits(logits, sequences)
        forced = self._forced(logits, sequences)
        if not forced:
            return self._decided(logits, sequences)
        others = [row for row in range(len(sequences)) if row not in forced]
        decided = self._decided(logits[others], [sequences[row] for row in others]) if others else []
        tokens = forced | dict(zip(others, decided, strict=True))
        return [tokens[row] for row in range(len(sequences))]

    def _forced(self, logits: torch.Tensor, sequences: Rows[Sequence]) -> dict[int, int | None]:
        """Return the tokens of rows that have only one choice, and None for those whose logits are broken."""
        if not any(sequence.sampling.is_constrained for sequence in sequences) or not self._can_constrain(logits):
            return {}
        found = {row: token for row, s in enumerate(sequences) if (token := self._only_token(s)) is not None}
        if not found:
            return {}
        is_fine = logits[list(found)].amax(-1).isfinite().tolist()
        self.host_syncs += 1
        return {row: token if fine else None for (row, token), fine in zip(found.items(), is_fine, strict=True)}

    def _decided(self, logits: torch.Tensor, sequences: Rows[Sequence]) -> list[int | None]:
        """Like `choose`, but always by the logits."""
        tokens: list[int | None] = []
        for sequence, (token, is_close, is_broken) in zip(sequences, self._read(logits, sequences), strict=True):
            if self.recompute and is_close and not is_broken and not sequence.is_finished:
                alone = self.recompute(sequence)
                if alone is not None:
                    [(token, _, is_broken)] = self._read(alone[None].float(), [sequence])
            if is_broken == NOTHING_LEFT and self._constraints and not sequence.is_finished:
                sequence.fail(self._constraints.why_stuck(sequence))
            tokens.append(None if is_broken else token)
        return tokens

    def append(self, sequence: Sequence, token_id: int) -> None:
        """Append a token to a sequence, and finish the sequence if that ends it."""
        append_token(sequence, token_id, self.eos_token_ids, self.tokenizer)
        if sequence.sampling.is_constrained and self._constraints:
            self._constraints.advance(sequence)

    def extend(self, sequence: Sequence, token_id: int) -> int:
        """Append a token to a sequence, and those that must follow it; return how many were appended."""
        before = sequence.num_output_tokens
        token: int | None = token_id
        while token is not None:
            self.append(sequence, token)
            token = self._only_token(sequence)
        return sequence.num_output_tokens - before

    def _only_token(self, sequence: Sequence) -> int | None:
        """Return the only token that may follow in an unfinished row, which needs no logits.

        None without such a token.
        """
        if sequence.is_finished or not (sequence.sampling.is_constrained and self._constraints):
            return None
        return self._constraints.forced(sequence)

    def _read(self, logits: torch.Tensor, sequences: Rows[Sequence]) -> list[list[int]]:
        """Like `_decide`, but also record log-probabilities, from the original logits, for rows that ask for them."""
        reading = Reading(logits, sequences)
        decided = self._decide(logits, sequences)
        if reading:
            reading.note(logits, [token for token, _, _ in decided])
            self.host_syncs += 1
        return decided

    def _decide(self, logits: torch.Tensor, sequences: Rows[Sequence]) -> list[list[int]]:
        """Return for each row the token, whether it was too close to call, and whether its logits are broken."""
        penalize(logits, sequences, self.eos_token_ids)
        if any(sequence.sampling.is_constrained for sequence in sequences):
            self._forbid(logits, sequences)
        greedy = [sequence.sampling.is_greedy for sequence in sequences]
        if all(greedy):
            decided = _decide_greedy(logits)
        elif not any(greedy):
            decided = _decide_sampled(logits, sequences)
        else:
            decided = _decide_greedy(logits)  # [B, 3]
            drawn = [row for row, is_greedy in enumerate(greedy) if not is_greedy]
            decided[drawn] = _decide_sampled(logits[drawn], [sequences[row] for row in drawn])
        self.host_syncs += 1
        return decided.tolist()

    def _forbid(self, logits: torch.Tensor, sequences: Rows[Sequence]) -> None:
        """Forbid constrained rows all tokens that they may not take."""
        if self._constraints:
            self._constraints.forbid(logits, sequences)
            return
        for row, sequence in enumerate(sequences):
            if sequence.sampling.is_constrained:
                logits[row] = -torch.inf
                sequence.fail(self._unconstrained)

    def _can_constrain(self, logits: torch.Tensor) -> bool:
        """Whether this model's tokens can be constrained; if not, `_unconstrained` says why."""
        try:
            reader = token_reader(self.tokenizer, logits.shape[-1], self.eos_token_ids)
        except ValueError as error:
            self._unconstrained = str(error)
            return False
        self._constraints = self._constraints or Constraints(reader, self.eos_token_ids)
        return True


def _decide_greedy(logits: torch.Tensor) -> torch.Tensor:
    """Return the token, whether it is too close to call, and whether the logits are broken: `[B, 3]` int64."""
    tokens, best, second = top_two(logits)
    return torch.stack([tokens, (best - second < GREEDY_MARGIN).long(), _brokenness(best)], -1)


def _brokenness(best: torch.Tensor) -> torch.Tensor:
    """Classify rows by their largest logit `[B]`: 0 is fine, 1 is NaN or infinite, `NOTHING_LEFT` is -inf."""
    return (~best.isfinite()).long() + (best == -torch.inf).long()


def top_two(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return each row's token with the largest logit, the lowest id if tied; and its largest two logits, `[B]` each.

    The largest is NaN if any logit of the row is NaN. Works in two levels: `amax` of blocks runs at memory speed;
    `argmax` and `topk` of a whole row are 20 times slower (measured on a CPU).
    """
    vocab_size = logits.shape[-1]
    width = min(TOP_BLOCK, vocab_size)
    num_blocks = vocab_size // width
    blocks = logits[:, : num_blocks * width].reshape(-1, num_blocks, width).amax(-1)  # [B, V / width]
    candidates = torch.cat([blocks, logits[:, num_blocks * width :]], -1)  # the rest are blocks of one
    winner = candidates.argmax(-1, keepdim=True)  # [B, 1]
    start = torch.where(winner < num_blocks, winner * width, num_blocks * width + winner - num_blocks)
    places = start + torch.arange(width, device=logits.device)  # [B, width]
    inside = logits.gather(-1, places.clamp(max=vocab_size - 1)).masked_fill_(places >= vocab_size, -torch.inf)
    offset = inside.argmax(-1, keepdim=True)  # [B, 1]
    best = inside.gather(-1, offset)
    second = torch.maximum(
        candidates.scatter_(-1, winner, -torch.inf).amax(-1), inside.scatter_(-1, offset, -torch.inf).amax(-1)
    )
    return (start + offset)[:, 0], best[:, 0], second


def _decide_sampled(logits: torch.Tensor, sequences: Rows[Sequence]) -> torch.Tensor:
    """Return the same as `_decide_greedy`, for sampled rows: `[B, 3]` int64."""
    params = [sequence.sampling for sequence in sequences]
    temperature = column([p.temperature for p in params], logits)
    scaled = logits / temperature[:, None]
    margin = DRAW_MARGIN / temperature.clamp(max=1.0)
    top_k, top_p, min_p = zip(*((p.top_k, p.top_p, p.min_p) for p in params), strict=True)
    kept, unsure = filter_logits(scaled, top_k, top_p, min_p, margin)
    numbers = _uniforms(sequences, logits.shape[-1]).to(logits.device)
    tokens, close = draw(kept, numbers, margin, scaled, unsure)
    broken = _brokenness(logits.amax(-1))  # amax propagates NaN, which a filter would hide
    return torch.stack([tokens, close.long(), broken], -1)


def _uniforms(sequences: Rows[Sequence], vocab_size: int) -> torch.Tensor:
    numbers = [_numbers(sequence, num_levels(vocab_size)) for sequence in sequences]
    return torch.tensor(numbers, dtype=torch.float64)  # [B, levels]


def _numbers(sequence: Sequence, count: int) -> list[float]:
    """Return the random numbers for a row's next token."""
    request, seed = sequence.request, sequence.sampling.seed
    step = sequence.num_output_tokens
    return uniforms(seed, request.id, sequence.sample_index, step, count, occurrence=request.occurrence)
