"""What a run is made of (versions, model, options, input, machine), and the check that a resumed run still matches."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b, file_digest, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchgen import __version__
from batchgen.machine.limits import cpu_name
from batchgen.records import EngineChoice, Request, Result
from batchgen.runs.cells import digest_of
from batchgen.runs.differences import check_same
from batchgen.runs.store import Store

if TYPE_CHECKING:
    from batchgen.model import Checkpoint

Facts = dict[str, Any]
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numba")
HASHES = ("weights_sha256", "config_sha256", "tokenizer_sha256")
ENGINE = "engine"
FILES_NOTE = "files"  # the note of the files that the run writes
OWN_NOTES = {FILES_NOTE, "progress"}  # notes about the run itself, not about what it is made of
GOES_ON = {"--overwrite", "--resume", "--retry-errors"}  # about earlier output: not part of the recorded command


def model_facts(checkpoint: Checkpoint) -> Facts:
    """Return the model's name, its revision (if from the Hub) and hashes of all files that its answers depend on."""
    from batchgen.model.find import CONFIG_FILES, TOKENIZER_FILES

    folder = checkpoint.folder
    tokenizer = _files(folder, TOKENIZER_FILES)
    return {
        "model": checkpoint.name,
        "revision": folder.name if folder.parent.name == "snapshots" else None,
        "weights_sha256": _hash(_files(folder, ["*.safetensors", "*.safetensors.index.json"])),
        "config_sha256": _hash([file for file in _files(folder, CONFIG_FILES) if file not in tokenizer]),
        "tokenizer_sha256": _hash(tokenizer),
    }


def _files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


def _hash(files: Iterable[Path]) -> str:
    """Hash the names and contents of files."""
    whole = sha256()
    for file in files:
        with file.open("rb") as stream:
            whole.update(f"{file.name}\0{file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def machine_facts(device: str) -> Facts:
    import psutil

    return {
        "device": device,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
    }


def version_facts() -> Facts:
    from importlib.metadata import version

    from batchgen.engines.compiled.support import compiler

    libraries = {name: version(name) for name in LIBRARIES if name != "numba" or compiler()}
    return {"batchgen": __version__, "python": platform.python_version(), **libraries}


class Manifest:
    """What is recorded about a run as it proceeds; kept in its store, if it has one.

    `facts` is what `--manifest` writes: model, options, engine, versions, machine, input, stats, started, finished.
    """

    def __init__(self, store: Store | None = None, *, facts: Facts | None = None, where: object = None) -> None:
        """Open the manifest of a new run, of the run in a store, or of a run with the `facts` read from `where`."""
        self._store = store
        self._where = store.path if store else where
        noted = store.manifest() if store else dict(facts or {})
        self.facts: Facts = {name: value for name, value in noted.items() if name not in OWN_NOTES}
        self._started: str = self.facts.get("started") or _now()

    @property
    def started(self) -> datetime:
        """When the run was first started, in local time; a resumed run keeps the time of the first start."""
        return datetime.fromisoformat(self._started).astimezone().replace(tzinfo=None)

    def begin(
        self,
        device: str,
        say: Callable[[str], object] = lambda line: None,
        *,
        command: Sequence[str] = (),
        **made_of: Facts,
    ) -> None:
        """Record what the run is made of (`model`, `options`) and the command; report which versions have changed.

        Raises `OutputError` naming the first difference if the run was started with something else.
        """
        if self._where:
            compare(self.facts, made_of, self._where, say)
        for part, facts in made_of.items():
            self.note(part, self.facts.get(part, facts) if part == "model" else facts)
        self.note("versions", version_facts())
        self.note("machine", machine_facts(device))
        if command:
            words = [word for word in command if word not in GOES_ON]
            self.note("command", {"words": words, "folder": str(Path.cwd())})
        self.note("started", self._started)
        for name in ("stats", "finished"):  # a run that continues with more rows has them already
            self._forget(name)

    @property
    def engine(self) -> EngineChoice | None:
        """What the run's engine is made of, once it is chosen."""
        return EngineChoice.from_dict(self.facts.get(ENGINE))

    @property
    def bits(self) -> str | None:
        """Whether the run's rows depend on their batches, once known."""
        return self.engine.bits if self.engine else None

    def agree(self, choice: EngineChoice) -> EngineChoice:
        """Return what the run's engine is made of: the recorded choice, or else this one, which is then recorded."""
        if self.engine is None:
            self.note(ENGINE, choice.to_dict())
        return self.engine or choice

    def with_input(self, results: Iterable[Result], input: InputDigest) -> Iterator[Result]:
        """Pass on the results; after the last one all of the input has been read, and its hash is recorded."""
        yield from results
        if self.facts.get("options"):
            self.note("input", input.facts)

    def end(self, input: InputDigest, stats: Facts) -> None:
        self.note("input", input.facts)
        self.finish(stats)

    def finish(self, stats: Facts) -> None:
        self.note("stats", stats)
        self.note("finished", _now())

    def note(self, name: str, value: object) -> None:
        """Record a fact, replacing the previous one of that name."""
        self.facts[name] = value
        if self._store:
            self._store.note(name, value)

    def _forget(self, name: str) -> None:
        if self.facts.pop(name, None) is not None and self._store:
            self._store.forget_note(name)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def compare(
    begun: Mapping[str, Any],
    now: Mapping[str, Facts],
    where: object,
    say: Callable[[str], object] = lambda line: None,
) -> None:
    """Raise `OutputError` for the first difference between what a run is made of now and what it was started with.

    A model may have a different name if its files are the same. Versions may differ; `say` is told which.
    """
    for part, facts in now.items():
        known = begun.get(part, {})
        if part != "model" or not _is_same_model(known, facts):
            check_same(known, facts, where)
    versions = begun.get("versions", {})
    changed = [
        f"{name} {versions[name]}, now {version}"
        for name, version in version_facts().items()
        if name in versions and versions[name] != version
    ]
    if changed:
        say(f"{where} was started with {'; '.join(changed)}: the remaining rows may differ")


def _is_same_model(begun: Facts, now: Facts) -> bool:
    return all(begun.get(name) == now[name] for name in HASHES)


class InputDigest:
    """A hash of all rows that pass through, in order."""

    def __init__(self) -> None:
        self.num_rows = 0
        self._hash = blake2b(digest_size=16)

    @property
    def facts(self) -> Facts:
        return {"rows": self.num_rows, "blake2b": self.hexdigest}

    @property
    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def watch(self, requests: Iterable[Request]) -> Iterator[Request]:
        for request in requests:
            self.num_rows += 1
            self._hash.update(digest_of(request))
            yield request
