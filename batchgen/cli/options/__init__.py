"""Options that commands share: records that a command takes whole, and annotated types of single options."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchgen.cli.options.chat import ChatFlags
    from batchgen.cli.options.expand import Pick, with_groups
    from batchgen.cli.options.model import ManyDevices, ModelOptions
    from batchgen.cli.options.output import DurableOptions, Format, OutputOptions
    from batchgen.cli.options.panels import BATCHES, INPUT, LENGTH, MODEL, OUTPUT
    from batchgen.cli.options.prompts import PromptOptions
    from batchgen.cli.options.ray import ClusterOptions
    from batchgen.cli.options.single import AsJson, ProgressForm, Quiet, TooLongPolicy

__all__ = [
    "BATCHES",
    "INPUT",
    "LENGTH",
    "MODEL",
    "OUTPUT",
    "AsJson",
    "ChatFlags",
    "ClusterOptions",
    "DurableOptions",
    "Format",
    "ManyDevices",
    "ModelOptions",
    "OutputOptions",
    "Pick",
    "ProgressForm",
    "PromptOptions",
    "Quiet",
    "TooLongPolicy",
    "with_groups",
]

_HOMES = {
    "BATCHES": "panels",
    "INPUT": "panels",
    "LENGTH": "panels",
    "MODEL": "panels",
    "OUTPUT": "panels",
    "AsJson": "single",
    "ChatFlags": "chat",
    "ClusterOptions": "ray",
    "DurableOptions": "output",
    "Format": "output",
    "ManyDevices": "model",
    "ModelOptions": "model",
    "OutputOptions": "output",
    "Pick": "expand",
    "ProgressForm": "single",
    "PromptOptions": "prompts",
    "Quiet": "single",
    "TooLongPolicy": "single",
    "with_groups": "expand",
}


def __getattr__(name: str) -> Any:
    """Load each name on first use: `batchgen status` needs nothing that reads prompts or finds models."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
