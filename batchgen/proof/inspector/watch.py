"""Watch a model's own eager attention: the scores, the mask that is added to them, and the softmax that follows.

It replaces nothing: while the model's code runs, it looks at each sum that goes into a softmax. It therefore works for
any architecture, and sees exactly what the model computes, including grouped queries and ALiBi.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from batchgen.errors import ModelError, failures_in_one_line
from batchgen.records import Batch

if TYPE_CHECKING:
    from batchgen.model import Model


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """One layer's attention: scores before the mask, weights after the softmax `[B, H, T, T]`; mask `[B, 1, T, T]`."""

    layer: int
    scores: torch.Tensor
    mask: torch.Tensor
    weights: torch.Tensor


class _SoftmaxWatch(TorchFunctionMode):
    """Sees every torch function; remembers the last sum of scores and a mask, and reports when a softmax takes it."""

    def __init__(self, on_layer: Callable[[Seen], None]) -> None:
        super().__init__()
        self.on_layer = on_layer
        self.num_layers = 0
        self._sum: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in ("add", "__add__") and _are_square(args):
            self._sum = (args[0], args[1], result)
        elif name == "softmax" and self._sum and args and args[0] is self._sum[2]:
            scores, mask, _ = self._sum
            self._sum = None
            self.on_layer(Seen(self.num_layers, scores, mask, result))
            self.num_layers += 1
        return result


def _are_square(args: tuple[Any, ...]) -> bool:
    """Whether these are scores `[B, H, T, T]` and a mask `[B, 1, T, T]`."""
    if len(args) < 2 or not all(isinstance(arg, torch.Tensor) and arg.dim() == 4 for arg in args[:2]):
        return False
    return bool(args[0].shape[-2:] == args[1].shape[-2:])


def watch_attention(model: Model, batch: Batch, on_layer: Callable[[Seen], None]) -> torch.Tensor:
    """Run one forward of a batch; `on_layer` gets each layer's attention as it is computed.

    Returns the logits `[B, V]` of the last column. Raises `ModelError` if the architecture adds no mask to its scores.
    """
    eager = model.on_same_weights("eager")  # eager attention computes visible scores
    watch = _SoftmaxWatch(on_layer)
    where = "with {} rows of {} columns".format(*batch.input_ids.shape)
    with torch.inference_mode(), failures_in_one_line(where), watch:
        logits = eager.forward(batch)  # [B, 1, V]
    if not watch.num_layers:
        raise ModelError(f"the attention of {model.checkpoint.name} cannot be shown: it adds no mask to its scores")
    return logits[:, -1].float().cpu()
