"""The text part of a model that also takes images or audio, as a causal language model of its own.

Knows the text part's config and the names of its weights; the other parts are never loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Text parts without a causal network in transformers, and the family that computes the same for text only, where the
# three positions (time, height and width) are equal.
SAME_ON_TEXT = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
# Renamings of weights, in the form that `from_pretrained` takes.
NAMES = {
    r"^language_model\.lm_head\.": "lm_head.",
    r"^(model\.)?(language_model|text_model)\.(model\.)?(?!lm_head\.)": "model.",
}


def text_part(config: PretrainedConfig) -> PretrainedConfig | None:
    """The config of a text part that can run by itself; None if the config has no such part."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    text = config.get_text_config()
    if text is config or config.model_type in CAUSAL:
        return None
    if family := SAME_ON_TEXT.get(text.model_type):
        fields = {name: value for name, value in text.to_dict().items() if name != "model_type"}
        fields["rope_parameters"] = {**(fields.get("rope_parameters") or {}), "rope_type": "default"}
        text = AutoConfig.for_model(family, **fields)
    if text.model_type not in CAUSAL:
        return None
    text.tie_word_embeddings = config.tie_word_embeddings
    text.architectures = None
    return text
