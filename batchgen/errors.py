"""What can go wrong, as one tree.

    BatchgenError              one line for the user, exit code 1
    ├── UsageError             options that contradict each other or are out of range, exit code 2
    ├── InputError             prompts that cannot be found or read
    ├── OutputError            an output that cannot or must not be written
    └── ModelError             a model that cannot be found, trusted or run
        └── NotCachedError     a model that is not on this machine (it may be on the Hub)

A single bad row is not an exception: it becomes a `Result` whose `error` says what is wrong.
Messages name what, where and how to mend it.
"""


class BatchgenError(Exception):
    """Base of every error that a user can mend."""

    exit_code = 1


class UsageError(BatchgenError):
    """Options contradict each other or are out of range."""

    exit_code = 2


class InputError(BatchgenError):
    """Prompts cannot be found or read."""


class OutputError(BatchgenError):
    """The output cannot be written, or would destroy something."""


class ModelError(BatchgenError):
    """The model or its tokenizer cannot be found, trusted or run."""


class NotCachedError(ModelError):
    """The model is not on this machine."""
