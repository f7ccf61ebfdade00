"""Find, check and load a model in one call."""

from __future__ import annotations

from batchgen.model.checkpoint import Checkpoint, read_checkpoint
from batchgen.model.checks import check_files
from batchgen.model.find import Say, find_model
from batchgen.model.loaded import Model
from batchgen.model.stored_integers import stored_scheme
from batchgen.model.weights import load_model


def open_model(
    name: str | None = None,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    say: Say = lambda line: None,
) -> Model:
    """Find, check and load a model. Raises `ModelError` or `UsageError`."""
    return load_model(open_checkpoint(name, revision=revision, say=say), device, dtype)


def open_checkpoint(
    name: str | None = None,
    *,
    revision: str | None = None,
    weights: bool = True,
    runs: bool = True,
    say: Say = lambda line: None,
) -> Checkpoint:
    """Find a model and read everything but its weights, which may be missing with `weights=False`.

    Raises `ModelError` for weights that no run can read, unless the model will only encode (`runs=False`).
    """
    name, folder = find_model(name, revision, weights=weights, say=say)
    check_files(folder)  # otherwise a pipe in place of config.json would block
    if runs:
        stored_scheme(name, folder)
    return read_checkpoint(name, folder)
