"""A command whose process is killed in the middle of its run."""

from __future__ import annotations

import os
import signal

from batchgen.cli import app
from batchgen.records import Result
from batchgen.runs.store import Store


def die_after(num_results: int, words: list[object]) -> None:
    """Run the command, and kill its process at this result."""
    add, added = Store.add, []

    def add_and_die(store: Store, result: Result) -> None:
        add(store, result)
        added.append(result)
        if len(added) == num_results:
            store.commit()
            os.kill(os.getpid(), signal.SIGKILL)

    Store.add = add_and_die  # type: ignore[method-assign]
    app(list(map(str, words)))
