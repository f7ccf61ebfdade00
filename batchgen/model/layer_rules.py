"""What each layer of a model keeps of a row while it runs, told from the config alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from batchgen.model.config_view import ConfigView

# transformers' names for kinds of layers, and older ones that configs still use.
ATTENDING = {"full_attention", "attention", "sliding_attention", "chunked_attention"}
WITH_STATE = {"conv", "linear_attention", "mamba"}
WITH_BOTH = {"hybrid", "hybrid_sliding"}
WITHOUT = {"mlp", "moe"}  # neither keys and values nor a state
SLIDING = {"sliding_attention", "hybrid_sliding"}


@dataclass(frozen=True, slots=True)
class LayerRule:
    """A query sees all columns up to its own, the last `window`, or those from the last multiple of `chunk` on.

    `num_states` counts convolutions.
    """

    attends: bool = True
    window: int | None = None
    chunk: int | None = None
    num_states: int = 0

    @property
    def reach(self) -> int | None:
        """How many columns a query sees at most, its own included; None is all."""
        return self.window or self.chunk

    def first_seen(self, position: int) -> int:
        """The first position that a query at this one sees."""
        if self.chunk:
            return position - position % self.chunk
        return max(0, position + 1 - self.window) if self.window else 0


def layer_rules(config: PretrainedConfig | ConfigView) -> list[LayerRule]:
    """The rule of each layer. Kinds that are not known here count as full attention (`unknown_kinds`)."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds = layer_kinds(config)
    if not kinds:
        uses_window = window and getattr(text, "use_sliding_window", True)
        return [LayerRule(window=window if uses_window else None)] * _num_layers(text)
    num_states = getattr(text, "number_of_conv_states", 1)
    return [
        LayerRule(
            attends=kind not in WITH_STATE | WITHOUT,
            window=window if kind in SLIDING else None,
            chunk=getattr(text, "attention_chunk_size", None) if kind == "chunked_attention" else None,
            num_states=num_states if kind in WITH_STATE | WITH_BOTH else 0,
        )
        for kind in kinds
    ]


def layer_windows(config: PretrainedConfig | ConfigView) -> list[int | None]:
    """For each layer how many columns a query sees at most, its own included; None is all."""
    return [rule.reach for rule in layer_rules(config)]


def layer_kinds(config: PretrainedConfig | ConfigView) -> list[str]:
    """What transformers calls each layer; empty where all are alike."""
    return list(getattr(config.get_text_config(), "layer_types", None) or [])


def unknown_kinds(config: PretrainedConfig | ConfigView) -> list[str]:
    """Kinds of layers that have no rule here."""
    return sorted(set(layer_kinds(config)) - ATTENDING - WITH_STATE - WITH_BOTH - WITHOUT)


def _num_layers(text: PretrainedConfig | ConfigView) -> int:
    return next((int(number) for name in ("num_hidden_layers", "n_layer") if (number := getattr(text, name, None))), 12)
