"""Silence transformers and the Hub's client, and turn their exceptions into one line."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batchgen.errors import BatchgenError, ModelError, first_line, is_out_of_memory
from batchgen.model.checks import unreadable_file


@contextmanager
def one_line(name: str, folder: Path) -> Iterator[None]:
    """Turn anything that a broken or hostile checkpoint makes transformers raise into a one-line `ModelError`."""
    try:
        yield
    except BatchgenError:
        raise
    except Exception as error:  # noqa: BLE001 - the library raises almost anything
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"model {name} needs its own code, and batchgen never runs code that comes with a model"
            ) from None
        if is_out_of_memory(error):
            raise ModelError(f"model {name} does not fit in memory: try a smaller one, or --dtype bfloat16") from None
        if problem := unreadable_file(folder) or _odd_templates(folder):
            raise ModelError(f"model {name} cannot be loaded: {problem}: fix it, or download it again") from None
        raise ModelError(f"model {name} cannot be loaded from {folder}: {first_line(error)}") from None


def _odd_templates(folder: Path) -> str | None:
    from batchgen.model.chat.template_files import read_templates

    try:
        read_templates(folder)
    except ValueError as problem:
        return str(problem)
    return None


@contextmanager
def no_logs() -> Iterator[None]:
    """Suppress log records and warnings of all libraries."""
    disabled_below = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled_below)


@contextmanager
def quiet() -> Iterator[None]:
    """Like `no_logs`, and also hide the progress bars of transformers and the Hub's client."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    had_bars = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    try:
        with no_logs():
            yield
    finally:
        if had_bars[0]:
            transformers_logging.enable_progress_bar()
        if had_bars[1]:
            enable_progress_bars()
