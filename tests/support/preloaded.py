"""Imports what a worker's process imports, for the process that `tests.support.forked` forks from."""

from __future__ import annotations

import gc
from importlib import import_module

from batchgen.model.private import spare_imports

spare_imports()  # before transformers is imported, as a worker does
for name in (
    "transformers.models.gpt2.modeling_gpt2",
    "batchgen.cli",
    "batchgen.engines.continuous.engine",
    "batchgen.engines.pool.worker",
    "batchgen.engines.reference.engine",
    "batchgen.engines.scoring.engine",
    "batchgen.engines.trial.ladder",
    "batchgen.runs.execute",
):
    import_module(name)
gc.freeze()  # a collection in a child process would copy these pages
