"""llama.cpp's server in a process of its own, continuing token ids over HTTP."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from workloads import Row

HOST = "127.0.0.1"
START_S = 600  # maximum time to load a model
# Only the best token is kept, so that the sampler needs one pass over the logits. llama.cpp never chooses an end token
# that it ignores; the other systems choose it and go on.
GREEDY = {"samplers": ["top_k"], "top_k": 1, "ignore_eos": True}
# A round must not reuse what the one before it kept.
NO_REUSE = {"cache_prompt": False}


class LlamaServer:
    """A loaded model that continues `slots` rows at a time. The process ends with this object."""

    def __init__(self, binary: str, gguf: Path, *, slots: int, row_tokens: int, cache: str, threads: int) -> None:
        """Start the server: `row_tokens` is the most tokens of a row, `cache` the data type of keys and values."""
        self._port = free_port()
        self._log = gguf.with_suffix(f".{slots}.log")
        sizes = {"parallel": slots, "ctx-size": slots * (row_tokens + 1), "threads": threads, "cache-ram": 0}
        options = {"model": gguf, "host": HOST, "port": self._port, "cache-type-k": cache, "cache-type-v": cache}
        arguments = [text for name, value in {**options, **sizes}.items() for text in (f"--{name}", str(value))]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([binary, *arguments], stdout=log, stderr=log)
        weakref.finalize(self, end, self._process)
        self._wait()

    def __call__(self, rows: list[Row]) -> list[list[int]]:
        """Return the new tokens of each row, in order. The server queues the rows that it has no slots for."""
        with ThreadPoolExecutor(len(rows)) as pool:
            return list(pool.map(self._complete, rows))

    def _complete(self, row: Row) -> list[int]:
        settings = {**GREEDY, **NO_REUSE, "return_tokens": True, "response_fields": ["tokens"]}
        body = {"prompt": row.input_ids, "n_predict": row.new_tokens, **settings}
        status, reply = ask(self._port, "POST", "/completion", body)
        if status != 200:
            raise RuntimeError(f"llama-server: {reply['error']['message']}")
        return list(reply["tokens"])

    def _wait(self) -> None:
        """Wait until the model is loaded. Raises `RuntimeError` if it takes too long or the server ends."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if (code := self._process.poll()) is not None:
                lines = self._log.read_text(errors="replace").strip().splitlines()
                raise RuntimeError(f"llama-server ended with status {code}: {' / '.join(lines[-3:])}")
            try:
                if ask(self._port, "GET", "/health")[0] == 200:
                    return
            except ConnectionError:
                pass  # it does not listen yet
            time.sleep(0.1)
        raise RuntimeError(f"llama-server was not ready after {START_S} s")


def ask(port: int, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """Return the status and the JSON of the reply."""
    connection = HTTPConnection(HOST, port)
    try:
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def version_of_server(binary: str) -> str:
    """Return what `--version` says in its line `version: …`, or nothing."""
    done = subprocess.run([binary, "--version"], capture_output=True, text=True, errors="replace", check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("version:")), "")
