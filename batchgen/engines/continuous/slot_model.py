"""A model whose forwards read and write a slot cache: prefill, prefix and step; and whether a model can have one.

The forward is transformers' own, told by the name of its attention to use ours. Knows nothing of sampling and queues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from batchgen.engines.continuous.kv_cache import ATTENTION, Prefix, Slot, SlotCache
from batchgen.engines.continuous.linear import speed_up
from batchgen.errors import ModelError
from batchgen.model.padding import pad
from batchgen.records import Request, Sequence

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from batchgen.model import Model

# The trial: two prompts of these many tokens, padded, and one step; their logits may lie so far from those of plain
# forwards, as a part of the largest. That is rounding; a wrong mask or position is far beyond it.
TRIAL_PROMPTS = ([1, 2, 3, 4, 5], [6, 7, 8])
TRIAL_TOLERANCE, TRIAL_TOLERANCE_16_BIT = 1e-3, 0.1


def why_no_slots(config: PretrainedConfig) -> str | None:
    """What in a config rules slots out, in a few words; None where nothing does."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    text = config.get_text_config()
    if not MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_attention_backend:
        return "its attention cannot be replaced"
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    has_window = getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)
    if kinds != {"full_attention"} or (has_window and not getattr(text, "layer_types", None)):
        return "its attention slides over a window"
    return None


class SlotModel:
    """A model and its slot cache."""

    def __init__(self, model: Model) -> None:
        self.model = model
        config = model.checkpoint.config.get_text_config()
        self.cache = SlotCache(config.num_hidden_layers, model.device)
        self._last_mlp = _last_mlp(model.network, config.num_hidden_layers)
        self._logits: torch.Tensor | None = None  # [most rows so far, V] float32, where the model's own are not

    def prefill(self, sequences: Rows[Sequence], slots: Rows[Slot]) -> torch.Tensor:
        """Fills slots with the tokens of their sequences behind their common prefix: logits `[B, V]` of the last."""
        prefix = slots[0].prefix
        skip = prefix.num_tokens if prefix else 0
        batch = pad(sequences, self.model.checkpoint.pad_token_id, skip=skip)
        self.cache.begin_prefill(slots, batch.attention_mask)
        before = torch.ones(len(slots), skip, dtype=torch.int64)
        attention_mask = torch.cat([before, batch.attention_mask], 1)  # [B, P + T]
        with _last_column_only(self._last_mlp):
            return self._forward(batch.input_ids, attention_mask, batch.position_ids)

    def compute_prefix(self, token_ids: list[int]) -> Prefix:
        """Keys and values of tokens that rows begin with, for their slots."""
        prefix = self.cache.begin_prefix(len(token_ids))
        input_ids = torch.tensor([token_ids])  # [1, P]
        with _last_column_only(self._last_mlp):
            self._forward(input_ids, torch.ones_like(input_ids), torch.arange(len(token_ids))[None])
        return prefix

    def step(self, token_ids: list[int], slots: Rows[Slot]) -> torch.Tensor:
        """Appends a token to each slot: logits `[B, V]` after it."""
        position_ids = torch.tensor([[slot.num_tokens] for slot in slots])  # [B, 1]
        self.cache.begin_step(slots)
        input_ids = torch.tensor(token_ids)[:, None]  # [B, 1]
        return self._forward(input_ids, torch.ones_like(input_ids), position_ids)

    def _forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        inputs: dict[str, Any] = self.model.inputs(input_ids, attention_mask, position_ids)
        keep = {"logits_to_keep": 1} if self.model.takes_logits_to_keep else {}
        output = self.model.network(**inputs, **keep, past_key_values=self.cache, use_cache=True)
        return self._as_float32(output.logits[:, -1])

    def _as_float32(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits `[B, V]` in float32; copies go to the same memory at every step, since fresh memory costs more."""
        if logits.dtype == torch.float32:
            return logits
        if self._logits is None or len(self._logits) < len(logits):
            self._logits = logits.new_empty(logits.shape, dtype=torch.float32)
        return self._logits[: len(logits)].copy_(logits)


def _last_mlp(network: nn.Module, num_layers: int) -> nn.Module | None:
    """The MLP of the last layer, where each layer has one of that name."""
    mlps = [module for name, module in network.named_modules() if name.endswith(".mlp")]
    return mlps[-1] if len(mlps) == num_layers else None


@contextmanager
def _last_column_only(mlp: nn.Module | None) -> Iterator[None]:
    """Within it the last layer's MLP sees only the last of T columns, whose logits alone are read.

    It gives `[B, 1, H]`, which is added to all columns `[B, T, H]`: right for the last, and of no use to the others.
    """
    if mlp is None:
        yield
        return
    handle = mlp.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, -1:], *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()


def make_slot_model(
    model: Model, *, has_room: Callable[[int], bool] = lambda num_bytes: True
) -> tuple[SlotModel | None, str]:
    """The model with slots, after a trial, and its linear layers sped up; or None, and why not.

    `has_room` is asked for the bytes of copies of weights.
    """
    if reason := why_no_slots(model.checkpoint.config):
        return None, reason
    attention = model.network.config._attn_implementation
    if model.checkpoint.vocab_size <= max(map(max, TRIAL_PROMPTS)):
        return None, "its vocabulary is too small for a trial"
    if attention == ATTENTION:  # an earlier engine has tried it
        return SlotModel(model), ""
    expected = _plain_logits(model)
    model.network.set_attn_implementation(ATTENTION)
    if not _is_right(model, expected):
        model.network.set_attn_implementation(attention)
        return None, "a trial with slots gave other logits than a plain forward"
    speed_up(model.network, has_room=has_room)
    if not _is_right(model, expected):
        raise ModelError(f"model {model.checkpoint.name} goes wrong with packed weights: use --engine reference")
    return SlotModel(model), ""


def _is_right(model: Model, expected: torch.Tensor) -> bool:
    try:
        return _agree(expected, _trial(SlotModel(model)), is_exact=model.dtype == torch.float32)
    except Exception:  # noqa: BLE001 - whatever an architecture trips over, it does not run with slots
        return False


def _trial(slot_model: SlotModel) -> torch.Tensor:
    """Logits `[B, V]` after a prefill of all but the last token, and a step."""
    prompts = [Sequence(Request(i, i, ""), 0, ids[:-1]) for i, ids in enumerate(TRIAL_PROMPTS)]
    slots = [Slot() for _ in prompts]
    with torch.inference_mode():
        slot_model.prefill(prompts, slots)
        return slot_model.step([ids[-1] for ids in TRIAL_PROMPTS], slots).float()


def _plain_logits(model: Model) -> torch.Tensor:
    prompts = [Sequence(Request(i, i, ""), 0, list(ids)) for i, ids in enumerate(TRIAL_PROMPTS)]
    with torch.inference_mode():
        return torch.stack([model.logits_alone(prompt) for prompt in prompts]).float()  # [B, V]


def _agree(expected: torch.Tensor, found: torch.Tensor, *, is_exact: bool) -> bool:
    tolerance = TRIAL_TOLERANCE if is_exact else TRIAL_TOLERANCE_16_BIT
    return bool((expected - found).abs().max() <= tolerance * expected.abs().max())
