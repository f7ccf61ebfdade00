"""Which tokens top-k, top-p and min-p keep for each row, and which of them rounding could let in or out."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch

from batchgen.engines.sampling.draws import running_mass


def keep_top_k(logits: torch.Tensor, top_k: Rows[int]) -> torch.Tensor:
    """Return the mask `[B, V]` that keeps the `top_k` largest logits of each row; 0 keeps all. Ties are kept."""
    values = logits.topk(min(max(1, *top_k), logits.shape[-1])).values  # [B, K]
    wanted = column(top_k, logits)[:, None]  # [B, 1]
    least = values.gather(-1, (wanted - 1).clamp(0, values.shape[-1] - 1))  # [B, 1]
    return (logits >= least) | (wanted == 0)


def keep_top_p(logits: torch.Tensor, top_p: torch.Tensor, margin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mask `[B, V]` of the fewest tokens whose probabilities reach `top_p` `[B]` (arXiv:1904.09751).

    Also return which tokens `[B, V]` could be let in or out by moving the logits by `margin` `[B]`; so do the functions
    below.
    """
    ordered, order = logits.sort(dim=-1, descending=True)  # [B, V]
    cdf = running_mass(ordered)
    cdf /= cdf[:, -1:].clone()
    distance = cdf.sub_(top_p[:, None].double())[:, :-1]  # of the mass ahead of each token except the first
    reach = margin * top_p * (1 - top_p)  # how far a margin in log-odds moves this mass
    keep, unsure = torch.ones_like(order, dtype=torch.bool), torch.zeros_like(order, dtype=torch.bool)
    keep[:, 1:] = (distance < 0) | (top_p == 1)[:, None]
    unsure[:, 1:] = distance.abs_() < reach[:, None]
    return keep.scatter(-1, order, keep), unsure.scatter(-1, order, unsure)


def keep_min_p(logits: torch.Tensor, min_p: torch.Tensor, margin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mask `[B, V]` of tokens at least `min_p` `[B]` times as likely as the likeliest (arXiv:2407.01082)."""
    floor = logits.max(-1, keepdim=True).values + min_p.log()[:, None]
    return logits >= floor, (logits - floor).abs() < margin[:, None]


def filter_logits(
    logits: torch.Tensor, top_k: Rows[int], top_p: Rows[float], min_p: Rows[float], margin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits `[B, V]` with -inf where the rows' top-k, top-p and min-p cut, and the mask of unsure tokens.

    Whether any row uses a filter is checked on the host: asking the device would wait for it.
    """
    kept, unsure = logits, torch.zeros_like(logits, dtype=torch.bool)
    if any(k > 0 for k in top_k):
        kept = kept.masked_fill(~keep_top_k(kept, top_k), -torch.inf)
    if any(p < 1 for p in top_p):
        keep, close = keep_top_p(kept, column(top_p, kept), margin)
        kept, unsure = kept.masked_fill(~keep, -torch.inf), unsure | close
    if any(p > 0 for p in min_p):
        keep, close = keep_min_p(kept, column(min_p, kept), margin)
        kept, unsure = kept.masked_fill(~keep, -torch.inf), unsure | close
    if kept is not logits:
        unsure |= _near_the_cut(logits, kept, margin)
    return kept, unsure


def column(values: Rows[float], like: torch.Tensor) -> torch.Tensor:
    """Return one number per row, `[B]`, on the device of `like`."""
    return torch.tensor(values, device=like.device)


def _near_the_cut(logits: torch.Tensor, kept: torch.Tensor, margin: torch.Tensor) -> torch.Tensor:
    """Return tokens `[B, V]` so close to the lowest kept logit that rounding could swap them with a dropped one."""
    is_dropped = kept == -torch.inf
    least = kept.masked_fill(is_dropped, torch.inf).amin(-1, keepdim=True)
    near = (logits - least).abs() < margin[:, None]
    return near & (near & is_dropped).any(-1, keepdim=True)
