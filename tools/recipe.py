"""The settings of a training run: the network's shape, its steps and learning rates. Knows no text and no optimizer."""

from __future__ import annotations

from dataclasses import dataclass

from corpus import EOS
from transformers import GPT2Config


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings of a training run, stored in its checkpoint."""

    seed: int = 0
    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 192
    n_positions: int = 1024
    window: int = 256
    long_every: int = 8  # every n-th step, windows have n_positions tokens, so that every position is trained
    batch_tokens: int = 4096
    muon_lr: float = 0.02
    adam_lr: float = 0.004
    weight_decay: float = 0.1
    dropout: float = 0.0
    warmup_steps: int = 100
    decay_share: float = 0.2
    full_share: float = 0.1  # share of the steps, at the end, with the softmax over the whole vocabulary
    num_frequent: int = 4096
    num_random: int = 2048

    @property
    def config(self) -> GPT2Config:
        """The network's config; `gelu_pytorch_tanh` is the fused form of GPT-2's own `gelu_new`."""
        return GPT2Config(
            n_layer=self.n_layer, n_head=self.n_head, n_embd=self.n_embd, n_positions=self.n_positions,
            bos_token_id=EOS, eos_token_id=EOS, activation_function="gelu_pytorch_tanh",
            resid_pdrop=self.dropout, embd_pdrop=self.dropout, attn_pdrop=0,
        )  # fmt: skip

    def length_of(self, step: int) -> int:
        """Tokens in each window of a step."""
        return self.n_positions if step % self.long_every == self.long_every - 1 else self.window

    def turn_of(self, step: int) -> int:
        """The number of earlier steps with windows of the same length."""
        long = step // self.long_every
        return long if self.length_of(step) == self.n_positions else step - long

    def rate_at(self, step: int, progress: float) -> float:
        """The learning rate as a share of its peak: rising, flat, falling."""
        return min(1.0, (step + 1) / self.warmup_steps, max(0.0, 1 - progress) / self.decay_share)


@dataclass(frozen=True, slots=True)
class Unrepeating:
    """The steps after a run that teach it not to repeat itself."""

    steps: int = 200
    rate: float = 0.05  # learning rates at the first step, as a share of their peaks; they fall to zero
    weight: float = 1.0  # of the unlikelihood, relative to the loss
    most_read: int = 48  # tokens from the start of a sentence, before the greedy continuation
    num_written: int = 64

    def rate_at(self, number: int) -> float:
        return self.rate * (1 - number / self.steps)

    def num_read_at(self, number: int) -> int:
        """The tokens to read at a step: from 2 to `most_read`, all equally often."""
        return 2 + number * 7 % (self.most_read - 1)
