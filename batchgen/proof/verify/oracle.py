"""The oracle: the model in float32, one row at a time, without padding; and how far rounding alone differs from it."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import replace
from typing import TYPE_CHECKING

from batchgen.errors import failures_in_one_line
from batchgen.model.long_rope import short_limit
from batchgen.model.padding import positions
from batchgen.proof.verify.facts import ErrorBound
from batchgen.records import Batch, Sequence

if TYPE_CHECKING:
    import torch

    from batchgen.model import Model

# Differences of up to this factor times what was measured on a few unpadded rows still count as rounding. In 16 bits
# they mostly come from rounding weights and activations, which is similar for all shapes; in float32 from the order of
# summation, which differs between kernels. A wrong mask or position moves logits a thousand times as far.
SAFETY, SAFETY_16_BIT = 30.0, 4.0
# In float32, never allow more than this share of the largest logit, whatever was measured.
MOST_ROUNDING = 1e-3
# In 8 bits, one different rounding can change an input to another integer: allow this share of the largest logit.
MOST_FLIPPED = 0.05
LEAST_ULPS = 4  # the least to allow, in rounding steps of the largest logit
ERROR_ROWS = 4  # rows on which the error is measured
COPIES = 4  # of a row in a batch, so that matrix products have another shape
LAST_STEPS = 6  # last tokens of a prompt, which are fed one by one


class Oracle:
    """Runs rows alone and unpadded, in float32; `quantize` says that its linear layers are in such integers."""

    def __init__(self, model: Model, quantize: str | None = None) -> None:
        self.model = model
        self.quantize = quantize

    def logits(self, token_ids: list[int], last: int) -> torch.Tensor:
        """Logits `[last, V]` after each of the last `last` tokens of a row, from one forward."""
        return forward_alone(self.model, token_ids, last)

    def logits_of(self, sequence: Sequence) -> torch.Tensor:
        """Logits `[N + 1, V]` after the prompt and after each of a sequence's N output tokens."""
        limit = short_limit(self.model.checkpoint.config)
        if limit is not None and sequence.num_prompt_tokens <= limit < len(sequence.token_ids):
            return self._steps_of(sequence)
        return self.logits(sequence.token_ids, sequence.num_output_tokens + 1)

    def _steps_of(self, sequence: Sequence) -> torch.Tensor:
        """The same for a row that crosses LongRoPE's limit: a whole forward only has the logits of its last step."""
        import torch

        starts = [
            replace(sequence, output_ids=sequence.output_ids[:end]) for end in range(sequence.num_output_tokens + 1)
        ]
        with torch.inference_mode():
            return torch.stack([self.model.logits_alone(start).float().cpu() for start in starts])


def forward_alone(model: Model, token_ids: list[int], last: int, copies: int = 1) -> torch.Tensor:
    """Logits `[last, V]` of an unpadded row's last columns, from a batch of `copies` copies; float32, on the CPU."""
    import torch

    with torch.inference_mode(), failures_in_one_line(f"with a row of {len(token_ids)} tokens"):
        logits = model.forward(_copies(token_ids, copies), keep=last)  # [copies, last, V]
    return logits[0].float().cpu()


def step_alone(model: Model, token_ids: list[int], last: int, copies: int) -> torch.Tensor:
    """The same with a KV cache, feeding the last tokens one by one as in decoding; only one if there is no cache."""
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
    """A batch of `copies` copies of one unpadded row."""
    import torch

    input_ids = torch.tensor([token_ids] * copies)  # [copies, T]
    attention_mask = torch.ones_like(input_ids)
    return Batch((), input_ids, attention_mask, positions(attention_mask))


def measure_error(oracle: Oracle, model: Model, sequences: Rows[Sequence]) -> ErrorBound:
    """Measure how far `model`, in its own dtype, differs from the oracle on prompts without any padding.

    Each prompt runs as several copies in one batch, at once and token by token. `model` may be the oracle's own model
    if the dtype is float32.
    """
    import torch

    largest, measured, limit = 0.0, 0.0, short_limit(model.checkpoint.config)
    for sequence in sequences:
        token_ids = sequence.input_ids
        beyond = 0 if limit is None else len(token_ids) - limit
        last = min(beyond if beyond > 0 else len(token_ids), LAST_STEPS)  # all on one side of the limit
        expected = oracle.logits(token_ids, last)
        for found in (forward_alone(model, token_ids, last, COPIES), step_alone(model, token_ids, last, COPIES)):
            measured = max(measured, (found - expected[: len(found)]).abs().max().item())
        largest = max(largest, expected.abs().max().item())
    is_float32 = model.dtype == torch.float32 and oracle.quantize is None
    floor = (MOST_FLIPPED if oracle.quantize else LEAST_ULPS * torch.finfo(model.dtype).eps) * largest
    allowed = max((SAFETY if is_float32 else SAFETY_16_BIT) * measured, floor)
    return ErrorBound(measured, min(allowed, MOST_ROUNDING * largest) if is_float32 else allowed)
