"""Whether a model can have slots, as far as its config tells; a trial proves it once the model is loaded."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING

from batchgen.model.config_view import ConfigView
from batchgen.model.layer_rules import layer_rules, unknown_kinds
from batchgen.model.private import supports_attention_backend

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CACHES = {"past_key_values", "cache_params", "state"}  # names under which forwards take what they keep of past tokens
# Families that keep states in a place other than our cache.
STATES_ELSEWHERE = {"minimax": "a cache of its own", "recurrent_gemma": "its own modules"}

# Families whose attention works on the keys and values that a cache returns; ours returns none. JetMoE repeats them for
# its experts, DiffLlama splits the values in two.
BEHIND_THE_CACHE = {"diffllama", "jetmoe"}


def why_no_slots(config: ConfigView | PretrainedConfig) -> str | None:
    """Return what in a config rules out slots, in a few words; None if nothing does."""
    if getattr(config.get_text_config(), "attn_temperature_tuning", False):  # Llama 4
        return "its attention is scaled by the number of columns before a token, including pads"
    if kinds := unknown_kinds(config):
        return f"some of its layers have {' and '.join(kind.replace('_', ' ') for kind in kinds)}"
    if place := STATES_ELSEWHERE.get(config.get_text_config().model_type):
        return f"it keeps its states in {place}"
    if config.get_text_config().model_type in BEHIND_THE_CACHE:
        return "its attention rearranges keys and values that come from the cache"
    # Every family with a ConfigView takes an attention function by name and has no states.
    return None if isinstance(config, ConfigView) else _why_not_by_class(config)


def _why_not_by_class(config: PretrainedConfig) -> str | None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.cache_utils import Cache

    network_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    rules = layer_rules(config)
    taken = set(signature(network_class.forward).parameters)
    has_states = any(rule.num_states for rule in rules)
    if not taken & CACHES:
        return "it has no KV cache"
    if "past_key_values" not in taken and not ("cache_params" in taken and has_states):
        return "it keeps its states in another form than transformers' caches"
    if any(rule.attends for rule in rules) and not supports_attention_backend(network_class):
        return "its attention cannot be replaced"
    if has_states and not hasattr(Cache, "get_conv_state"):
        return "the installed transformers keeps states in an older form"
    return None
