"""Connects to Ray, keeps Ray's own output off the terminal, and reports its errors in one line."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from io import FileIO, TextIOWrapper
from pathlib import Path
from typing import TextIO

from batchgen.errors import BatchgenError, ClusterError, UsageError
from batchgen.machine.children import safe_cluster
from batchgen.model.quiet import no_logs
from batchgen.runs.ray.cluster import LOCAL, Cluster

AUTO = "auto"
CLIENT = "ray://"
PROBE_S = 5.0
LOCAL_STORE_BYTES = 128 * 2**20  # one machine sends nothing large through it
# Read when Ray is imported or started: no usage statistics are sent, and Ray's log lines stay out of stderr.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}


@contextmanager
def _aside() -> Iterator[None]:
    """Keep what Ray writes off standard output and standard error; our own stderr still goes where it did."""
    stdout, stderr = sys.stdout, sys.stderr
    with Path(os.devnull).open("w") as nowhere, _diverted(1, nowhere), _diverted(2, nowhere) as ours:
        sys.stdout = nowhere
        if _descriptor(stderr) == 2:
            sys.stderr = TextIOWrapper(FileIO(ours, "wb", closefd=False), "utf-8", newline="\n", write_through=True)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = stdout, stderr


@contextmanager
def _diverted(descriptor: int, target: TextIO) -> Iterator[int]:
    """Redirect a descriptor to `target`; yield another descriptor for its previous destination."""
    before = os.dup(descriptor)
    os.dup2(target.fileno(), descriptor)
    try:
        yield before
    finally:
        os.dup2(before, descriptor)
        os.close(before)


def _descriptor(stream: TextIO) -> int | None:
    with suppress(AttributeError, ValueError, OSError):
        return stream.fileno()
    return None


@contextmanager
def connect(address: str) -> Iterator[Cluster]:
    """Connect to Ray at an address: `local` starts Ray here for this run, `auto` uses the cluster of this machine.

    Raises `ClusterError` if Ray is not installed or does not answer, and `UsageError` if the address is malformed.
    """
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    try:
        import_module("ray.data")
    except ImportError:
        raise ClusterError("--ray needs another package: pip install 'ray[data]'") from None
    _probe(address)
    with _aside(), no_logs():
        yield from _connected(address)


def _connected(address: str) -> Iterator[Cluster]:
    import ray

    options = {"include_dashboard": False, "object_store_memory": LOCAL_STORE_BYTES} if address == LOCAL else {}
    try:
        with _own_handler(), safe_cluster():
            ray.init(address, log_to_driver=False, logging_level="critical", **options)
    except Exception as error:  # noqa: BLE001 - Ray raises nearly anything
        raise _unreachable(address, (str(error).strip().splitlines() or [type(error).__name__])[0]) from None
    try:
        yield Cluster(address)
    except BatchgenError:
        raise
    except (ray.exceptions.RayError, ray.exceptions.RayTaskError) as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, BatchgenError):
            raise cause from None
        raise ClusterError(f"Ray failed: {(str(error).strip().splitlines() or [type(error).__name__])[-1]}") from None
    finally:
        ray.shutdown()


@contextmanager
def _own_handler() -> Iterator[None]:
    """Keep the handler of SIGTERM: Ray sets its own, which ends the process with code 1 or 15 and without a line."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler, was_called = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL, False
    try:
        yield
    except SystemExit:
        was_called = True
    finally:
        signal.signal(signal.SIGTERM, handler)
    if was_called:
        signal.raise_signal(signal.SIGTERM)


def _probe(address: str) -> None:
    """Check that something listens at an address: Ray itself would try for a minute, and then end the process."""
    if address in (LOCAL, AUTO):
        return
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"--ray {address} is not an address: give local, auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_S).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from None


def _unreachable(address: str, reason: str) -> ClusterError:
    fix = "start it (ray start --head), set RAY_AUTH_MODE=token if it needs one, or use local"
    return ClusterError(f"--ray {address}: no Ray cluster answers there ({reason}): {fix}")
