"""Whether scores have the same bits in any batch: the same rows run together and by themselves, and are compared.

A row's own length decides what it is padded to, so only the other rows may change its bits.
"""

from __future__ import annotations

import torch

from batchgen.engines.scoring.network import ScoringNetwork, enough
from batchgen.engines.trial.rows import trial_rows
from batchgen.engines.trial.verdicts import keep_verdict, read_verdict
from batchgen.model import Model
from batchgen.records import bits_text

Ids = tuple[int, ...]
OTHER_BITS = "in a trial, scores had other bits in another batch"
SHAPES = ((8, 9), (24, 5), (304, 2))  # columns, and rows of so many that run together
EVERY = 2  # of these rows one in so many runs alone
PREFIX, BEHIND = 40, 8  # tokens of a prompt that choices share, and columns behind it


def find_bits(model: Model, network: ScoringNetwork) -> str:
    """Return what is guaranteed about the bits of scores, from a trial whose result is kept.

    Rows that run alone need no trial.
    """
    if not network.is_split:
        return bits_text(None)
    engine = f"bits of scores, {network.kernels}"
    verdict = read_verdict(model, engine)
    if verdict is None:
        problem = network.problem
        if problem is None:
            with torch.inference_mode():
                problem = None if are_same(network) else OTHER_BITS
        verdict = bits_text(problem)
        keep_verdict(model, engine, verdict)
    return verdict


def are_same(network: ScoringNetwork) -> bool:
    """Whether rows of several lengths, and choices after prompts, get the same bits together and by themselves."""
    rows = trial_rows(network.model.checkpoint)
    ids: Ids = max((tuple(row.input_ids) for row in rows), key=len, default=())
    fits = [(columns, number) for columns, number in SHAPES if columns + number <= len(ids)]
    return all(_alone_as_together(network, _rows_of(ids, columns, number), columns) for columns, number in fits) and (
        not network.can_share or len(ids) < PREFIX + 4 * BEHIND or _shared_alike(network, ids)
    )


def _rows_of(ids: Ids, columns: int, number: int) -> list[Ids]:
    """Return rows of several lengths that begin at different places of a text."""
    return [ids[first : first + columns - first % 3] for first in range(number)]


def _alone_as_together(network: ScoringNetwork, rows: list[Ids], columns: int) -> bool:
    together = network.hidden(enough(rows, columns), columns)  # [B, T, H]
    rows = rows[::EVERY]
    alone = [network.hidden(enough([row], columns), columns)[0] for row in rows]
    for row, own, beside in zip(rows, alone, together[::EVERY], strict=False):
        if not torch.equal(own[: len(row)], beside[: len(row)]):
            return False
    states = torch.cat(alone)  # [B * T, H]
    found = network.logits(states[:5])
    return torch.equal(found, network.logits(states[: network.rows_at_once])[:5]) and torch.equal(
        found[:1], network.logits(states[:1])
    )


def _shared_alike(network: ScoringNetwork, ids: Ids) -> bool:
    """Whether choices after a prompt have the same bits whatever other prompts and choices run with them."""
    prompts = [ids[first : first + PREFIX] for first in range(3)]
    behind = [ids[PREFIX + first : PREFIX + first + BEHIND] for first in range(2 * BEHIND)]
    together = _behind(network, prompts, behind)
    return all(
        torch.equal(_behind(network, [prompt], behind[number::3])[: len(behind[number::3])], together[number::3])
        for number, prompt in enumerate(prompts)
    )


def _behind(network: ScoringNetwork, prompts: list[Ids], rows: list[Ids]) -> torch.Tensor:
    """Return the hidden states `[B, T, H]` of rows, each after the next of the prompts, which are computed once."""
    cache = network.new_cache()
    network.hidden(enough(prompts, PREFIX), PREFIX, cache)
    filled = enough(rows, BEHIND)
    owners = torch.tensor([row % len(rows) % len(prompts) for row in range(len(filled))], device=network.model.device)
    cache.batch_select_indices(owners)
    return network.hidden(filled, BEHIND, cache)[: len(rows)]
