"""Which tokens a row's constraint allows next, as packed bits that are computed while a forward runs.

Each row has its own matcher, which follows the row's output and is copied from a grammar that is compiled once. While
the constraint allows only one next token, the row gets that token without a mask.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Rows
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch

from batchgen.engines.sampling.grammars import SUBJECTS, compile_grammar, why_ended
from batchgen.engines.sampling.logprobs import rows_at_once
from batchgen.engines.sampling.thoughts import Ahead, Phase, find_marks
from batchgen.records import Constraint, Sequence

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MOST_GRAMMARS = 64  # maximum number that is kept compiled
MOST_THREADS = 4
Bits = np.ndarray[tuple[int], np.dtype[np.uint8]]  # [V / 8], the first token in the lowest bit


@dataclass(slots=True, eq=False)
class _Follower:
    """A row's state in its constraint: how many of its output tokens are consumed, and the mask for the next one.

    `ahead` is the state of a row that may think before it answers. `forced` are tokens that must come next, one after
    the other; while there are any, there is no mask.
    """

    constraint: Constraint
    matcher: LLMatcher
    ahead: Ahead | None = None
    num_taken: int = 0
    mask: Future[Bits] | None = None
    forced: list[int] = field(default_factory=list)

    @property
    def is_free(self) -> bool:
        """Whether the next token belongs to a thought."""
        return self.ahead is not None and self.ahead.is_inside

    def take(self, tokens: list[int]) -> None:
        self.num_taken, self.mask, self.forced = self.num_taken + len(tokens), None, self.forced[len(tokens) :]
        if self.ahead is None:
            self.matcher.consume_tokens(tokens)
            return
        for token in tokens:
            self.ahead.take(token, self.matcher)


class Constraints:
    """What rows may take next, for models with one tokenizer; keeps a state for each unfinished row."""

    def __init__(self, tokenizer: LLTokenizer, eos_token_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._grammars: OrderedDict[Constraint, LLMatcher] = OrderedDict()
        self._followers: WeakKeyDictionary[Sequence, _Follower] = WeakKeyDictionary()
        self._threads = ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1), "constraints")

    def forbid(self, logits: torch.Tensor, sequences: Rows[Sequence]) -> None:
        """Set logits `[B, V]` of tokens that rows may not take to -inf. A row whose constraint fails is failed."""
        bound = [row for row, sequence in enumerate(sequences) if sequence.sampling.is_constrained]
        followers = {row: self._follow(sequences[row]) for row in bound}
        for row, follower in followers.items():
            if follower and follower.is_free:
                logits[row, self._not_in_thoughts(follower, sequences[row])] = -torch.inf
            elif follower and not follower.mask:
                follower.mask = self._start(follower, sequences[row])
        places = [row for row, follower in followers.items() if not (follower and follower.is_free)]
        size = rows_at_once(logits.shape[-1])
        nothing = np.zeros(-(-logits.shape[-1] // 8), np.uint8)
        for start in range(0, len(places), size):
            part = places[start : start + size]
            masks = [self._mask(followers[row], sequences[row], nothing) for row in part]
            for row, forbidden in zip(part, _unset_bits(np.stack(masks), logits), strict=True):
                logits[row].masked_fill_(forbidden, -torch.inf)

    def advance(self, sequence: Sequence) -> None:
        """Continue after a row's token: finish the row if its text is complete, else start to compute the next mask."""
        follower = self._follow(sequence)
        if follower is None or follower.is_free or (sequence.is_finished and sequence.finish_reason != "length"):
            return
        if follower.matcher.is_stopped():
            least = sequence.sampling.min_new_tokens
            sequence.finish_reason = "stop"
            if sequence.num_output_tokens < least:
                _fail(sequence, why_too_short(sequence))
        elif not sequence.is_finished:
            self._look_ahead(follower, sequence)

    def forced(self, sequence: Sequence) -> int | None:
        """Return the only token that a row may take next.

        None if there are several, or if something else affects it.
        """
        follower = self._follow(sequence)
        if follower is None or follower.is_free:
            return None
        if not (follower.forced or follower.mask):
            self._look_ahead(follower, sequence)
        return follower.forced[0] if follower.forced else None

    def _look_ahead(self, follower: _Follower, sequence: Sequence) -> None:
        """Find the tokens that must come next, or start to compute the mask."""
        if not follower.forced:
            follower.forced = self._only_tokens(follower, sequence)
        if not follower.forced:
            follower.mask = self._start(follower, sequence)

    def _only_tokens(self, follower: _Follower, sequence: Sequence) -> list[int]:
        """Return the tokens that a row takes whatever its logits are; none for rows that read logits or ban tokens.

        The library's masks allow only these tokens, so masks would lead to the same ones.
        """
        params, matcher = sequence.sampling, follower.matcher
        is_answer = follower.ahead is None or follower.ahead.phase is Phase.answer
        if not is_answer or params.no_repeat_ngram_size or params.logprobs is not None or matcher.is_accepting():
            return []
        ends = self._eos_token_ids | self._ends(sequence)
        return list(takewhile(lambda token: token not in ends, matcher.compute_ff_tokens()))

    def why_stuck(self, sequence: Sequence) -> str:
        """Return why a row has no token left that it may take."""
        follower, params = self._followers.get(sequence), sequence.sampling
        if follower and follower.matcher.is_accepting() and sequence.num_output_tokens < params.min_new_tokens:
            return why_too_short(sequence)
        subject = SUBJECTS[follower.constraint.kind] if follower else "its constraint"
        also = f" and no_repeat_ngram_size {params.no_repeat_ngram_size}" if params.no_repeat_ngram_size else ""
        return f"{subject}{also} allow no token after {sequence.num_output_tokens} tokens"

    def _follow(self, sequence: Sequence) -> _Follower | None:
        """Return the row's follower, updated with the row's tokens; None if the constraint has failed the row."""
        follower = self._followers.get(sequence)
        if follower is None or follower.num_taken > sequence.num_output_tokens:
            constraint = sequence.sampling.constraint
            assert constraint
            try:
                follower = _Follower(constraint, self._compiled(constraint), self._ahead(sequence))
            except ValueError as error:
                _fail(sequence, str(error))
                return None
            self._followers[sequence] = follower
        tokens = sequence.output_ids[follower.num_taken :]
        if tokens:
            _note_forced(sequence, follower)
            if sequence.is_finished and sequence.finish_reason != "length":
                follower.num_taken, follower.forced = sequence.num_output_tokens, []
            else:
                follower.take(tokens)
                if follower.matcher.is_error():
                    _fail(sequence, why_ended(follower.constraint, follower.matcher.get_error()))
                    return None
            if follower.ahead:
                is_inside = sequence.is_finished and follower.is_free
                sequence.num_thought_tokens = sequence.num_output_tokens if is_inside else follower.ahead.num_tokens
        return follower

    def _ahead(self, sequence: Sequence) -> Ahead | None:
        return Ahead.of(find_marks(self._tokenizer, sequence.thought)) if sequence.thought else None

    def _compiled(self, constraint: Constraint) -> LLMatcher:
        if constraint not in self._grammars:
            self._grammars[constraint] = compile_grammar(self._tokenizer, constraint)
            while len(self._grammars) > MOST_GRAMMARS:
                self._grammars.popitem(last=False)
        self._grammars.move_to_end(constraint)
        return self._grammars[constraint].deep_copy()

    def _start(self, follower: _Follower, sequence: Sequence) -> Future[Bits]:
        return self._threads.submit(_allowed, follower, self._eos_token_ids, self._ends(sequence))

    def _ends(self, sequence: Sequence) -> set[int]:
        params = sequence.sampling
        return {*params.stop_token_ids} | (set() if params.ignore_eos else self._eos_token_ids)

    def _not_in_thoughts(self, follower: _Follower, sequence: Sequence) -> list[int]:
        """Return the tokens not allowed in a thought: those that end the row, and those that also start the answer."""
        assert follower.ahead
        return [*self._eos_token_ids, *self._ends(sequence), *follower.ahead.past()]

    def _mask(self, follower: _Follower | None, sequence: Sequence, nothing: Bits) -> Bits:
        """Return the row's mask, as wide as `nothing`, which is returned for a row that has failed."""
        if follower is None or follower.mask is None:
            return nothing
        mask = follower.mask.result()
        if follower.matcher.is_error():
            if not sequence.is_finished:
                _fail(sequence, why_ended(follower.constraint, follower.matcher.get_error()))
            return nothing
        missing = len(nothing) - len(mask)
        return np.pad(mask, (0, missing)) if missing > 0 else mask[: len(nothing)]


def _note_forced(sequence: Sequence, follower: _Follower) -> None:
    """Record which of a row's new tokens were forced: the leading ones that match."""
    start = follower.num_taken
    known = sequence.forced[-1] if sequence.forced else -1  # a row may start again
    pairs = zip(sequence.output_ids[start:], follower.forced, strict=False)
    same = takewhile(lambda pair: pair[0] == pair[1], pairs)
    sequence.forced += [place for place, _ in enumerate(same, start) if place > known]


def _allowed(follower: _Follower, eos_token_ids: frozenset[int], ends: set[int]) -> Bits:
    """Return the tokens that may come next; those that end a row only if the text is complete, and then all `ends`."""
    matcher, ahead = follower.matcher, follower.ahead
    mask = np.frombuffer(matcher.compute_bitmask(), np.uint8).copy()
    if ahead and ahead.is_lost:
        mask[:] = 0
    is_complete = not (matcher.is_error() or (ahead and ahead.is_lost)) and matcher.is_accepting()
    _set(mask, eos_token_ids | ends, False)
    if is_complete and (ends or not mask.any()):
        _set(mask, ends or eos_token_ids, True)
    _set(mask, ahead.more() if ahead else (), True)
    return mask


def _set(mask: Bits, tokens: Iterable[int], is_allowed: bool) -> None:
    for token in tokens:
        if is_allowed:
            mask[token // 8] |= np.uint8(1 << token % 8)
        else:
            mask[token // 8] &= ~np.uint8(1 << token % 8)


def _unset_bits(masks: np.ndarray[tuple[int, int], np.dtype[np.uint8]], logits: torch.Tensor) -> torch.Tensor:
    """Return which bits `[R, V]` of packed masks `[R, V / 8]` are not set, for a few rows."""
    vocab_size = logits.shape[-1]
    if logits.device.type == "cpu":
        bits = np.unpackbits(~masks, axis=1, count=vocab_size, bitorder="little")
        return torch.from_numpy(bits.view(np.bool_))
    packed = torch.from_numpy(masks).to(logits.device)
    shifts = torch.arange(8, device=logits.device, dtype=torch.uint8)
    return ((packed[..., None] >> shifts) & 1).flatten(1)[:, :vocab_size] == 0


def _fail(sequence: Sequence, problem: str) -> None:
    sequence.fail(problem)


def why_too_short(sequence: Sequence) -> str:
    least, number = sequence.sampling.min_new_tokens, sequence.num_output_tokens
    return f"min_new_tokens {least} cannot be met: the constrained text is complete after {number} tokens"
