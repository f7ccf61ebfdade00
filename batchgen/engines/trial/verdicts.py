"""What trials found about a model on this machine, stored with everything that it depends on."""

from __future__ import annotations

import json
import platform
from hashlib import blake2b
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

from batchgen.engines.compiled.support import compiler
from batchgen.machine.kept import keep, read_kept
from batchgen.machine.limits import cpu_name

if TYPE_CHECKING:
    import torch

    from batchgen.model import Checkpoint

FILE = "trials"
TRIALS = 6  # version: different texts, lengths or tolerances give different verdicts
MOST_KEPT = 500


class Tried(Protocol):
    """The subject of a verdict: a model, which need not be loaded."""

    @property
    def checkpoint(self) -> Checkpoint: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype_name(self) -> str: ...


def read_verdict(model: Tried, engine: str) -> str | None:
    """Return the last verdict on this engine with the same files, versions and machine; None if there is none."""
    verdict = read_kept(FILE).get(_key(model, engine))
    return verdict if isinstance(verdict, str) else None


def keep_verdict(model: Tried, engine: str, verdict: str) -> None:
    if len(read_kept(FILE)) < MOST_KEPT:
        keep(FILE, {_key(model, engine): verdict})


def _key(model: Tried, engine: str) -> str:
    import torch

    folder = model.checkpoint.folder
    files = [*folder.glob("*.safetensors"), folder / "config.json", *folder.glob("tokenizer*")]
    status = [(file.name, *_size_and_time(file)) for file in sorted(files) if file.is_file()]
    depends_on = [
        TRIALS,
        engine,
        str(folder.resolve()),
        status,
        model.checkpoint.config.to_json_string(use_diff=False),
        str(model.device),
        model.dtype_name,
        torch.get_num_threads(),
        version("torch"),
        version("transformers"),
        compiler(),
        cpu_name(),
        platform.machine(),
    ]
    return blake2b(json.dumps(depends_on).encode(), digest_size=16).hexdigest()


def _size_and_time(file: object) -> tuple[int, int]:
    status = file.stat()  # type: ignore[attr-defined]
    return status.st_size, status.st_mtime_ns
