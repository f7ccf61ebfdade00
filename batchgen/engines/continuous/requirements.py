"""Whether a model can have slots, as far as its config tells; a trial proves it once the model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchgen.engines.reference.rules import short_limit
from batchgen.model.config_view import ConfigView
from batchgen.model.private import supports_attention_backend

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# What kinds of layers are, for people.
LAYERS = {
    "chunked_attention": "chunked attention",
    "conv": "convolutions",
    "linear_attention": "linear attention",
    "mamba": "a Mamba state",
}


def why_no_slots(config: ConfigView | PretrainedConfig) -> str | None:
    """What in a config rules slots out, in a few words; None where nothing does."""
    if not isinstance(config, ConfigView):  # all families of these take an attention function by name
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

        if not supports_attention_backend(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]):
            return "its attention cannot be replaced"
    text = config.get_text_config()
    if short_limit(config):
        return "its rotary positions depend on the longest row beside a row (LongRoPE)"
    layer_types = getattr(text, "layer_types", None) or ["full_attention"]
    if kinds := sorted(set(layer_types) - {"full_attention", "sliding_attention", "attention"}):
        return f"some of its layers have {' and '.join(LAYERS.get(kind, kind.replace('_', ' ')) for kind in kinds)}"
    return None
