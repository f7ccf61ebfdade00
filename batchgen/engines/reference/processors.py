"""What `generate` calls at each step: the choice of tokens, penalties for beams, and the end of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import LogitsProcessor, StoppingCriteria

from batchgen.engines.sampling.penalties import penalize
from batchgen.engines.sampling.sampler import Sampler
from batchgen.model import Model
from batchgen.records import Batch


class Choice(LogitsProcessor):
    """The last processor: chooses each row's token, and leaves `generate` no other choice."""

    def __init__(self, batch: Batch, sampler: Sampler, model: Model) -> None:
        self.sequences = batch.sequences
        self.sampler = sampler
        self.model = model

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        live = [row for row, sequence in enumerate(self.sequences) if not sequence.is_finished]
        rows = [self.sequences[row] for row in live]
        tokens = self.sampler.choose(scores if len(live) == len(scores) else scores[live], rows)
        forced = [self.model.checkpoint.pad_token_id] * len(scores)
        for row, sequence, token in zip(live, rows, tokens, strict=True):
            if token is None:
                sequence.fail(sequence.error or self.model.nan_message)
            else:
                self.sampler.append(sequence, token)
                forced[row] = token
        scores.fill_(-torch.inf)  # [B, V]
        scores[range(len(scores)), forced] = 0
        return scores


class BeamPenalties(LogitsProcessor):
    """Biases, penalties and bans for beams, based on each beam's real tokens.

    A row with NaN scores fails; its search continues with equal scores.
    """

    def __init__(self, batch: Batch, num_beams: int, model: Model) -> None:
        self.batch = batch
        self.num_beams = num_beams
        self.model = model
        self.eos_token_ids = model.checkpoint.eos_token_ids
        self.padded_length = batch.input_ids.shape[1]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        beams = [
            sequence for sequence in self.batch.sequences for _ in range(self.num_beams)
        ]  # rows of `[B * beams, V]`
        new_ids = input_ids[:, self.padded_length :].tolist()
        penalize(
            scores,
            [replace(beam, output_ids=ids) for beam, ids in zip(beams, new_ids, strict=True)],
            self.eos_token_ids,
        )
        for row, is_broken in enumerate(scores.amax(-1).isnan().tolist()):
            if is_broken:
                scores[row] = 0
                beams[row].fail(self.model.nan_message)
        return scores


class Finished(StoppingCriteria):
    """Tells `generate` which rows are finished; pauses after each step except the last."""

    def __init__(self, batch: Batch, pause: Callable[[], None]) -> None:
        self.batch = batch
        self.pause = pause

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        finished = [sequence.is_finished for sequence in self.batch.sequences]
        if not all(finished):
            self.pause()
        beams = len(input_ids) // len(finished)
        return torch.tensor([done for done in finished for _ in range(beams)], device=input_ids.device)  # [B * beams]
