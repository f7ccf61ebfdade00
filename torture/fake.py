"""The real command line with a fake model and engine plugged in: starts in a quarter of a second, without torch.

A row's answer is that of `torture.answers`: its prompt again and a hash of everything that an answer may depend on, so
that a row that ran with anything else is noticed. `TORTURE_*` variables set how long a batch takes, where finished rows
are logged, when the store commits, and when the command starts.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]

_signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # as `batchgen.__main__` does with `signal`, which takes longer

import os
import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

BATCH_ROWS = 64
STEPS = 4  # of a batch; it can be stopped at each
EOS = 0x10FFFF  # not a character
BATCH_S = float(os.environ.get("TORTURE_BATCH_S", "0"))
LOG = os.environ.get("TORTURE_LOG")
START = float(os.environ.get("TORTURE_START", "0"))
COMMIT_ROWS = int(os.environ.get("TORTURE_COMMIT_ROWS", "0"))
FULL_WINDOWS = "TORTURE_FULL_WINDOWS" in os.environ

torch = ModuleType("torch")  # the closing line asks it for its number of threads
torch.__dict__.update(get_num_threads=lambda: 1, OutOfMemoryError=MemoryError)
sys.modules["torch"] = torch

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of this file's folder

from batchgen import __main__, pipeline
from batchgen.formats import whole
from batchgen.model import Checkpoint, Model
from batchgen.records import EngineStats, Result, Sequence
from batchgen.runs import equipment, output, store
from torture.answers import OPTIONS, answer


class Characters:
    """A tokenizer whose tokens are Unicode characters."""

    eos_token_id = EOS
    vocab_size = EOS + 1
    added_tokens_decoder: ClassVar[dict[int, object]] = {}
    all_special_tokens: ClassVar[list[str]] = []
    all_special_ids: ClassVar[list[int]] = []
    max_position_embeddings = 1_000_000
    special_tokens_map: ClassVar[dict[str, str]] = {}

    def __call__(self, prompts: list[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(character) for character in prompt] for prompt in prompts]}

    def decode(self, token_ids: list[int], **_: object) -> str:
        return "".join(map(chr, token_ids))

    def get_text_config(self) -> Characters:
        """It is also the model's config."""
        return self


class Device:
    """Where the fake engine runs."""

    type = "fake"

    def __str__(self) -> str:
        return "fake"


class FakeEngine:
    """Runs a window in batches, the longest rows first; the rows of a batch finish from last to first."""

    def __init__(self, num_rows: int | None) -> None:
        self.num_rows = num_rows or BATCH_ROWS
        self.stats = EngineStats("fake")
        self._batches: deque[list[Sequence]] = deque()
        self._steps_left = STEPS  # of the first batch
        self._log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if LOG else None

    @property
    def wants_rows(self) -> int:
        return self.num_rows if self.is_idle else 0

    @property
    def is_idle(self) -> bool:
        return not self._batches

    def add(self, sequences: Iterable[Sequence]) -> None:
        rows = sorted(sequences, key=lambda row: -row.num_prompt_tokens)
        self._batches.extend(rows[start : start + self.num_rows] for start in range(0, len(rows), self.num_rows))

    def step(self) -> list[Sequence]:
        if self.is_idle:
            return []
        time.sleep(BATCH_S / STEPS)
        self.stats = replace(self.stats, new_tokens=self.stats.new_tokens + len(self._batches[0]))
        self._steps_left -= 1
        if self._steps_left:
            return []
        self._steps_left = STEPS
        self.stats = replace(self.stats, batches=self.stats.batches + 1)
        return [self._finish(row) for row in reversed(self._batches.popleft())]

    def close(self) -> None:
        self._batches.clear()

    def _finish(self, row: Sequence) -> Sequence:
        request, options = row.request, {name: getattr(row.sampling, name) for name in OPTIONS}
        text, row.finish_reason = answer(request.prompt, request.id, request.occurrence, row.sample_index, options)
        row.output_ids = [ord(character) for character in text]
        row.batch_index, row.padded_length = self.stats.batches, row.num_prompt_tokens
        if self._log is not None:
            os.write(self._log, f"{os.getpid()} {row.request.index} {time.time()}\n".encode())
        return row


def open_checkpoint(name: str | None, **_: object) -> Checkpoint:
    characters: Any = Characters()
    return Checkpoint(name or "fake", Path(name or os.devnull), characters, characters, frozenset({EOS}))


def load_model(checkpoint: Checkpoint, *_: object) -> Model:
    network: Any = None
    device: Any = Device()
    dtype: Any = "float32"
    return Model(checkpoint, network, device, dtype)


def commit_by_rows(number: int) -> None:
    """Commit in the main thread after `number` rows, never by the clock: every run then makes the same system calls."""
    store.COMMIT_EVERY_S = 1e6
    add = store.Store.add
    rows = iter(range(1, sys.maxsize))

    def add_and_commit(self: store.Store, result: Result) -> None:
        add(self, result)
        if next(rows) % number == 0:
            self.commit()

    store.Store.add = add_and_commit  # type: ignore[method-assign]


vars(equipment).update(
    make_engine=lambda model, options, **_: FakeEngine(options.batch_size),
    open_checkpoint=open_checkpoint,
    load_model=load_model,
    check_weights=lambda folder: None,
    choose_devices=lambda name, num_workers=None: [Device()],
    choose_dtype=lambda name, *_: "float32" if name == "auto" else name,
)
# File names that a check of system calls can predict.
for module in (whole, output):
    vars(module)["temporary_name"] = lambda file: file.with_name(f".batchgen-{file.name}.tmp")
if FULL_WINDOWS:  # on a busy machine, too, on which rows come slowly
    vars(pipeline).update(Windows=partial(pipeline.Windows, patience_s=1e6))
if COMMIT_ROWS:
    commit_by_rows(COMMIT_ROWS)

if __name__ == "__main__":
    time.sleep(max(0.0, START - time.time()))
    __main__.main()
