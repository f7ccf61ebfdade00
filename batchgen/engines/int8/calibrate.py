"""Which inputs of a model's layers are far larger than the others, found by one forward over ordinary text.

In language models a few columns are large in every row (LLM.int8(), arXiv:2208.07339). Keeping them out of the integers
gives all other columns a finer scale. The text is fixed and runs alone, so a model has the same columns in every run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from batchgen.engines.trial.rows import trial_rows
from batchgen.model.padding import pad
from batchgen.model.shape import num_loud

if TYPE_CHECKING:
    from batchgen.model import Model


def loud_columns(model: Model, count: Callable[[int], int] = num_loud) -> dict[str, torch.Tensor]:
    """Return the sorted inputs with the largest squares, for each linear layer that the text reached.

    `count` says how many of a layer's inputs. The result is empty if there is no text for this model.
    """
    rows = trial_rows(model.checkpoint)
    if not rows:
        return {}
    squares: dict[str, torch.Tensor] = {}  # by the path of a layer: [I]
    hooks = [
        layer.register_forward_pre_hook(_Listener(squares, path))
        for path, layer in model.network.named_modules()
        if type(layer) in (nn.Linear, Conv1D)
    ]
    try:
        with torch.inference_mode():
            model.forward(pad(rows[-1:], model.checkpoint.pad_token_id), keep=rows[-1].num_prompt_tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return {path: _largest(each, count) for path, each in squares.items()}


class _Listener:
    """Sums the squares of what a layer is given, input by input."""

    def __init__(self, squares: dict[str, torch.Tensor], path: str) -> None:
        self.squares, self.path = squares, path

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        sums = inputs[0].detach().float().flatten(0, -2).square().sum(0)  # [I]
        self.squares[self.path] = self.squares[self.path] + sums if self.path in self.squares else sums


def _largest(squares: torch.Tensor, count: Callable[[int], int]) -> torch.Tensor:
    return squares.topk(count(len(squares))).indices.sort().values
