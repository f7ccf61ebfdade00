"""Train a network step by step, and save and load its checkpoint. Knows nothing about text files."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpus import Ids, window_starts
from losses import Sampler, full_loss, sampled_loss
from muon import Muon
from numpy.typing import NDArray
from recipe import Recipe, Unrepeating
from torch import Tensor
from transformers import GPT2LMHeadModel
from unlikelihood import beginnings, continue_greedily, unlikelihood


class Trainer:
    """A network, its optimizers and their progress: the content of a checkpoint."""

    def __init__(self, recipe: Recipe, stream: Ids, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.stream, self.device = recipe, stream, device
        self.network = GPT2LMHeadModel(recipe.config).to(device).train()
        self.optimizers = make_optimizers(self.network, recipe)
        counts = torch.from_numpy(np.bincount(stream, minlength=recipe.config.vocab_size))
        self.sampler = Sampler.of_counts(counts.to(device), recipe.num_frequent, recipe.num_random)
        self.step = self.tokens = 0
        self.seconds = 0.0

    @torch.no_grad()
    def start_from(self, embeddings: NDArray[np.float32]) -> None:
        """Replace the random word embeddings by `embeddings`, `[V, D]`."""
        self.network.transformer.wte.weight.copy_(torch.from_numpy(embeddings))

    def train_step(self, progress: float) -> float:
        """Train on one batch and return its loss."""
        started = time.monotonic()
        inputs, targets = self.batch()
        loss = self.loss(inputs, targets, is_full=progress >= 1 - self.recipe.full_share)
        self.learn(loss, self.recipe.rate_at(self.step, progress))
        self.tokens += inputs.numel()
        self.seconds += time.monotonic() - started
        return loss.item()

    def unrepeat_step(self, plan: Unrepeating, number: int) -> tuple[float, float]:
        """Train on one batch, and against repetitions after beginnings of sentences; return loss and unlikelihood."""
        started = time.monotonic()
        inputs, targets = self.batch()
        loss = self.loss(inputs, targets, is_full=True)
        read = beginnings(inputs.reshape(-1, self.recipe.window), plan.num_read_at(number))
        with autocast(self.device):
            ids = continue_greedily(self.network, read, plan.num_written)
            repetition = unlikelihood(self.network, ids, read.shape[1])
        self.learn(loss + plan.weight * repetition, plan.rate_at(number))
        self.tokens += inputs.numel()
        self.seconds += time.monotonic() - started
        return loss.item(), repetition.item()

    def learn(self, loss: Tensor, rate: float) -> None:
        """Make one step of the optimizers, with their peak rates times `rate`."""
        loss.backward()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * rate
            with autocast(self.device):  # for Muon's products
                optimizer.step()
            optimizer.zero_grad()
        self.step += 1

    def batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets, both `[B, T]`; each target is the token after its input."""
        length = self.recipe.length_of(self.step)
        starts = window_starts(
            len(self.stream), length, seed=self.recipe.seed,
            turn=self.recipe.turn_of(self.step), count=max(1, self.recipe.batch_tokens // length),
        )  # fmt: skip
        windows = self.stream[starts[:, None] + np.arange(length + 1)].astype(np.int64)  # [B, T + 1]
        ids = torch.from_numpy(windows).to(self.device)
        return ids[:, :-1], ids[:, 1:]

    def loss(self, inputs: Tensor, targets: Tensor, *, is_full: bool) -> Tensor:
        """The loss over the whole vocabulary if requested or not on a CPU, otherwise over a sample of it."""
        with autocast(self.device):
            hidden = self.network.transformer(inputs).last_hidden_state.flatten(0, 1)  # [N, D]
            if torch.is_autocast_enabled(self.device.type):
                hidden = hidden.bfloat16()
        targets, table = targets.flatten(), self.network.transformer.wte.weight
        if is_full or self.device.type != "cpu":
            return full_loss(hidden, table, targets)
        generator = torch.Generator().manual_seed(self.recipe.seed + self.step)
        return sampled_loss(hidden, table, targets, *self.sampler.draw(targets, generator))

    def save(self, path: Path) -> None:
        """Save the checkpoint atomically."""
        state = {
            "recipe": asdict(self.recipe), "network": self.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step, "tokens": self.tokens, "seconds": self.seconds,
        }  # fmt: skip
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device)
        self.network.load_state_dict(state["network"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]


def make_optimizers(network: GPT2LMHeadModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices; AdamW for embeddings, and for norms and biases, without weight decay."""
    blocks = list(network.transformer.h.named_parameters())
    matrices = [p for _, p in blocks if p.ndim == 2]
    tables = [network.transformer.wte.weight, network.transformer.wpe.weight]
    vectors = [p for p in network.parameters() if p.ndim == 1]
    muon = Muon(matrices, recipe.muon_lr, weight_decay=recipe.weight_decay)
    adam = torch.optim.AdamW(
        [{"params": tables, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        recipe.adam_lr, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return [muon, adam]


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 if the hardware supports it."""
    has_bfloat16 = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16)
