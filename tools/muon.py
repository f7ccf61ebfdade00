"""Muon: momentum with an orthogonalized update of each matrix. Of models, knows only GPT-2's joined q, k and v.

Keller Jordan, https://kellerjordan.github.io/posts/muon/. `torch.optim.Muon` works in bfloat16, one matrix at a time,
which is slow on a CPU without bfloat16. Here, matrices of the same shape are processed together, in the parameters'
dtype.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

STEPS = 5
A, B, C = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.Optimizer):
    """Muon for weights of GPT-2's `Conv1D`, `[in, out]`; a matrix `[in, 3 * in]` holds three side by side."""

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            updates = [self._momentum(p, group["momentum"]) for p in parameters]
            for parameter, update in zip(parameters, orthogonalize_all(updates), strict=True):
                scale = max(1.0, update.shape[-1] / update.shape[-2]) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(joined(update), alpha=-group["lr"] * scale)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        """Nesterov momentum: the gradient mixed with the running mean that already includes it. `[parts, in, out]`."""
        state = self.state[parameter]
        if not state:
            state["mean"] = torch.zeros_like(parameter)
        state["mean"].lerp_(parameter.grad, 1 - momentum)
        return parts(parameter.grad.lerp(state["mean"], momentum))


def parts(matrix: Tensor) -> Tensor:
    """Reshape `[in, 3 * in]` to `[3, in, in]`, and any other `[in, out]` to `[1, in, out]`."""
    height, width = matrix.shape
    count = 3 if width == 3 * height else 1
    return matrix.view(height, count, width // count).transpose(0, 1)


def joined(update: Tensor) -> Tensor:
    """The inverse of `parts`."""
    return update.transpose(0, 1).flatten(1)


def orthogonalize_all(updates: list[Tensor]) -> list[Tensor]:
    """Each of `updates` (`[parts, in, out]`) with singular values near 1; processes those of one shape together."""
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, update in enumerate(updates):
        alike[min(update.shape[1:]), max(update.shape[1:])].append(index)
    done: dict[int, Tensor] = {}
    for indices in alike.values():
        wide = [u.mT if u.shape[1] > u.shape[2] else u for u in (updates[i] for i in indices)]
        results = orthogonalize(torch.cat(wide)).split([len(u) for u in wide])
        for index, result in zip(indices, results, strict=True):
            done[index] = result.mT if updates[index].shape[1] > updates[index].shape[2] else result
    return [done[index] for index in range(len(updates))]


def orthogonalize(matrices: Tensor) -> Tensor:
    """Newton-Schulz iteration: move all singular values of `[N, rows, columns]` towards 1; needs rows <= columns."""
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT  # [N, rows, rows]
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x
