"""The scoring engine: a step is one forward, and finishes the rows that it scored."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

import torch

from batchgen.engines.sampling.logprobs import Normalised, rows_at_once
from batchgen.engines.scoring.memory import ScoringMemory, most_rows
from batchgen.engines.scoring.network import LEAST_TOKENS, ScoringNetwork, enough, whole_logits
from batchgen.engines.scoring.work import Item, ScoringWork, plan_work
from batchgen.errors import failures_in_one_line, is_out_of_memory
from batchgen.model import Model
from batchgen.planning.backoff import Backoff, release
from batchgen.planning.memory import largest_batch
from batchgen.records import EngineStats, SamplingParams, Sequence, TokenLogprob

FIRST_WINDOW = 64
PLAIN = SamplingParams()


class ScoringEngine:
    """Scores rows, the longest passage first; with `share`, the common prefix of a row's choices is computed once."""

    def __init__(self, model: Model, network: ScoringNetwork, backoff: Backoff, *, share: bool = True) -> None:
        self.model = model
        self.network = network
        self.share = share and network.can_share
        self.memory = ScoringMemory(backoff.limits.memory.footprint)
        self._backoff = backoff
        self._work: deque[ScoringWork] = deque()
        self._batches = self._tokens = self._host_syncs = 0
        self._seconds = 0.0

    @property
    def wants_rows(self) -> int:
        return FIRST_WINDOW if self.is_idle else 0

    @property
    def is_idle(self) -> bool:
        return not self._work

    @property
    def stats(self) -> EngineStats:
        """Counts; `new_tokens` are the tokens that were scored."""
        return EngineStats(
            engine="scoring",
            batches=self._batches,
            new_tokens=self._tokens,
            prefill_s=self._seconds,
            host_syncs=self._host_syncs,
            peak_bytes=self._backoff.peak_bytes,
            predicted_bytes=self._backoff.predicted_bytes,
            measured_bytes=self._backoff.measured_bytes,
        )

    def add(self, sequences: Iterable[Sequence]) -> None:
        self._work.extend(plan_work(sequences, self._room, share=self.share, borders=self.network.borders))

    def _room(self, columns: int) -> int:
        """Return how many rows of `columns` columns may currently run together."""
        limits = self._backoff.limits
        if not self.network.is_split:
            return 1
        if self._backoff.is_users_number:
            return limits.num_rows or 1
        return largest_batch(limits, columns, [PLAIN], most_rows(columns, self.model.device.type))

    def step(self) -> list[Sequence]:
        if not self._work:
            return []
        work, started = self._work.popleft(), time.perf_counter()
        if len(work.items) == 1 and self._backoff.hits_the_wall(work.sequences):
            self._backoff.fail(work.sequences[0])
            return self._leave(work)
        ran_out = False
        self._expect(work)
        try:
            with torch.inference_mode(), failures_in_one_line(f"with {len(work.items)} texts"):
                self._score(work)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            ran_out = True
        if ran_out:  # not in the `except`: the traceback keeps the failed forward's tensors alive
            return self._give_way(work)
        self._backoff.compare(self._predicted(work))
        self._batches += 1
        self._seconds += time.perf_counter() - started
        return self._leave(work)

    def close(self) -> None:
        self._work.clear()
        self._backoff.end()

    # Memory.

    def _predicted(self, work: ScoringWork) -> int:
        """Bytes above the weights, of what is filled up to `LEAST_TOKENS` too."""
        columns = work.prefix + work.columns
        rows = max(work.num_rows, -(-LEAST_TOKENS // (work.columns or work.prefix)))
        num_scored = sum(len(item.passage.scored) for item in work.items)
        return self.memory.of_forward(rows, columns, num_scored, keeps_keys=work.prefix > 0).total

    def _expect(self, work: ScoringWork) -> None:
        predicted = self._predicted(work)
        self._backoff.expect(predicted, anew=True)
        self._backoff.predicted_bytes = max(self._backoff.predicted_bytes, predicted)

    def _give_way(self, work: ScoringWork) -> list[Sequence]:
        """Queue the work again in halves after memory ran out; a text that ran by itself fails its row."""
        release()
        if len(work.items) == 1:
            self._backoff.fail(work.sequences[0])
            return self._leave(work)
        halves = work.halves()
        self._backoff.lower_ceiling(self._predicted(halves[0]))
        self._backoff.say_fewer(
            f"{len(work.items)} texts of {work.prefix + work.columns} columns", len(halves[0].items)
        )
        self._work.extendleft(reversed(halves))
        return []

    # One forward.

    def _score(self, work: ScoringWork) -> None:
        if not self.network.is_split:
            for item in work.items:
                logits = whole_logits(self.model, item.passage.fed)[item.passage.start - 1 :]
                self._note([(item, len(logits))], self._read(logits, list(item.passage.scored), _wanted([item])))
            return
        if work.prefix:
            (self._score_shared if work.columns else self._score_prompts)(work)
            return
        items = work.items
        hidden = self.network.hidden(enough([item.passage.fed for item in items], work.columns), work.columns)
        states = torch.cat(
            [hidden[row, item.passage.start - 1 : len(item.passage.fed)] for row, item in enumerate(items)]
        )
        del hidden
        self._read_all([(item, len(item.passage.scored)) for item in items], states)

    def _score_prompts(self, work: ScoringWork) -> None:
        """Score prompts with choices of one token each: the logits of a prompt's last column score all its choices."""
        prompts = [group[0].passage.fed for group in work.groups]
        hidden = self.network.hidden(enough(prompts, work.prefix), work.prefix)
        states = [hidden[row, len(prompt) - 1] for row, prompt in enumerate(prompts)]
        owners = [state for state, group in zip(states, work.groups, strict=True) for _ in group]
        self._read_all([(item, 1) for item in work.items], torch.stack(owners))

    def _score_shared(self, work: ScoringWork) -> None:
        """Run prompts once; then run what follows them, each with its prompt's keys and values."""
        network, prefix, items = self.network, work.prefix, work.items
        cache = network.new_cache()
        prompts = [group[0].passage.token_ids[:prefix] for group in work.groups]
        last = network.hidden(enough(prompts, prefix), prefix, cache)[:, -1]  # [G, H]
        prompt_of = [number for number, group in enumerate(work.groups) for _ in group]
        longer = [place for place, item in enumerate(items) if len(item.passage.fed) > prefix]
        behind: dict[int, torch.Tensor] = {}
        if longer:
            rests = enough([items[place].passage.fed[prefix:] for place in longer], work.columns)
            owners = [prompt_of[place] for place in longer]
            owners = (owners * -(-len(rests) // len(owners)))[: len(rests)]
            cache.batch_select_indices(torch.tensor(owners, device=last.device))
            hidden = network.hidden(rests, work.columns, cache)
            behind = {place: hidden[row] for row, place in enumerate(longer)}
        states = []
        for place, item in enumerate(items):
            start, end = item.passage.start - 1 - prefix, len(item.passage.fed) - prefix
            if start < 0:
                states.append(last[prompt_of[place]][None])
            if end > 0:
                states.append(behind[place][max(start, 0) : end])
        self._read_all([(item, len(item.passage.scored)) for item in items], torch.cat(states))

    def _read_all(self, counts: list[tuple[Item, int]], states: torch.Tensor) -> None:
        """Compute the log-probabilities of the tokens after hidden states `[N, H]`, with logits in pieces."""
        tokens = [token for item, _ in counts for token in item.passage.scored]
        number = _wanted([item for item, _ in counts])
        entries: list[TokenLogprob] = []
        for start in range(0, len(tokens), self.network.rows_at_once):
            piece = slice(start, start + self.network.rows_at_once)
            entries += self._read(self.network.logits(states[piece]), tokens[piece], number)
        self._note(counts, entries)

    def _read(self, logits: torch.Tensor, tokens: list[int], number: int) -> list[TokenLogprob]:
        """Return the log-probability of one token per row of logits `[N, V]`, with the `number` likeliest."""
        step = rows_at_once(logits.shape[-1])
        own = logits.gather(-1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].float()
        parts = [Normalised.of(part.float(), number) for part in logits.split(step)]  # type: ignore[no-untyped-call]
        self._host_syncs += 1
        return Normalised.join(parts).entries(own)

    def _note(self, counts: list[tuple[Item, int]], entries: list[TokenLogprob]) -> None:
        start = 0
        for item, number in counts:
            item.sequence.scores[item.number] = entries[start : start + number]
            start += number

    def _leave(self, work: ScoringWork) -> list[Sequence]:
        """Return the rows that are now finished: those whose passages are all scored."""
        left = []
        for sequence in work.sequences:
            if sequence.error is None and len(sequence.scores) < len(sequence.passages):
                continue
            sequence.batch_index, sequence.padded_length = self._batches - 1, work.prefix + work.columns
            found = [entry.logprob for entries in sequence.scores.values() for entry in entries]
            if sequence.error is None and any(logprob != logprob for logprob in found):
                sequence.fail(self.model.nan_message)
            sequence.finish_reason = sequence.finish_reason or "stop"
            self._tokens += len(found)
            left.append(sequence)
        if any(sequence.error for sequence in left):
            self._drop(left)
        return left

    def _drop(self, finished: list[Sequence]) -> None:
        """Drop the remaining work of rows that were already returned."""
        gone = {id(sequence) for sequence in finished}
        parts = [
            [[item for item in group if id(item.sequence) not in gone] for group in work.groups] for work in self._work
        ]
        kept = [
            ScoringWork([group for group in groups if group], work.prefix, work.columns)
            for work, groups in zip(self._work, parts, strict=True)
        ]
        self._work = deque(work for work in kept if work.groups)


def _wanted(items: list[Item]) -> int:
    """Return how many of the likeliest tokens to find: at least one, which tells whether a token is the likeliest."""
    return max(1, *(item.sequence.sampling.logprobs or 0 for item in items))
