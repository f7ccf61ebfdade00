"""Cross-entropy over a vocabulary or a sample of it, without keeping the logits. Knows tensors only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK = 512  # rows whose logits exist at a time: few enough to stay in the CPU's cache


class ChunkedCrossEntropy(torch.autograd.Function):
    """The mean cross-entropy of `hidden @ table.T + offsets`; makes gradients in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Tensor, offsets: Tensor, targets: Tensor) -> Tensor:
        """hidden `[N, D]`, table `[K, D]`, offsets `[K]`, targets `[N]` (rows of table); products in hidden's dtype."""
        hidden_grad, table_grad = torch.empty_like(hidden), torch.zeros_like(table)
        weight, total = table.to(hidden.dtype), table.new_zeros(())
        for rows, grad, wanted in zip(hidden.split(CHUNK), hidden_grad.split(CHUNK), targets.split(CHUNK), strict=True):
            slope = (rows @ weight.T).float().add_(offsets).log_softmax(dim=1)  # [n, K]
            places = (torch.arange(len(wanted), device=wanted.device), wanted)
            total -= slope[places].sum()
            slope.exp_()[places] -= 1  # now the gradient of the logits
            slope = slope.to(hidden.dtype)
            torch.mm(slope, weight, out=grad)
            table_grad += slope.T @ rows
        ctx.save_for_backward(hidden_grad, table_grad)
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_grad, table_grad = ctx.saved_tensors
        share = grads[0] / len(hidden_grad)
        return hidden_grad * share.to(hidden_grad.dtype), table_grad * share, None, None


@dataclass(frozen=True, slots=True)
class Sampler:
    """The tokens that a step's softmax sums over: the frequent ones, the batch's own, and a random part of the rest."""

    frequent: Tensor  # [F], token ids
    rest: Tensor  # [V - F]
    num_random: int

    @classmethod
    def of_counts(cls, counts: Tensor, num_frequent: int, num_random: int) -> Sampler:
        """Make a sampler from the count of each token in the training text, `[V]`."""
        order = counts.argsort(descending=True, stable=True)
        return cls(order[:num_frequent], order[num_frequent:], num_random)

    def draw(self, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sorted token ids `[K]`, and offsets for their logits that make the drawn tokens stand for the whole rest."""
        places = torch.randperm(len(self.rest), generator=generator)[: self.num_random]
        drawn = self.rest[places.to(self.rest.device)]
        tokens, owner = torch.cat([self.frequent, drawn, targets]).unique(return_inverse=True)
        offsets = torch.zeros(len(tokens), device=tokens.device)
        offsets[owner[len(self.frequent) :][: len(drawn)]] = math.log(len(self.rest) / len(drawn))
        offsets[owner[len(self.frequent) + len(drawn) :]] = 0
        return tokens, offsets


def sampled_loss(hidden: Tensor, table: Tensor, targets: Tensor, tokens: Tensor, offsets: Tensor) -> Tensor:
    """The loss over `tokens` only, which are sorted and include all `targets`."""
    return chunked_loss(hidden, table[tokens], offsets, torch.searchsorted(tokens, targets))


def full_loss(hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    return chunked_loss(hidden, table, table.new_zeros(len(table)), targets)


def chunked_loss(hidden: Tensor, table: Tensor, offsets: Tensor, targets: Tensor) -> Tensor:
    loss: Tensor = ChunkedCrossEntropy.apply(hidden, table, offsets, targets)
    return loss
