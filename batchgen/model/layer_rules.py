"""What each layer of a model keeps per row while it runs, derived from the config alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from batchgen.model.config_view import ConfigView

# transformers' names for layer kinds, including older ones that configs still use.
ATTENDING = {"full_attention", "attention", "sliding_attention", "chunked_attention"}
WITH_STATE = {"conv", "linear_attention", "mamba"}
WITH_BOTH = {"hybrid", "hybrid_sliding"}
WITHOUT = {"mlp", "moe"}  # neither keys and values nor a state
SLIDING = {"sliding_attention", "hybrid_sliding"}


@dataclass(frozen=True, slots=True)
class LayerRule:
    """What a layer attends to: all columns, the last `window`, or those since the last multiple of `chunk`.

    A query never sees columns after its own. `num_states` is the number of convolution states.
    """

    attends: bool = True
    window: int | None = None
    chunk: int | None = None
    num_states: int = 0

    @property
    def reach(self) -> int | None:
        """The maximum number of columns that a query sees, including its own; None for all."""
        return self.window or self.chunk

    def first_seen(self, position: int) -> int:
        """The first position that a query at `position` sees."""
        if self.chunk:
            return position - position % self.chunk
        return max(0, position + 1 - self.window) if self.window else 0


def layer_rules(config: PretrainedConfig | ConfigView) -> list[LayerRule]:
    """The rule of each layer. Unknown kinds count as full attention (see `unknown_kinds`)."""
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
    """For each layer, the maximum number of columns that a query sees, including its own; None for all."""
    return [rule.reach for rule in layer_rules(config)]


def layer_kinds(config: PretrainedConfig | ConfigView) -> list[str]:
    """transformers' name for the kind of each layer; empty if all layers are the same."""
    return list(getattr(config.get_text_config(), "layer_types", None) or [])


def scans_columns(config: PretrainedConfig | ConfigView) -> bool:
    """Whether a layer's state is a sum over all columns, and not only the last inputs of a convolution."""
    return bool(set(layer_kinds(config)) & (WITH_STATE | WITH_BOTH) - {"conv"})


def unknown_kinds(config: PretrainedConfig | ConfigView) -> list[str]:
    """The layer kinds of a config that have no rule here."""
    return sorted(set(layer_kinds(config)) - ATTENDING - WITH_STATE - WITH_BOTH - WITHOUT)


def _num_layers(text: PretrainedConfig | ConfigView) -> int:
    return next((int(number) for name in ("num_hidden_layers", "n_layer") if (number := getattr(text, name, None))), 12)
