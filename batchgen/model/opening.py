"""Finds, checks and loads a model in one call."""

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
    """Finds, checks and loads a model. Raises `ModelError` or `UsageError`."""
    return load_model(open_checkpoint(name, revision=revision, say=say), device, dtype)


def open_checkpoint(
    name: str | None = None,
    *,
    revision: str | None = None,
    weights: bool = True,
    runs: bool = True,
    say: Say = lambda line: None,
) -> Checkpoint:
    """Finds a model and reads all but its weights, which need not be there without `weights`.

    Weights that no run can read are refused, unless this model only encodes (`runs`).
    """
    name, folder = find_model(name, revision, weights=weights, say=say)
    check_files(folder)  # a pipe in the place of config.json is not waited for
    if runs:
        stored_scheme(name, folder)
    return read_checkpoint(name, folder)
