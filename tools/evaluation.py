"""Evaluate a model: its loss on held-out text, and how much its greedy output repeats itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from corpus import Ids
from transformers import GPT2LMHeadModel

WINDOW = 256
BATCH = 4


@torch.no_grad()
def held_out_losses(network: GPT2LMHeadModel, held_out: dict[str, Ids]) -> dict[str, float]:
    """The loss in nats per token for each part and, under `all`, over the tokens of all parts."""
    network.eval()
    sums = {name: sum_of_losses(network, ids) for name, ids in held_out.items()}
    network.train()
    sums["all"] = tuple(map(sum, zip(*sums.values(), strict=True)))
    return {name: loss / count for name, (loss, count) in sums.items()}


def sum_of_losses(network: GPT2LMHeadModel, ids: Ids) -> tuple[float, int]:
    """The summed loss over windows of WINDOW tokens, except each one's first token, and the number of tokens summed."""
    device = network.device
    whole = torch.from_numpy(ids[: len(ids) // WINDOW * WINDOW].astype("int64")).view(-1, WINDOW)  # [N, T]
    total = 0.0
    for windows in whole.to(device).split(BATCH):
        logits = network(windows).logits[:, :-1].flatten(0, 1).float()  # [B * (T - 1), V]
        total += torch.nn.functional.cross_entropy(logits, windows[:, 1:].flatten(), reduction="sum").item()
    return total, whole[:, 1:].numel()


def repeated_share(outputs: Sequence[Sequence[int]], length: int = 4) -> float:
    """The share of n-grams that occurred in the same output before.
    >>> repeated_share([[1, 2, 1, 2, 1], [1, 2, 3, 4, 5]], length=2)
    0.25
    """
    grams = [[tuple(ids[i : i + length]) for i in range(len(ids) - length + 1)] for ids in outputs]
    return 1 - sum(len(set(row)) for row in grams) / sum(map(len, grams))
