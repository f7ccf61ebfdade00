"""What can go wrong, as one tree.

    BatchgenError              one line for the user, exit code 1
    ├── UsageError             options that conflict or are out of range, exit code 2
    ├── InputError             prompts that cannot be found or read
    ├── OutputError            an output that cannot or must not be written
    │   └── InUseError         an output that another run is writing
    ├── ModelError             a model that cannot be found, trusted or run
    │   └── NotCachedError     a model that is not on this machine (it may be on the Hub)
    └── ClusterError           Ray that is not installed, does not answer or has failed

A single bad row is not an exception: it becomes a `Result` whose `error` says what is wrong.
Messages name what, where and how to fix it.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def parameter(text: str) -> str:
    """Mark a parameter of the Python functions in a message; the command line shows it as its flag."""
    return f"\0{text}\0"


def with_parameters(message: str, name: Callable[[str], str] = str) -> str:
    """Resolve the parameters marked in a message: as Python names, or as named by `name`.

    >>> message = f"{parameter('overwrite=True')} replaces it"
    >>> with_parameters(message), with_parameters(message, lambda text: "--overwrite")
    ('overwrite=True replaces it', '--overwrite replaces it')
    """
    return PARAMETER.sub(lambda match: name(match[1]), message)


PARAMETER = re.compile("\0([^\0]*)\0")
OVERWRITE, RESUME = parameter("overwrite=True"), parameter("resume=True")


class BatchgenError(Exception):
    """Base class of every error that the user can fix."""

    exit_code = 1

    def __str__(self) -> str:
        return self.named(str)

    def named(self, name: Callable[[str], str]) -> str:
        """Return the message with its parameters named by `name`."""
        return with_parameters(super().__str__(), name)


class UsageError(BatchgenError):
    """Options conflict or are out of range."""

    exit_code = 2


class InputError(BatchgenError):
    """Prompts cannot be found or read."""


class OutputError(BatchgenError):
    """The output cannot be written, or would destroy something."""


class InUseError(OutputError):
    """Another run is writing the output."""


class ModelError(BatchgenError):
    """The model or its tokenizer cannot be found, trusted or run."""


class NotCachedError(ModelError):
    """The model is not on this machine."""


class ClusterError(BatchgenError):
    """Ray is not installed, does not answer or has failed."""


# Maximum bytes of a file name and of a path on Linux; other systems do not allow longer ones.
LONGEST_NAME, LONGEST_PATH = 255, 4096
# How libraries report a lack of memory other than by torch.OutOfMemoryError: the CPU allocators of torch and Apple,
# C++, oneDNN, cuBLAS.
OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "out of memory",
    "bad_alloc",
    "could not create a memory",
    "could not create a primitive",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
# How the loader of libraries and readers of weights report that there is no memory left for a process.
NO_MEMORY_TO_LOAD = ("failed to map segment", "cannot allocate memory", "Cannot allocate memory")


@contextmanager
def failures_in_one_line(where: str) -> Iterator[None]:
    """Turn whatever a forward pass of the model raises into a `ModelError` that says where, except out of memory.

    A config with inconsistent sizes first fails here, with almost any exception.
    """
    try:
        yield
    except BatchgenError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = first_line(error).removeprefix("RuntimeError: ")
        raise ModelError(
            f"the model failed {where} (do its config.json and weights belong together?): {reason}"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of a library's exception, with its class, since the text alone may say nothing.

    >>> first_line(RuntimeError("shape mismatch\\nat 0")), first_line(StopIteration())
    ('RuntimeError: shape mismatch', 'StopIteration')
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def lack_of_resources(error: BaseException) -> str | None:
    """Return what the machine refused the process and how to get more, if that is what a library's error means.

    >>> lack_of_resources(OSError(24, "Too many open files"))
    'too many open files: allow more with ulimit -n'
    """
    text = str(error)
    if "Too many open files" in text:
        return "too many open files: allow more with ulimit -n"
    if any(phrase in text for phrase in NO_MEMORY_TO_LOAD):
        return "out of memory: give this process more (ulimit -v), or free some"
    return None


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of a library written in Rust, which is not an `Exception`."""
    return type(error).__name__ == "PanicException"


def name_in_error(name: str) -> str:
    """Return a file's name; if it is too long to be one (for example a prompt given by mistake), only its start."""
    is_path = len(name) <= LONGEST_PATH and all(len(part) <= LONGEST_NAME for part in name.split("/"))
    return name if is_path else f"{name[:60]}…"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory: Python's, torch's, or a library's error with one of the known phrases."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in OUT_OF_MEMORY)
