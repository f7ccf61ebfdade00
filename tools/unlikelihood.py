"""Unlikelihood of repetition: a network reads its own greedy output, and learns not to repeat itself.

After Welleck et al., Neural Text Generation with Unlikelihood Training, 2019, https://arxiv.org/abs/1908.04319.
"""

from __future__ import annotations

import torch
from corpus import EOS
from torch import Tensor
from transformers import GPT2LMHeadModel

GRAM = 4
SENTENCE_ENDS = (0, 13, 30, 198, 526, 1701, 2474)  # ! . ? \n ." ?" !"


def beginnings(windows: Tensor, num_tokens: int) -> Tensor:
    """Cut windows `[B, T]` to `[B, num_tokens]`, from the start of their second sentence: prompts begin like that."""
    ends = torch.isin(windows[:, :-num_tokens], torch.tensor(SENTENCE_ENDS, device=windows.device))
    first = ends.int().argmax(dim=1) + ends.any(dim=1).int()  # 0 for a window without a sentence end
    return windows.gather(1, first[:, None] + torch.arange(num_tokens, device=windows.device))


@torch.no_grad()
def continue_greedily(network: GPT2LMHeadModel, prefixes: Tensor, num_tokens: int) -> Tensor:
    """Continue prefixes `[B, P]` to at most `[B, P + num_tokens]`, with EOS after the end of a row."""
    network.eval()
    ids: Tensor = network.generate(
        prefixes, attention_mask=torch.ones_like(prefixes), max_new_tokens=num_tokens, do_sample=False, pad_token_id=EOS
    )
    network.train()
    return ids


def repeats(ids: Tensor, length: int = GRAM) -> Tensor:
    """`[B, T]`: which tokens belong to an n-gram that occurred in the same row before; none from EOS on.
    >>> repeats(torch.tensor([[1, 2, 3, 1, 2, 4, 1]]), length=2).int().tolist()
    [[0, 0, 0, 1, 1, 0, 0]]
    """
    found = torch.zeros_like(ids, dtype=torch.bool)
    if ids.shape[1] < length:
        return found
    grams = ids.unfold(1, length, 1)  # [B, G, length]
    same = (grams[:, :, None] == grams[:, None]).all(dim=-1)  # [B, G, G]
    for offset, is_repeat in enumerate(same.tril(diagonal=-1).any(dim=-1).expand(length, -1, -1)):
        found[:, offset : offset + grams.shape[1]] |= is_repeat
    return found & (ids == EOS).cumsum(dim=1).eq(0)


def unlikelihood(network: GPT2LMHeadModel, ids: Tensor, num_read: int) -> Tensor:
    """The cost of repeated tokens after the first `num_read` of each row, divided by the number of tokens after them.

    A repeated token with probability p costs -log(1 - p).
    """
    written = ids[:, num_read:]  # [B, N]
    rows, columns = repeats(written).nonzero(as_tuple=True)  # [M]
    hidden = network.transformer(ids).last_hidden_state[rows, columns + num_read - 1]  # [M, D]
    wanted = written[rows, columns, None]
    logits = (hidden @ network.transformer.wte.weight.T).float()  # [M, V]
    log_odds = logits.gather(1, wanted) - logits.scatter(1, wanted, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.nn.functional.softplus(log_odds).sum() / written.numel()
