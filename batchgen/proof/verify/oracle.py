"""The oracle: the model in float32, one row at a time, without pads; and how far rounding alone moves from it."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import replace
from typing import TYPE_CHECKING

from batchgen.errors import failures_in_one_line
from batchgen.model.padding import positions
from batchgen.proof.verify.facts import ErrorBound
from batchgen.records import Batch, Sequence

if TYPE_CHECKING:
    import torch

    from batchgen.model import Model

# Differences may be so many times what was measured on a few rows without padding, and still be rounding. In 16 bits
# that is mostly the rounding of weights and activations, alike in any shape; in float32 it is the order of the sums,
# which other kernels choose otherwise. A wrong mask or position moves logits a thousand times as far.
SAFETY, SAFETY_16_BIT = 30.0, 4.0
# In float32 never more than this part of the largest logit, whatever a batch of copies does to it.
MOST_ROUNDING = 1e-3
# In 8 bits a sum that is off by one rounding can make an input another integer: this part of the largest logit.
MOST_FLIPPED = 0.05
LEAST_ULPS = 4  # where less was measured than so many roundings of the largest logit
ERROR_ROWS = 4  # on which the error is measured
COPIES = 4  # of a row in a batch, so that its products have another shape
LAST_STEPS = 6  # tokens of a prompt that are fed one by one


class Oracle:
    """Runs rows alone and unpadded, in float32; with `quantize` its linear layers are those of such integers."""

    def __init__(self, model: Model, quantize: str | None = None) -> None:
        self.model = model
        self.quantize = quantize

    def logits(self, token_ids: list[int], last: int) -> torch.Tensor:
        """Logits `[last, V]` after each of the last tokens of a row, from one forward."""
        return forward_alone(self.model, token_ids, last)

    def logits_of(self, sequence: Sequence) -> torch.Tensor:
        """Logits `[N + 1, V]` after the prompt and after each of the N tokens that a sequence was given."""
        return self.logits(sequence.token_ids, sequence.num_output_tokens + 1)


def forward_alone(model: Model, token_ids: list[int], last: int, copies: int = 1) -> torch.Tensor:
    """Logits `[last, V]` of the last columns of an unpadded row, which is there `copies` times; float32, on the CPU."""
    import torch

    with torch.inference_mode(), failures_in_one_line(f"with a row of {len(token_ids)} tokens"):
        logits = model.forward(_copies(token_ids, copies), keep=last)  # [copies, last, V]
    return logits[0].float().cpu()


def step_alone(model: Model, token_ids: list[int], last: int, copies: int) -> torch.Tensor:
    """The same with a KV cache, the last tokens fed one by one, as in decoding; fewer where the model has no cache."""
    import torch

    whole = _copies(token_ids, copies)
    start, cache, found = 0, None, []
    with torch.inference_mode(), failures_in_one_line(f"with a row of {len(token_ids)} tokens"):
        for end in range(len(token_ids) - last + 1, len(token_ids) + 1):
            ids, places = whole.input_ids[:, start:end], whole.position_ids[:, start:end]
            batch = replace(whole, input_ids=ids, position_ids=places, attention_mask=whole.attention_mask[:, :end])
            logits, cache = model.step(batch, cache)
            found.append(logits[0].float().cpu())
            start = end
            if cache is None:
                break
    return torch.stack(found)  # [last, V]


def _copies(token_ids: list[int], copies: int) -> Batch:
    """A batch of one row, unpadded, several times."""
    import torch

    input_ids = torch.tensor([token_ids] * copies)  # [copies, T]
    attention_mask = torch.ones_like(input_ids)
    return Batch((), input_ids, attention_mask, positions(attention_mask))


def measure_error(oracle: Oracle, model: Model, sequences: Rows[Sequence]) -> ErrorBound:
    """How far `model`, in its own dtype, differs from the oracle on prompts that have no padding at all.

    Each prompt is run as several copies in one batch, at once and token by token. `model` may be the oracle's own,
    where the dtype is float32.
    """
    import torch

    largest = measured = 0.0
    for sequence in sequences:
        token_ids = sequence.input_ids
        last = min(len(token_ids), LAST_STEPS)
        expected = oracle.logits(token_ids, last)
        for found in (forward_alone(model, token_ids, last, COPIES), step_alone(model, token_ids, last, COPIES)):
            measured = max(measured, (found - expected[: len(found)]).abs().max().item())
        largest = max(largest, expected.abs().max().item())
    is_float32 = model.dtype == torch.float32 and oracle.quantize is None
    floor = (MOST_FLIPPED if oracle.quantize else LEAST_ULPS * torch.finfo(model.dtype).eps) * largest
    allowed = max((SAFETY if is_float32 else SAFETY_16_BIT) * measured, floor)
    return ErrorBound(measured, min(allowed, MOST_ROUNDING * largest) if is_float32 else allowed)
