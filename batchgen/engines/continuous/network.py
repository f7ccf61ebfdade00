"""The network that the slots run on: the model's weights, our attention and faster layers; made and tried once a model.

Whether a model can have slots at all is told from its config, and proved by a trial.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import nn

from batchgen.engines.continuous.layer import ATTENTION
from batchgen.engines.continuous.linear import speed_up
from batchgen.engines.continuous.slot_model import SlotModel
from batchgen.engines.continuous.slots import Slot
from batchgen.errors import ModelError
from batchgen.model import Model
from batchgen.records import Request, Sequence

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# The trial: two prompts of these many tokens, padded, and one step; their logits may lie so far from those of plain
# forwards, as a part of the largest. That is rounding; a wrong mask or position is far beyond it.
TRIAL_PROMPTS = ([1, 2, 3, 4, 5], [6, 7, 8])
TRIAL_TOLERANCE, TRIAL_TOLERANCE_16_BIT = 1e-3, 0.1

# What was found for each loaded network that is still in use: the slots' own, or why there is none.
_found: WeakKeyDictionary[nn.Module, Model | str] = WeakKeyDictionary()


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


def slot_network(
    model: Model, *, is_owned: bool = False, has_room: Callable[[int], bool] = lambda num_bytes: True
) -> tuple[Model | None, str]:
    """The model on a network of the slots' own, on the same weights; or None, and why it cannot have one.

    A model that `is_owned` by the run alone lets its weights go where they are packed, and gets them back from there.
    `has_room` is asked for the bytes of copies of weights.
    """
    if model.network not in _found:
        _found[model.network] = _make(model, is_owned, has_room)
    found = _found[model.network]
    return (None, found) if isinstance(found, str) else (replace(found, checkpoint=model.checkpoint), "")


def _make(model: Model, is_owned: bool, has_room: Callable[[int], bool]) -> Model | str:
    if reason := why_no_slots(model.checkpoint.config):
        return reason
    if model.checkpoint.vocab_size <= max(map(max, TRIAL_PROMPTS)):
        return "its vocabulary is too small for a trial"
    expected = _plain_logits(model)
    own = model.on_same_weights(ATTENTION)
    _see_last_column_only(own.network, model.checkpoint.config.get_text_config().num_hidden_layers)
    if not _is_right(own, expected):
        return "a trial with slots gave other logits than a plain forward"
    speed_up(own.network, model.network if is_owned else None, has_room=has_room)
    if not _is_right(own, expected):
        raise ModelError(f"model {model.checkpoint.name} goes wrong with packed weights: use --engine reference")
    return own


def _see_last_column_only(network: nn.Module, num_layers: int) -> None:
    """Lets the last layer's MLP see only the last of T columns, whose logits alone are read.

    It gives `[B, 1, H]`, which is added to all columns `[B, T, H]`: right for the last, and of no use to the others.
    """
    mlps = [module for name, module in network.named_modules() if name.endswith(".mlp")]
    if len(mlps) == num_layers:
        mlps[-1].register_forward_pre_hook(lambda _, inputs: (inputs[0][:, -1:], *inputs[1:]))


def _is_right(own: Model, expected: torch.Tensor) -> bool:
    try:
        return _agree(expected, _trial(SlotModel(own)), is_exact=own.dtype == torch.float32)
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
