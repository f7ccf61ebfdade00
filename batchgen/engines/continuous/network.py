"""The network that the slots run on: the model's weights, our attention and faster layers; made and tried once a model.

Whether a model can have slots at all is told from its config, and proved by a trial.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from torch import nn

from batchgen.engines.continuous.layer import ATTENTION
from batchgen.engines.continuous.linear import speed_up
from batchgen.engines.reference.rules import short_limit
from batchgen.engines.trial.ladder import slots_hold
from batchgen.model import Model

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# What kinds of layers are, for people.
LAYERS = {
    "sliding_attention": "a sliding window",
    "chunked_attention": "chunked attention",
    "conv": "convolutions",
    "linear_attention": "linear attention",
    "mamba": "a Mamba state",
}
# What was found for each loaded network that is still in use: the slots' own, or why there is none.
_found: WeakKeyDictionary[nn.Module, Model | str] = WeakKeyDictionary()


def why_no_slots(config: PretrainedConfig) -> str | None:
    """What in a config rules slots out, in a few words; None where nothing does."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    text = config.get_text_config()
    if not MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_attention_backend:
        return "its attention cannot be replaced"
    if short_limit(config):
        return "its rotary positions depend on the longest row beside a row (LongRoPE)"
    layer_types = getattr(text, "layer_types", None) or ["full_attention"]
    if kinds := sorted(set(layer_types) - {"full_attention", "attention"}):
        return f"some of its layers have {' and '.join(LAYERS.get(kind, kind.replace('_', ' ')) for kind in kinds)}"
    has_window = getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)
    if has_window and not getattr(text, "layer_types", None):
        return f"its layers have {LAYERS['sliding_attention']}"
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
    own = model.on_same_weights(ATTENTION)
    _see_last_column_only(own.network, model.checkpoint.config.get_text_config().num_hidden_layers)
    speed_up(own.network, model.network if is_owned else None, has_room=has_room)
    return own if slots_hold(model, own) else "a trial with slots gave other logits than a plain forward"


def _see_last_column_only(network: nn.Module, num_layers: int) -> None:
    """Lets the last layer's MLP see only the last of T columns, whose logits alone are read.

    It gives `[B, 1, H]`, which is added to all columns `[B, T, H]`: right for the last, and of no use to the others.
    """
    mlps = [module for name, module in network.named_modules() if name.endswith(".mlp")]
    if len(mlps) == num_layers:
        mlps[-1].register_forward_pre_hook(lambda _, inputs: (inputs[0][:, -1:], *inputs[1:]))
